"""Policies: models that act. What every one of them can do, and what a family adds.

Place in the pipeline: a trainer hands a batch of windows, a family gives logits per action group, the behaviour cloning
loss and the metrics are the same for all. In play an :class:`~bczoo.play.agent.Agent` drives a :class:`Session` that
the family opens. A family defines its logits; all else has a default that works, if slowly::

    logits(batch)                                  needed, in one piece or as
    encode(frames), logits_from(encoded, batch)    two: what depends on one frame alone is computed once
    open_session(num_envs, sampler, cuda_graphs)   play; by default the window is computed anew at every frame
    counterfactual_logits(...)                     the causality score; by default a window per step

Shape legend: B batch, T steps, E text width, n tokens and V choices of a group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from bczoo.core import arguments
from bczoo.core.actions import ActionSpace
from bczoo.core.errors import UserError
from bczoo.core.parts import build_part
from bczoo.core.spec import FILL, Batch, InputSpec, loss_mask, step_weights, targets
from bczoo.models.model import Model, reference_optimizer
from bczoo.models.session import Session, WindowSession
from bczoo.nn.actions import ActionRows, Logits
from bczoo.nn.encoders import Encoder
from bczoo.nn.sampling import Sampler
from bczoo.nn.text import TextEncoder
from bczoo.train.loss import BCLoss, Loss, bc_loss
from bczoo.train.metrics import ActionMetrics

if TYPE_CHECKING:
    from bczoo.play.agent import Agent

NO_TEXT = "this policy takes no text (text_dim is null); leave the instruction out"
STEPS_PER_FORWARD = 4096  # over all windows of a forward that asks about several steps at once
LOGGED = {"loss", "perplexity", "change_perplexity", "accuracy"}  # of the metrics, in validation


class OfSpec:
    """An entry of a policy's input spec under its own name; a family may keep something of its own there instead."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, policy: Policy | None, owner: type) -> Any:
        return self if policy is None else getattr(policy.input_spec, self.name)


