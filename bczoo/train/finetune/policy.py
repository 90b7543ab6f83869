"""A policy that starts from a trained one: the model class of ``configs/finetune.yaml``.

Place in the pipeline: ``bczoo fit --config finetune --model.init_from org/bc-150m --data.root my_game``. Architecture
and preprocessing come from the source, so nothing of them is repeated in the YAML; what the YAML chooses is what is
trained and how. What comes out is a plain :class:`bczoo.BCPolicy`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, get_args

import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from bczoo.core.actions import ActionSpace
from bczoo.core.configs import merge
from bczoo.core.errors import UserError
from bczoo.core.spec import Batch
from bczoo.hub.source import locate
from bczoo.hub.state import LORA_SCALE
from bczoo.models.bc.policy import BCPolicy, published_optimizer
from bczoo.nn.text import TextEncoder, where_untold
from bczoo.train.finetune.compare import comparison
from bczoo.train.finetune.lora import LoRA, add_lora
from bczoo.train.finetune.transfer import carry_over

Part = Literal["encoder", "transformer", "decoder", "embeddings"]


class FineTune(BCPolicy):
    """A trained policy that learns on.

    Args:
        init_from: ``org/name`` on the Hugging Face Hub, a published folder, a run, or a .ckpt file.
        revision: branch, tag or commit on the Hub.
        action_space: another action space, by name or as data; what both know is carried over by name. null keeps
            the source's.
        instruction: what to do, in words, at steps that carry no instruction; null for none.
        text_dim: gives text to a policy that has none; null keeps what the source has.
        text_encoder: embeds the instruction; null keeps the source's.
        window: steps of a training window and of the memory in play; null keeps the source's.
        freeze: per part (encoder, transformer, decoder, embeddings) for how many steps it stays as it is; true for
            ever. A frozen part is in evaluation mode, its BatchNorm statistics do not move.
        learning_rate: per part its own learning rate; the optimiser's elsewhere.
        lora: train the transformer through low-rank matrices, which are merged on export; null trains it whole.
        optimizer: makes the optimiser, given the parameters.
        lr_scheduler: makes the learning rate schedule, given the optimiser and the number of steps of the run.
    """

    def __init__(
        self,
        init_from: str = "",
        revision: str | None = None,
        action_space: str | dict[str, Any] | None = None,
        instruction: str | None = None,
        text_dim: int | None = None,
        text_encoder: TextEncoder | None = None,
        window: int | None = None,
        freeze: dict[str, bool | int] | None = None,
        learning_rate: dict[str, float] | None = None,
        lora: LoRA | None = None,
        optimizer: Callable[[Iterable], Optimizer] = published_optimizer,
        lr_scheduler: Callable[[Optimizer, int], LRScheduler] | None = None,
    ) -> None:
        if not init_from:
            raise UserError(
                "which policy to start from? --model.init_from org/name, a published folder, a run or a .ckpt"
            )
        found = locate(init_from, revision)
        config, weights = found.config_and_weights()
        source_space = ActionSpace.from_dict(config["action_space"])
        config = merge(config, {k: v for k, v in {"text_dim": text_dim, "window": window}.items() if v is not None})
        if "frozen" in config["encoder"].get("init_args", {}):
            config = merge(config, {"encoder": {"init_args": {"frozen": False}}})  # freeze says what is frozen here
        if action_space is not None:
            config["action_space"] = ActionSpace.of(action_space).to_dict()
        if text_encoder is not None:
            config["text_encoder"] = text_encoder
        super().__init__(**config, optimizer=optimizer, lr_scheduler=lr_scheduler)
        self.init_from, self.revision, self.base_model = init_from, revision, found.repository
        carried = carry_over(weights, source_space, self.state_dict(), self.action_space)
        self.load_state_dict(carried.state)
        self._carried = str(carried)
        self.frozen_for = {k: v for k, v in _by_part(freeze, "freeze").items() if v is not False and v != 0}
        self.learning_rate = _by_part(learning_rate, "learning_rate")
        self.lora = lora
        self.lora_scale = lora.scale if lora else None
        if lora is not None:
            if self.frozen_for.pop("transformer", None) is not None:
                raise UserError("freeze names the transformer, but LoRA keeps its weights as they are anyway")
            add_lora(self.transformer, lora)
        self.instruction = instruction
        self._embedded: Tensor | None = None  # (E,)
        if instruction is not None and (self.text_encoder is None or not self.input_spec.text_dim):
            raise UserError(
                f"{init_from} takes no text or has no text encoder, so it cannot learn under the instruction "
                f"{instruction!r}; set text_dim and text_encoder, or leave the instruction out"
            )
        # parameters that freezing may switch on and off again; others (LoRA's base) stay as they are
        self._trainable = {part: [p for p in self._parameters_of(part) if p.requires_grad] for part in self.frozen_for}
        for part, steps in self.frozen_for.items():
            if steps is True:
                _require(self._trainable[part], False)
        self._still_frozen: set[str] | None = None
        if not any(p.requires_grad for p in self.parameters()):
            raise UserError("freeze leaves nothing to train; let at least one part learn")

    @classmethod
    def from_pretrained(cls, source: Any, *args: Any, **kwargs: Any) -> BCPolicy:
        """A plain :class:`BCPolicy`; to train on, give the source to the constructor."""
        return BCPolicy.from_pretrained(source, *args, **kwargs)

    # ------------------------------------------------------------------ parts

    def _modules_of(self, part: str) -> list[nn.Module]:
        if part == "embeddings":
            return [self.tokens, self.action_embedding]
        return [getattr(self, part)]

    def _parameters_of(self, part: str) -> Iterator[nn.Parameter]:
        return (p for module in self._modules_of(part) for p in module.parameters())

    def _frozen(self, part: str) -> bool:
        steps = self.frozen_for.get(part, 0)
        return steps is True or (self._trainer is not None and self.global_step < steps)

    def train(self, mode: bool = True) -> FineTune:
        """Training mode; frozen parts stay in evaluation mode."""
        super().train(mode)
        for part in getattr(self, "frozen_for", {}):
            if self._frozen(part):
                for module in self._modules_of(part):
                    module.eval()
        return self

    def parameter_groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = []
        rest = {id(p): p for p in self.parameters() if p.requires_grad}
        for part, rate in self.learning_rate.items():
            own = [rest.pop(id(p)) for p in self._parameters_of(part) if id(p) in rest]
            if own:
                groups.append({"params": own, "lr": rate, "name": part})
        return [*groups, {"params": list(rest.values()), "name": "rest"}] if rest else groups

    # ------------------------------------------------------------------ training

    def setup(self, stage: str) -> None:
        """Embed the instruction, for training and evaluation alike."""
        for part, steps in self.frozen_for.items():
            if steps is not True:
                _require(self._trainable[part], True)  # the optimiser and DDP have to know what thaws later
        if self.instruction is None or self.text_encoder is None:
            return
        self._embedded = self.text_encoder([self.instruction])[0]
        if len(self._embedded) != self.input_spec.text_dim:
            raise UserError(
                f"the text encoder makes embeddings of {len(self._embedded)} values, but the policy takes "
                f"{self.input_spec.text_dim}; choose the encoder that the source was trained with"
            )

    def on_fit_start(self) -> None:
        """Say what was carried over and what of the data does not fit."""
        if self.trainer.is_global_zero:
            print(f"{self.init_from}: {self._carried}")
            print(comparison(self.input_spec, getattr(self.trainer, "datamodule", None)))

    def on_train_batch_start(self, batch: Batch, batch_index: int) -> None:
        frozen = {part for part in self.frozen_for if self._frozen(part)}
        if frozen == self._still_frozen:
            return
        self._still_frozen = frozen
        # On one device a frozen part needs no gradients at all. DDP settled at the start which parameters it averages,
        # so there the gradients are made and dropped.
        if isinstance(self.trainer.strategy, SingleDeviceStrategy):
            for part in self.frozen_for:
                _require(self._trainable[part], part not in frozen)
        self.train()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        for part in self.frozen_for:
            if self._frozen(part):
                for parameter in self._trainable[part]:
                    parameter.grad = None

    @property
    def training_settings(self) -> dict[str, Any]:
        return {
            "init_from": self.init_from,
            "revision": self.revision,
            "base_model": self.base_model,
            "instruction": self.instruction,
            "lora": dataclasses.asdict(self.lora) if self.lora else None,
            "freeze": self.frozen_for,
            "learning_rate": self.learning_rate,
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.lora_scale is not None:
            checkpoint[LORA_SCALE] = self.lora_scale

    def instructions(self, batch: Batch) -> Tensor | None:
        text = super().instructions(batch)
        if self._embedded is None:
            return text
        shape = (*batch["frames"].shape[:2], len(self._embedded))
        text = batch["frames"].new_zeros(shape, dtype=torch.float32) if text is None else text
        return where_untold(text, self._embedded)


def _by_part(given: Mapping[str, Any] | None, option: str) -> dict[str, Any]:
    """A setting per part, its names checked."""
    parts = get_args(Part)
    if unknown := sorted(set(given or {}) - set(parts)):
        raise UserError(f"{option} has the unknown parts {unknown}; a policy has {', '.join(parts)}")
    return dict(given or {})


def _require(parameters: Iterable[nn.Parameter], grad: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(grad)
