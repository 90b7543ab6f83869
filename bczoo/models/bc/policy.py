"""The policy: encoder, step tokens, transformer and decoder joined into one LightningModule.

Place in the pipeline::

    frames (B,T,3,H,W) --encoder--> image tokens --.
    text (B,T,E) ----------------------------------+--StepTokens--> (B,T*S,D) --PolicyTransformer--> outputs
    actions (B,T,n) --ActionEmbedding--> (B,T,A,D) -'                                                   |
                             '------------------------> decoder <--- output at action_out --------------'
                                                           '--> logits per group (B,T,n,V) --> bc_loss

In training all of a window is seen at once; in play an agent (``bczoo.play.agent``) feeds one step at a time.

Shape legend: B batch, T steps, H = W frame size, E text width, A action tokens, S tokens of a step, D width,
n tokens and V choices of a group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from bczoo.core import arguments
from bczoo.core.actions import ActionSpace
from bczoo.core.configs import load_policy, without_imagenet
from bczoo.core.errors import UserError
from bczoo.core.parts import build
from bczoo.core.spec import Batch, InputSpec
from bczoo.models.bc.decoder import ActionDecoder, Decoder, Logits
from bczoo.models.bc.layout import StepLayout
from bczoo.models.bc.memory import check_size
from bczoo.models.bc.tokens import ActionEmbedding, StepTokens
from bczoo.models.bc.transformer import PolicyTransformer
from bczoo.nn.encoders import Encoder, ImageEncoder
from bczoo.nn.text import TextEncoder
from bczoo.train.loss import bc_loss
from bczoo.train.metrics import ActionMetrics

if TYPE_CHECKING:
    from bczoo.play.agent import Agent

NO_TEXT = "this policy takes no text (text_dim is null); leave the instruction out"
TRAINING_SETTINGS = "bczoo_training_settings"  # key of a checkpoint


def published_optimizer(parameters: Iterable) -> Optimizer:
    """AdamW with the published settings (the 1.2b takes a learning rate of 3e-5)."""
    return torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-4)


class BCPolicy(L.LightningModule):
    """A behaviour cloning policy of the published architecture (paper 2601.04575).

    Args:
        transformer: the backbone; its width is the width of everything.
        encoder: makes the image encoder, given the width.
        decoder: makes the action decoder, given the width and the action space.
        action_space: ``keyboard_mouse``, ``gamepad``, or a space as plain data (``ActionSpace.to_dict``).
        text_dim: values of a text embedding; null for a policy without text.
        text_encoder: embeds live instructions in play; no part of the weights.
        thinking_tokens: learned tokens per step between the image and the decision.
        past_actions: whether later steps see the actions of earlier ones, as published.
        window: steps of a training window and of the memory in play.
        fps: steps per second.
        resize: filter that brings frames of another size to the encoder's, in training and in play.
        z_loss: weight of the z-loss.
        optimizer: makes the optimiser, given the parameters.
        lr_scheduler: makes the learning rate schedule, given the optimiser and the number of steps of the run, such
            as bczoo.WarmupCosine; null for a constant rate as published.
    """

    def __init__(
        self,
        transformer: PolicyTransformer,
        encoder: Callable[[int], Encoder] = ImageEncoder,
        decoder: Callable[[int, ActionSpace], Decoder] = ActionDecoder,
        action_space: str | dict[str, Any] = "keyboard_mouse",
        text_dim: int | None = 768,
        text_encoder: TextEncoder | None = None,
        thinking_tokens: int = 1,
        past_actions: bool = True,
        window: int = 200,
        fps: float = 20.0,
        resize: str = "hamming",
        z_loss: float = 1e-4,
        optimizer: Callable[[Iterable], Optimizer] = published_optimizer,
        lr_scheduler: Callable[[Optimizer, int], LRScheduler] | None = None,
    ) -> None:
        super().__init__()
        self.action_space = ActionSpace.of(action_space)
        self.transformer = build("transformer", transformer, PolicyTransformer)
        width = self.transformer.width
        self.encoder = build("encoder", encoder, Encoder, width)
        self.decoder = build("decoder", decoder, Decoder, width, self.action_space)
        self.text_encoder = None if text_encoder is None else build("text_encoder", text_encoder, TextEncoder)
        if text_dim is not None:
            arguments.whole("text_dim", text_dim, 1)
        arguments.whole("thinking_tokens", thinking_tokens, 0)
        arguments.flag("past_actions", past_actions)
        arguments.number("z_loss", z_loss, 0)
        self.layout = StepLayout(
            text=int(text_dim is not None),
            image=self.encoder.tokens,
            thinking=thinking_tokens,
            actions=self.action_space.tokens,
            causal_actions=self.decoder.in_backbone,
            past_actions=past_actions,
        )
        self.tokens = StepTokens(width, self.layout, text_dim)
        self.action_embedding = ActionEmbedding(width, self.action_space)
        self.input_spec = InputSpec(self.action_space, self.encoder.frame_size, fps, window, text_dim, resize)
        check_size(self.transformer, self.layout, window)
        self.z_loss = z_loss
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.logged = {"loss", "perplexity", "change_perplexity", "accuracy"}  # of the metrics; callbacks may add to it
        self.metrics = nn.ModuleDict({stage: ActionMetrics(self.action_space, z_loss) for stage in ("val", "test")})
        # a checkpoint brings its own weights, so rebuilding from it must not download ImageNet's
        self.hparams.update(without_imagenet(self.config))

    @classmethod
    def from_config(cls, config: str | Mapping[str, Any], pretrained: bool = True, **overrides: Any) -> BCPolicy:
        """An untrained policy of a shipped size, a YAML file, or a :attr:`config`.

        Args:
            config: ``"150m"``, a path to a YAML file with a ``model`` section, or :attr:`config` of another policy.
            pretrained: False leaves the image encoder random instead of loading ImageNet weights.
            **overrides: arguments of the constructor that replace the file's, e.g. ``window=20``; those of a part as
                a dict, ``encoder={"init_args": {"frozen": True}}``.

        Raises:
            ValueError: an unknown name or argument.
        """
        return load_policy(cls, config, pretrained, overrides)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        revision: str | None = None,
        token: str | bool | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> BCPolicy:
        """A trained policy, ready to play.

        Args:
            source: ``org/name`` on the Hugging Face Hub, a published folder, a run such as ``runs/quickstart``, or a
                ``.ckpt`` file.
            revision: branch, tag or commit on the Hub.
            token: access token of the Hub; the one that ``hf auth login`` stored if left out.
            device: where the weights go.
            dtype: brings the weights to this type (``torch.bfloat16``); as they were saved if left out.
            cache_dir: another download cache than huggingface_hub's.
            local_files_only: take it from the cache without a look at the network.

        Raises:
            ValueError: there is no such policy, or what is there is broken; says what and where.
        """
        from bczoo.hub.source import locate

        return locate(source, revision, token, cache_dir, local_files_only).load(cls, device, dtype)

    def save_pretrained(
        self,
        folder: str | Path,
        dtype: torch.dtype | None = None,
        license: str | None = None,
        record: Mapping[str, Any] | None = None,
        shard_size: int | str = "5GB",
    ) -> Path:
        """Write config, weights (safetensors) and a model card; :meth:`from_pretrained` reads them back.

        Args:
            folder: where to; an older policy there is replaced.
            dtype: type of the saved weights; as they are if left out.
            license: of the weights, by its Hub name (``mit``), for the card.
            record: what is known of the training (the ``record.json`` of a run), for the card.
            shard_size: larger weights are spread over several files.
        """
        from bczoo.hub.card import model_card
        from bczoo.hub.folder import write_folder
        from bczoo.hub.state import plain_state

        card = model_card(Path(folder).resolve().name, self, record or {}, license, dtype)
        return write_folder(folder, self.config, plain_state(self, dtype), card, record, shard_size)

    def push_to_hub(
        self,
        repository: str,
        revision: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        message: str | None = None,
        **options: Any,
    ) -> str:
        """Publish as ``org/name`` on the Hugging Face Hub; returns the commit's address.

        Args:
            repository: ``org/name``; created if there is none.
            revision: branch to push to; main if left out.
            private: whether a new repository is private.
            token: access token with the right to write.
            message: of the commit.
            **options: of :meth:`save_pretrained`.
        """
        import tempfile

        from bczoo.hub.remote import push, require_repository

        require_repository(repository)
        with tempfile.TemporaryDirectory() as folder:
            saved = self.save_pretrained(Path(folder) / repository.split("/")[-1], **options)
            return push(saved, repository, revision, private, token, message)

    @property
    def config(self) -> dict[str, Any]:
        """Plain JSON from which :meth:`from_config` rebuilds this policy (without weights and optimiser)."""
        return {
            "transformer": self.transformer.spec,
            "encoder": self.encoder.spec,
            "decoder": self.decoder.spec,
            "action_space": self.action_space.to_dict(),
            "text_dim": self.input_spec.text_dim,
            "text_encoder": self.text_encoder.spec if self.text_encoder else None,
            "thinking_tokens": self.layout.thinking,
            "window": self.input_spec.window,
            "fps": self.input_spec.fps,
            "resize": self.input_spec.resize,
            "z_loss": self.z_loss,
            # left out at its default: policies that were saved before there was this choice stay what they are
            **({} if self.layout.past_actions else {"past_actions": False}),
        }

    def parameter_counts(self) -> dict[str, int]:
        """Parameters in total and of the parts, as the paper counts them: the decoder without its heads."""

        def count(module: nn.Module) -> int:
            packed = sum(getattr(m, "packed_parameters", 0) for m in module.modules())  # of for_play()
            return packed + sum(p.numel() for name, p in module.named_parameters() if ".lora_" not in f".{name}")

        return {
            "total": count(self),
            "backbone": count(self.transformer),
            "decoder": count(self.decoder) - count(self.decoder.heads),
            "image": count(self.encoder),
        }

    # ------------------------------------------------------------------ forward

    def forward(self, frames: Tensor, actions: Mapping[str, Tensor], text: Tensor | None = None) -> Logits:
        """Logits of every action token of a window, each predicted before that token is seen.

        Args:
            frames: (B, T, 3, H, W) uint8, RGB.
            actions: per group ids (B, T, n), the action taken after seeing the frame.
            text: (B, T, E) embeddings, all zero where there is no instruction; None for none at all.

        Returns:
            per group logits (B, T, n, V).
        """
        self._check(frames, actions, text)
        return self.logits(self.encode(frames), actions, text)

    def logits(self, images: Tensor, actions: Mapping[str, Tensor], text: Tensor | None = None) -> Logits:
        """:meth:`forward` from image tokens (B, T, I, D) instead of frames."""
        embedded = self.action_embedding(actions)  # (B, T, A, D)
        return self.decoder(self.latents(images, embedded, text), embedded)

    def latents(self, images: Tensor, embedded: Tensor, text: Tensor | None = None) -> Tensor:
        """What the decoder reads of a window, (B, T, latents, D): one pass of the backbone.

        Args:
            images: image tokens (B, T, I, D), from :meth:`encode`.
            embedded: embedded actions (B, T, A, D).
            text: (B, T, E), or None.
        """
        x = torch.cat([self.tokens.observation(images, text), self.tokens.actions(embedded)], dim=2)
        y = self.transformer(x.flatten(1, 2), self.layout).unflatten(1, x.shape[1:3])  # (B, T, S, D)
        first = self.layout.action_out
        return y[:, :, first : first + self.decoder.latents]

    def encode(self, frames: Tensor) -> Tensor:
        """Image tokens (B, T, I, D) of frames (B, T, 3, H, W)."""
        return self.encoder(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])

    def _check(self, frames: Tensor, actions: Mapping[str, Tensor], text: Tensor | None) -> None:
        if frames.ndim != 5:
            raise ValueError(f"frames must be (B, T, 3, H, W), got {tuple(frames.shape)}")
        lead = tuple(frames.shape[:2])
        for group in self.action_space.groups:
            ids = actions.get(group.name)
            if ids is None or tuple(ids.shape) != (*lead, group.tokens):
                raise ValueError(
                    f"actions[{group.name!r}] must be ids of shape {(*lead, group.tokens)}, got "
                    f"{None if ids is None else tuple(ids.shape)}"
                )
        expected = (*lead, self.input_spec.text_dim)
        if text is not None and tuple(text.shape) != expected:
            raise ValueError(f"text must be {expected} (text_dim of this policy), got {tuple(text.shape)}")

    # ------------------------------------------------------------------ play

    @property
    def deaf_because(self) -> str | None:
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
        if self.deaf_because or self.text_encoder is None:
            raise UserError(self.deaf_because)
        embedding = self.text_encoder([text])[0].float().cpu()
        if tuple(embedding.shape) != (self.input_spec.text_dim,):
            raise UserError(
                f"the text encoder gives {tuple(embedding.shape)}, the policy needs ({self.input_spec.text_dim},)"
            )
        return embedding

    def for_play(self) -> BCPolicy:
        """This policy as it plays fastest: on a CPU a twin whose large linear layers are packed.

        The twin plays only: it cannot be trained, moved, copied or saved, and does not follow when the original is
        trained on. It has a copy of the matrices and shares the rest, so ``policy = policy.for_play()`` takes no more
        memory in the end. Where nothing is gained (a GPU, a small policy, another kind of processor) it is the policy
        itself.
        """
        from bczoo.nn.packed import PackedLinear, can_pack, with_packed_linears

        weight = next(self.transformer.parameters())
        if weight.device.type != "cpu" or not can_pack(weight.dtype):
            return self
        twin = with_packed_linears(self.eval())
        return twin if any(isinstance(m, PackedLinear) for m in twin.modules()) else self

    def agent(self, games: int = 1, **options: Any) -> Agent:
        """A player of ``games`` games with this policy; options as in :class:`bczoo.play.agent.Agent`."""
        from bczoo.play.agent import Agent

        return Agent(self, games, **options)

    # ------------------------------------------------------------------ training

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """The loss whose mean over processes is that of all their batches together; the mean is what is logged.

        With ``accumulate_grad_batches`` each batch of an optimiser step has the same weight, however many of its steps
        count: how many will count in the later ones is not known yet. BatchNorm that is not frozen takes its statistics
        from the process's own batch.
        """
        logits = self._logits(batch)
        counted = batch["user"] & batch["valid"]
        steps = self._mean_over_processes(counted.sum())
        loss = bc_loss(logits, batch["actions"], counted, self.z_loss, steps)
        parts = self._mean_over_processes(torch.stack([loss.total, *loss.cross_entropy.values()]).detach())
        names = ["train/loss", *(f"train/{k}_ce" for k in loss.cross_entropy)]
        for name, value in zip(names, parts, strict=True):
            self.log(name, value, prog_bar=name == "train/loss", batch_size=len(batch["frames"]))
        return loss.total

    def validation_step(self, batch: Batch, batch_index: int) -> dict[str, Any]:
        return self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_index: int) -> dict[str, Any]:
        return self._evaluate(batch, "test")

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def predict_step(self, batch: Batch, batch_index: int) -> dict[str, Tensor]:
        """Most likely ids (B, T, n) per group and the probability of the recorded ones, with where they belong."""
        out = {k: batch[k] for k in ("recording", "start", "user", "valid")}
        for name, logits in self._logits(batch).items():
            taken = batch["actions"][name][..., None]
            out[f"ids.{name}"] = logits.argmax(dim=-1)
            out[f"probability.{name}"] = logits.float().softmax(dim=-1).gather(-1, taken).squeeze(-1)
        return out

    @property
    def training_settings(self) -> dict[str, Any]:
        """What of the training has to stay when a run is resumed, as plain JSON; see :class:`bczoo.FineTune`."""
        return {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[TRAINING_SETTINGS] = self.training_settings

    def parameter_groups(self) -> list[Any]:
        """What the optimiser gets: parameters, or groups of them as torch's optimisers take them."""
        return [p for p in self.parameters() if p.requires_grad]

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameter_groups())
        if self.lr_scheduler is None:
            return optimizer
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            raise UserError("a learning rate schedule needs an end: set trainer.max_steps or trainer.max_epochs")
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.lr_scheduler(optimizer, int(steps)), "interval": "step"},
        }

    def instructions(self, batch: Batch) -> Tensor | None:
        """Text embeddings (B, T, E) that belong to a batch; None where the policy takes none or the batch has none."""
        return batch.get("text") if self.input_spec.text_dim else None

    def _logits(self, batch: Batch) -> Logits:
        return self(batch["frames"], batch["actions"], self.instructions(batch))

    def _mean_over_processes(self, values: Tensor) -> Tensor:
        """Mean over the processes of a training; every one of them has to call it. The host waits for no device."""
        if self._trainer is None or self.trainer.world_size == 1:
            return values
        gathered = self.trainer.strategy.all_gather(values)  # its reduce() would first wait in a barrier
        return gathered.float().mean(dim=0)

    def _evaluate(self, batch: Batch, stage: str) -> dict[str, Any]:
        """Add a batch to the metrics; its image tokens and logits are for callbacks, which need not compute them."""
        counted = batch["user"] & batch["valid"]
        text = self.instructions(batch)
        self._check(batch["frames"], batch["actions"], text)
        images = self.encode(batch["frames"])
        logits = self.logits(images, batch["actions"], text)
        windows = batch["recording"] >= 0  # the others only fill up the batch
        self.metrics[stage].update(logits, batch["actions"], counted, windows)  # type: ignore[operator]
        return {"images": images, "logits": logits}

    def _log_metrics(self, stage: str) -> None:
        metrics = self.metrics[stage]
        values = metrics.compute()  # type: ignore[operator]  # of all ranks, so the same on all of them
        metrics.reset()  # type: ignore[operator]
        for name, value in values.items():
            if name.partition("/")[0] in self.logged:
                self.log(f"{stage}/{name}", value, prog_bar=name == "loss", sync_dist=True)