class Policy(Model):
    """Base class of the families that act.

    Args:
        input_spec: what the policy needs its input to be; its action space is what it predicts.
        text_encoder: embeds live instructions in play; no part of the weights.
        z_loss: weight of the z-loss.
        optimizer: makes the optimiser, given the parameters.
        lr_scheduler: makes the learning rate schedule, given the optimiser and the number of steps of the run.

    Attributes:
        independent_tokens: the action tokens of a step are predicted independently of each other.
        past_actions: a decision depends on the actions of earlier steps.
        text_entries: entries of the state dict that are there only where the policy takes text.
        logged: names of the metrics that validation logs; callbacks may add to it.
        fps: steps per second at which it acts, and to which recordings are brought.
        frame_size: height and width in pixels of the frames that it sees; frames of any size are resized to it.
        window: steps of a training window, and of the memory in play.
        text_dim: values of a text embedding; None where it takes no text.
    """

    fps = OfSpec()
    frame_size = OfSpec()
    window = OfSpec()
    text_dim = OfSpec()

    template = True
    kind = "policy"
    independent_tokens = False
    past_actions = True
    text_entries: ClassVar[tuple[str, ...]] = ()
    input_spec: InputSpec

    def __init__(
        self,
        input_spec: InputSpec,
        text_encoder: TextEncoder | None = None,
        z_loss: float = 1e-4,
        optimizer: Callable[[Iterable], Optimizer] = reference_optimizer,
        lr_scheduler: Callable[[Optimizer, int], LRScheduler] | None = None,
    ) -> None:
        arguments.number("z_loss", z_loss, 0)
        super().__init__(input_spec, optimizer, lr_scheduler)
        if input_spec.action_space is None:
            raise UserError(f"{type(self).__name__} is a policy, so its InputSpec needs an action_space")
        self.action_space: ActionSpace = input_spec.action_space
        self.text_encoder = None if text_encoder is None else build_part("text_encoder", text_encoder, TextEncoder)
        self.z_loss = z_loss
        self.logged = set(LOGGED)
        with torch.device("cpu"):  # a loaded policy is built without memory, and no file holds what these begin with
            metrics = {stage: ActionMetrics(self.action_space, z_loss, self.loss_scales) for stage in ("val", "test")}
        self.metrics = nn.ModuleDict(metrics)

    # ------------------------------------------------------------------ the family's part

    def logits(self, batch: Batch) -> Logits:
        """Logits (B, T, n, V) of every action token of a window, each predicted before that token is seen."""
        return self.logits_from(self.encoded(batch), batch)

    def encoded(self, batch: Batch) -> Tensor:
        """:meth:`encode` of a batch's frames (B, T, ...), also where the batch holds their features instead."""
        return self.encode_features(batch["features"]) if "features" in batch else self.encode(batch["frames"])

    def encode(self, frames: Tensor) -> Tensor:
        """What a policy makes of each frame alone: (B, T, 3, H, W) to (B, T, ...). By default the frame itself."""
        return frames

    def feature_encoder(self) -> Encoder | None:
        """The encoder behind :meth:`encode_features`; None, the default, for a family without one."""
        return None

    def encode_features(self, features: Tensor) -> Tensor:
        """:meth:`encode` from the features (B, T, F) that :meth:`feature_encoder` makes of the frames."""
        raise NotImplementedError(f"{type(self).__name__} must define encode_features(features)")

    def logits_from(self, encoded: Tensor, batch: Batch) -> Logits:
        """:meth:`logits` with :meth:`encode`'s (B, T, ...) in the place of the batch's frames."""
        if type(self).logits is Policy.logits:
            raise NotImplementedError(f"{type(self).__name__} must define logits(batch), or encode and logits_from")
        return self.logits({**batch, "frames": encoded})

    def open_session(self, num_envs: int, sampler: Sampler, cuda_graphs: bool | None = None) -> Session:
        """The state of ``num_envs`` games that play with this policy.

        Args:
            num_envs: how many.
            sampler: samples the ids.
            cuda_graphs: True demands steps from CUDA graphs, None takes them where the family has them.
        """
        if cuda_graphs:
            raise UserError(f"{type(self).__name__} records no CUDA graphs; leave cuda_graphs out")
        return WindowSession(self, num_envs, sampler)

    @torch.no_grad()
    def counterfactual_logits(
        self, encoded: Tensor, replacements: Tensor, batch: Batch, replaced: int = 1
    ) -> tuple[Logits, Logits]:
        """Logits of a window as recorded, and those of every step t had the last steps up to t shown something else.

        The general way shows the policy a window per step, several in a forward; families that can ask all questions in
        one pass over one window override it.

        Args:
            encoded: (B, T, ...) of the recorded frames, from :meth:`encode`.
            replacements: (B, T, ...) of what is shown instead.
            batch: the window.
            replaced: how many steps up to t show their replacement when t decides.
        """

        def question(t: int) -> tuple[Tensor, Mapping[str, Tensor]]:
            shown = encoded.clone()
            first = max(t - replaced + 1, 0)
            shown[:, first : t + 1] = replacements[:, first : t + 1]
            return shown, batch["actions"]

        return self.logits_from(encoded, batch), self._ask_every_step(question, batch)

    @torch.no_grad()
    def other_past_logits(self, encoded: Tensor, batch: Batch, actions: Mapping[str, Tensor]) -> Logits:
        """Logits of every step t had the actions before t been others (B, T, n), with the recorded frames.

        The tokens of step t itself are the recorded ones. The general way is as in :meth:`counterfactual_logits`.
        """
        if not self.past_actions:
            return self.logits_from(encoded, batch)

        def question(t: int) -> tuple[Tensor, Mapping[str, Tensor]]:
            own = batch["actions"]
            return encoded, {k: torch.cat([actions[k][:, :t], own[k][:, t:]], dim=1) for k in own}

        return self._ask_every_step(question, batch)

    def _ask_every_step(self, question: Callable[[int], tuple[Tensor, Mapping[str, Tensor]]], batch: Batch) -> Logits:
        """Step t of the logits (B, T, n, V) of question t, for all steps, as many questions at once as memory allows.

        Args:
            question: what is shown, encoded (B, T, ...), and the actions (B, T, n), when step t is asked.
            batch: the window.
        """
        size, steps = batch["valid"].shape
        at_once = max(1, STEPS_PER_FORWARD // (size * steps))
        answers: list[Logits] = []
        for first in range(0, steps, at_once):
            asked = range(first, min(first + at_once, steps))
            shown, actions = zip(*map(question, asked), strict=True)
            kept = {k: v for k, v in batch.items() if isinstance(v, Tensor) and k not in ("frames", "features")}
            many: Any = {k: torch.cat([v] * len(asked)) for k, v in kept.items()}
            many["frames"] = encoded = torch.cat(shown)
            many["actions"] = {k: torch.cat([one[k] for one in actions]) for k in actions[0]}
            if "labels" in batch:
                many["labels"] = {k: torch.cat([v] * len(asked)) for k, v in batch["labels"].items()}
            logits = self.logits_from(encoded, many)  # (Q * B, T, n, V)
            answers += [{k: v[i * size : (i + 1) * size, t] for k, v in logits.items()} for i, t in enumerate(asked)]
        return {k: torch.stack([answer[k] for answer in answers], dim=1) for k in answers[0]}

    def action_rows(self) -> ActionRows:
        """What the rows of those parameters mean that depend on the action space, by the beginning of their names.

        Modules of a family whose rows are choices or action tokens have a method of the same name.
        """
        found = [(name, m.action_rows()) for name, m in self.named_modules() if m is not self and _has_action_rows(m)]
        return {f"{name}.{entry}": meanings for name, rows in found for entry, meanings in rows.items()}

    # ------------------------------------------------------------------ play

    @property
    def why_no_text(self) -> str | None:
        """Why this policy can follow no instruction in words; None if it can."""
        if self.input_spec.text_dim is None:
            return NO_TEXT
        if self.text_encoder is None:
            return "this policy has no text_encoder; set one in its config (bczoo.GemmaTextEncoder)"
        return None

    @torch.no_grad()
    def embed(self, text: str) -> Tensor:
        """The embedding (E,) of an instruction, float32 on the CPU.

        Raises:
            ValueError: this policy takes no text, or has no text encoder, or one of another width.
        """
        if self.why_no_text or self.text_encoder is None:
            raise UserError(self.why_no_text)
        embedding = self.text_encoder([text])[0].float().cpu()
        if tuple(embedding.shape) != (self.input_spec.text_dim,):
            raise UserError(
                f"the text encoder gives {tuple(embedding.shape)}, the policy needs ({self.input_spec.text_dim},)"
            )
        return embedding

    def for_play(self) -> Policy:
        """This policy as it plays fastest; families that have a faster form of themselves override it."""
        return self

    def agent(self, num_envs: int = 1, **options: Any) -> Agent:
        """A player of ``num_envs`` games with this policy; options as in :class:`bczoo.play.agent.Agent`."""
        from bczoo.play.agent import Agent

        return Agent(self, num_envs, **options)

    # ------------------------------------------------------------------ training

    def setup(self, stage: str) -> None:
        """Refuse, before training, parts of the user's own that do not return what they have to."""
        super().setup(stage)
        if stage == "fit":
            from bczoo.models.trial import check_forward  # knows the parts of families

            check_forward(self)

    @property
    def loss_scales(self) -> dict[str, float]:
        """Per action group what its cross-entropy is divided by in the loss: ln(choices), as in paper 2601.04575."""
        return {g.name: math.log(g.choices) for g in self.action_space.groups}

    def learned_steps(self, batch: Batch) -> Tensor:
        """Steps (B, T) that count in loss and metrics: those that :attr:`supervision` names, a person's by default."""
        return loss_mask(batch, self.supervision)

    def loss(self, batch: Batch) -> Loss | BCLoss:
        """The behaviour cloning loss of the steps that :attr:`supervision` names, a person's by default."""
        mask = self.learned_steps(batch)
        steps = self.mean_over_processes(step_weights(batch, mask).sum())
        logits, weight = self.logits(batch), batch.get("weight")
        return bc_loss(logits, targets(batch), mask, self.z_loss, steps, self.loss_scales, weight)

    def evaluate(self, batch: Batch, stage: str) -> dict[str, Any]:
        """Add a batch to the metrics; what was encoded and the logits are for callbacks, so that they need no pass."""
        encoded = self.encoded(batch)
        logits = self.logits_from(encoded, batch)
        windows = batch["recording"] != FILL
        self.metrics[stage].update(logits, targets(batch), self.learned_steps(batch), windows)  # type: ignore[operator]
        return {"encoded": encoded, "logits": logits}

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def predict_step(self, batch: Batch, batch_index: int) -> dict[str, Tensor]:
        """Most likely ids (B, T, n) per group and the probability of the right ones, with where they belong."""
        out = {k: batch[k] for k in ("recording", "start", "user", "valid")}
        for name, logits in self.logits(batch).items():
            right = targets(batch)[name][..., None]
            out[f"ids.{name}"] = logits.argmax(dim=-1)
            out[f"probability.{name}"] = logits.float().softmax(dim=-1).gather(-1, right).squeeze(-1)
        return out

    def instructions(self, batch: Batch) -> Tensor | None:
        """Text embeddings (B, T, E) that belong to a batch; None where the policy takes none or the batch has none."""
        return batch.get("text") if self.input_spec.text_dim else None

    def _log_metrics(self, stage: str) -> None:
        metrics = self.metrics[stage]
        values = metrics.compute()  # type: ignore[operator]  # of all ranks, so the same on all of them
        metrics.reset()  # type: ignore[operator]
        for name, value in values.items():
            if name.partition("/")[0] in self.logged:
                self.log(f"{stage}/{name}", value, prog_bar=name == "loss", sync_dist=True)


def _has_action_rows(module: nn.Module) -> bool:
    return callable(getattr(type(module), "action_rows", None))


def from_pretrained(source: str | Path, *args: Any, **options: Any) -> Policy:
    """A trained policy of whatever family the source holds; options as of :meth:`bczoo.Model.from_pretrained`."""
    return Policy.from_pretrained(source, *args, **options)
