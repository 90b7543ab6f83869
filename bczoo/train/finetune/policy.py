"""A policy that starts from a trained one: the model class of ``configs/finetune.yaml``.

Place in the pipeline: ``bczoo fit --config finetune --model.init_from org/bc-150m --data.root my_game``. Family,
architecture and preprocessing come from the source, so nothing of them is repeated in the YAML; what the YAML chooses
is what is trained and how. What comes out is a plain policy of the source's family.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from bczoo.core.actions import ActionSpace
from bczoo.core.configs import merge
from bczoo.core.errors import UserError
from bczoo.core.parts import class_path, written_class
from bczoo.core.spec import Batch
from bczoo.hub.source import locate
from bczoo.hub.state import LORA_SCALE
from bczoo.models.model import reference_optimizer
from bczoo.models.policy import Policy
from bczoo.nn.text import TextEncoder, where_untold
from bczoo.train.finetune.compare import comparison
from bczoo.train.finetune.lora import LoRA, add_lora
from bczoo.train.finetune.transfer import carry_over


class _OfItsSource(Policy):
    """Makes an object of the source's family. Apart from FineTune, because jsonargparse takes the options of a class
    with a ``__new__`` of its own from there, and they are those of its ``__init__``."""

    template = True

    def __new__(cls, init_from: str = "", revision: str | None = None, *args: Any, **kwargs: Any) -> Any:
        if not init_from:
            raise UserError(
                "which policy to start from? --model.init_from org/name, an exported folder, a run or a .ckpt"
            )
        found = locate(init_from, revision)
        if not issubclass(found.family, Policy):
            raise UserError(f"{init_from} holds a {class_path(found.family)}, and only policies are fine-tuned")
        self = super().__new__(_of_family(found.family))
        object.__setattr__(self, "_found", found)
        return self


class FineTune(_OfItsSource):
    """A trained policy that learns on: an instance of its own family, with what fine-tuning adds.

    Args:
        init_from: ``org/name`` on the Hugging Face Hub, an exported folder, a run, or a .ckpt file.
        revision: branch, tag or commit on the Hub.
        action_space: another action space, by name or as data; what both know is carried over by name. null keeps
            the source's.
        instruction: what to do, in words, at steps that carry no instruction; null for none.
        text_dim: gives text to a policy that has none; null keeps what the source has.
        text_encoder: embeds the instruction; null keeps the source's.
        window: steps of a training window and of the memory in play; null keeps the source's.
        freeze: per part for how many steps it stays as it is; true for ever. A BCPolicy has the parts encoder,
            transformer, decoder and embeddings, a CNNPolicy encoder, transformer and heads. A frozen part is in
            evaluation mode, its BatchNorm statistics do not move.
        learning_rate: per part its own learning rate; the optimiser's elsewhere.
        lora: train the transformer, of a family that has one, through low-rank matrices, which are merged on export;
            null trains it whole.
        optimizer: makes the optimiser, given the parameters.
        lr_scheduler: makes the learning rate schedule, given the optimiser and the number of steps of the run.
    """

    template = True

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
        optimizer: Callable[[Iterable], Optimizer] = reference_optimizer,
        lr_scheduler: Callable[[Optimizer, int], LRScheduler] | None = None,
    ) -> None:
        found: Any = self._found
        source, weights = found.blueprint(), found.float_weights()  # of a Source
        family = family_of(type(source)).__name__
        config = _changed(source, action_space, text_dim, text_encoder, window)
        super().__init__(**config)
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        object.__setattr__(self, "init_args", config)  # of the family, which is what is saved
        self.init_from, self.revision, self.base_model = init_from, revision, found.repository
        object.__delattr__(self, "_found")  # it holds the source's weights
        carried = carry_over(weights, source, self.state_dict(), self)
        self.load_state_dict(carried.state)
        self._carried = str(carried)
        self._chosen = found.chosen
        self.frozen_for = {k: v for k, v in self._by_part(freeze, "freeze").items() if v is not False and v != 0}
        self.learning_rate = self._by_part(learning_rate, "learning_rate")
        self.lora = lora
        self.lora_scale = lora.scale if lora else None
        if lora is not None:
            if self.frozen_for.pop("transformer", None) is not None:
                raise UserError("freeze names the transformer, but LoRA keeps its weights as they are anyway")
            transformer = getattr(self, "transformer", None)
            if not isinstance(transformer, nn.Module):
                raise UserError(
                    f"LoRA is for families with a transformer, and the {family} in {init_from} has none; leave lora out"
                )
            self.lora = add_lora(transformer, lora)
        self.instruction = instruction
        self._embedded: Tensor | None = None  # (E,)
        if instruction is not None and self.why_no_text:
            settable = "text_encoder" in config and "text_dim" in config
            advice = "set text_dim and text_encoder, or leave" if settable else f"a {family} never does; leave"
            raise UserError(
                f"{init_from} takes no text or has no text encoder, so it cannot learn under the instruction "
                f"{instruction!r}; {advice} the instruction out"
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
    def from_pretrained(cls, source: Any, *args: Any, **kwargs: Any) -> Any:
        """The plain policy; to train on, give the source to the constructor."""
        return Policy.from_pretrained(source, *args, **kwargs)

    @property
    def spec(self) -> dict[str, Any]:
        return {**super().spec, "class_path": class_path(family_of(type(self)))}

    def __reduce_ex__(self, protocol: Any) -> Any:
        """For another process: the class was made here, for the source's family."""
        return _restore, (family_of(type(self)),), self.__getstate__()

    # ------------------------------------------------------------------ parts

    def _by_part(self, given: Mapping[str, Any] | None, option: str) -> dict[str, Any]:
        """A setting per part, its names checked."""
        if unknown := sorted(set(given or {}) - set(self.parts())):
            raise UserError(f"{option} has the unknown parts {unknown}; this policy has {', '.join(self.parts())}")
        return dict(given or {})

    def _modules_of(self, part: str) -> list[nn.Module]:
        return self.parts()[part]

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
        """The family's own groups, cut into parts with a rate of their own and the rest."""
        part_of = {id(p): part for part in self.learning_rate for p in self._parameters_of(part)}
        own = super().parameter_groups()
        out: list[dict[str, Any]] = []
        for part in [*self.learning_rate, None]:
            for group in own if own and isinstance(own[0], dict) else [{"params": own}]:
                if some := [p for p in group["params"] if part_of.get(id(p)) == part]:
                    rate = {} if part is None else {"lr": self.learning_rate[part]}
                    name = ".".join(str(word) for word in (part or "rest", group.get("name")) if word)
                    out.append({**group, **rate, "params": some, "name": name})
        return out

    # ------------------------------------------------------------------ training

    def setup(self, stage: str) -> None:
        """Embed the instruction, for training and evaluation alike."""
        super().setup(stage)
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
        super().on_fit_start()
        if self.trainer.is_global_zero:
            if self._chosen:
                print(self._chosen)
            print(f"{self.init_from}: {self._carried}")
            print(comparison(self.input_spec, getattr(self.trainer, "datamodule", None)))

    def on_train_batch_start(self, batch: Batch, batch_index: int) -> Any:
        frozen = {part for part in self.frozen_for if self._frozen(part)}
        if frozen != self._still_frozen:
            self._still_frozen = frozen
            # On one device a frozen part needs no gradients at all. DDP settled at the start which parameters it
            # averages, so there the gradients are made and dropped.
            if isinstance(self.trainer.strategy, SingleDeviceStrategy):
                for part in self.frozen_for:
                    _require(self._trainable[part], part not in frozen)
            self.train()
        return super().on_train_batch_start(batch, batch_index)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
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
        shape = (*batch["valid"].shape, len(self._embedded))
        text = batch["valid"].new_zeros(shape, dtype=torch.float32) if text is None else text
        return where_untold(text, self._embedded)


def _changed(
    source: Policy,
    action_space: str | dict[str, Any] | None,
    text_dim: int | None,
    text_encoder: TextEncoder | None,
    window: int | None,
) -> dict[str, Any]:
    """The source's arguments with what is to be different."""
    given: dict[str, Any] = {"text_dim": text_dim, "window": window, "text_encoder": text_encoder}
    given["action_space"] = None if action_space is None else ActionSpace.of(action_space).to_dict()
    changes = {name: value for name, value in given.items() if value is not None}
    config = source.spec["init_args"]
    if lacking := sorted(changes.keys() - config.keys()):
        raise UserError(f"a {family_of(type(source)).__name__} has no {', '.join(lacking)} to change; leave it out")
    encoder = config.get("encoder")
    if isinstance(encoder, Mapping) and "frozen" in encoder.get("init_args", {}):
        config = merge(config, {"encoder": {"init_args": {"frozen": False}}})  # freeze says what is frozen here
    return {**config, **changes}


_classes: dict[Any, type[FineTune]] = {}  # by family


def _of_family(family: Any) -> type[FineTune]:
    """The class of fine-tuned policies of a family."""
    if family not in _classes:
        _classes[family] = type(
            "FineTune", (FineTune, family), {"__module__": __name__, "__doc__": FineTune.__doc__, "template": True}
        )
    return _classes[family]


def family_of(cls: type) -> type[Policy]:
    """The family itself, where fine-tuning has derived a class from it."""
    cls = written_class(cls)
    return cls.__bases__[1] if cls.__bases__[0] is FineTune else cls


def _restore(family: type[Policy]) -> FineTune:
    return object.__new__(_of_family(family))


def _require(parameters: Iterable[nn.Parameter], grad: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(grad)
