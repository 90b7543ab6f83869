"""What all families have in common: the steps of training, the optimiser, being rebuilt, saved and exported.

Place in the pipeline: a trainer hands batches to a :class:`Model`; the family says what its loss is. Policies, the
models that act, are :class:`bczoo.models.policy.Policy`. A family is a subclass with plain arguments and parts; it is
named by ``class_path`` in YAML, and that path and those arguments are what checkpoints and exported folders keep.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from bczoo.core.configs import load_model, without_imagenet
from bczoo.core.errors import UserError
from bczoo.core.parts import Configured, Family, class_path
from bczoo.core.spec import FIELDS, InputSpec
from bczoo.hub.build import check_rebuilds
from bczoo.hub.state import CLASS_PATH
from bczoo.train.loss import BCLoss, Loss

TRAINING_SETTINGS = "bczoo_training_settings"  # key of a checkpoint


def reference_optimizer(parameters: Iterable) -> Optimizer:
    """AdamW with the settings of paper 2601.04575 (its 1.2b takes a learning rate of 3e-5)."""
    return torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-4)


class Model(Family):
    """Base class of all families.

    A family defines ``__init__`` with plain arguments and parts (:class:`bczoo.Part`), which calls
    ``super().__init__(input_spec, ...)``, and :meth:`loss`.

    Args:
        input_spec: what the model needs its input to be.
        optimizer: makes the optimiser, given the parameters.
        lr_scheduler: makes the learning rate schedule, given the optimiser and the number of steps of the run, such as
            bczoo.WarmupCosine; None for a constant rate.

    Attributes:
        supervision: which steps of recordings are learned from: those with a person's action (``user``), those with
            any action, also a policy's own (``any``), or all (``none``), also in recordings without actions. The data
            module follows it, and so does :func:`bczoo.core.spec.loss_mask`.
        fields: what is read from recordings only if it is asked for; without ``frames`` no video is decoded.
        tokens_per_step: positions that a step takes in the sequence of the transformer, by which speed is told.
    """

    template = True
    supervision: ClassVar[str] = "user"
    fields: ClassVar[tuple[str, ...]] = FIELDS
    tokens_per_step: int = 1
    unsaved_arguments: ClassVar[tuple[str, ...]] = ("optimizer", "lr_scheduler")  # of the constructor

    def __init__(
        self,
        input_spec: InputSpec,
        optimizer: Callable[[Iterable], Optimizer] = reference_optimizer,
        lr_scheduler: Callable[[Optimizer, int], LRScheduler] | None = None,
    ) -> None:
        super().__init__()
        self.input_spec = input_spec
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler

    # ------------------------------------------------------------------ the family's part

    def loss(self, batch: Any) -> Loss | BCLoss:
        """What is minimised on a batch, and its parts for the log.

        Divide sums over steps by :meth:`mean_over_processes` of how many there are: processes average their gradients,
        and only so do they follow one process with all their batches.
        """
        raise NotImplementedError(f"{type(self).__name__} must define loss(batch)")

    @property
    def config(self) -> dict[str, Any]:
        """Plain JSON from which :meth:`from_config` rebuilds this model, without weights and optimiser.

        By default the arguments of the constructor, parts as ``{"class_path": ..., "init_args": ...}``.
        """
        kept = {k: v for k, v in self.init_args.items() if k not in self.unsaved_arguments}
        return {name: self._plain(name, value) for name, value in kept.items()}

    def parts(self) -> dict[str, list[nn.Module]]:
        """Modules by the names that fine-tuning freezes and rates them by, and that parameters are counted by."""
        return {name: [module] for name, module in self.named_children() if any(True for _ in module.parameters())}

    # ------------------------------------------------------------------ building and exporting

    def _plain(self, name: str, value: Any) -> Any:
        if callable(value) and not isinstance(value, Configured):  # a factory; what it made is kept under its name
            value = getattr(self, name, value)
        if isinstance(value, Configured):
            return value.spec
        if hasattr(value, "to_dict"):
            return value.to_dict()
        if isinstance(value, Mapping):
            return {k: self._plain(name, v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self._plain(name, v) for v in value]
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise UserError(
            f"{type(self).__name__} cannot be saved: its argument {name!r} is a {type(value).__name__}. Arguments are "
            f"plain values or parts (bczoo.Part); what a factory makes is kept as self.{name}"
        )

    @property
    def spec(self) -> dict[str, Any]:
        """``{"class_path": ..., "init_args": ...}``, as YAML would say it."""
        return {"class_path": class_path(type(self)), "init_args": without_imagenet(self.config)}

    def __getstate__(self) -> dict[str, Any]:
        """For another process: factories that YAML made cannot be sent there, what they made can."""
        return {**super().__getstate__(), "init_args": self.config}

    @classmethod
    def from_config(cls, config: str | Mapping[str, Any], pretrained: bool = True, **overrides: Any) -> Self:
        """An untrained model of a shipped size, a YAML file, or of what another one was built from.

        Args:
            config: ``"150m"``, a path to a YAML file with a ``model`` section, or :attr:`config` or :attr:`spec` of
                another model.
            pretrained: False leaves the image encoder random instead of loading ImageNet weights.
            **overrides: arguments of the constructor that replace the file's, e.g. ``window=20``; those of a part as
                a dict, ``encoder={"init_args": {"frozen": True}}``.

        Raises:
            ValueError: an unknown name or argument, or a model of another family.
        """
        return load_model(cls, config, pretrained, overrides)

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
    ) -> Self:
        """A trained model in evaluation mode, of this family; :func:`bczoo.from_pretrained` takes any.

        Args:
            source: ``org/name`` on the Hugging Face Hub, an exported folder, a run such as ``runs/quickstart``, or a
                ``.ckpt`` file.
            revision: branch, tag or commit on the Hub.
            token: access token of the Hub; the one that ``hf auth login`` stored if left out.
            device: where the weights go.
            dtype: brings the weights to this type (``torch.bfloat16``); as they were saved if left out.
            cache_dir: another download cache than huggingface_hub's.
            local_files_only: take it from the cache without a look at the network.

        Raises:
            ValueError: there is no such model, it is of another family, or it is broken; says what and where.
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
            folder: where to; an older model there is replaced.
            dtype: type of the saved weights; as they are if left out.
            license: of the weights, by its Hub name (``mit``), for the card.
            record: what is known of the training (the ``record.json`` of a run), for the card.
            shard_size: larger weights are spread over several files.
        """
        from bczoo.hub.card import model_card, rounded_record
        from bczoo.hub.folder import write_folder
        from bczoo.hub.state import plain_state

        record = rounded_record(self, record or {}, dtype)
        card = model_card(Path(folder).resolve().name, self, record, license, dtype)
        return write_folder(folder, self.spec, plain_state(self, dtype), card, record, shard_size)

    def push_to_hub(
        self,
        repository: str,
        revision: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        message: str | None = None,
        **options: Any,
    ) -> str:
        """Upload as ``org/name`` to the Hugging Face Hub; returns the commit's address.

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

    def parameter_counts(self) -> dict[str, int]:
        """Parameters in total and by part (:meth:`parts`)."""
        return {
            "total": count_parameters(self),
            **{part: sum(map(count_parameters, modules)) for part, modules in self.parts().items()},
        }

    # ------------------------------------------------------------------ training

    def setup(self, stage: str) -> None:
        """Refuse, before training, a model that could not be rebuilt from what is saved of it."""
        if stage == "fit":
            check_rebuilds(self)

    def blocks(self) -> list[nn.Module]:
        """The modules that repeat, by default the members of every ``nn.ModuleList`` that is named ``blocks``.

        They are what is compiled, and what is gathered one after the other where weights are sharded.
        """
        lists = [m for name, m in self.named_modules() if name.rpartition(".")[2] == "blocks"]
        return [block for blocks in lists if isinstance(blocks, nn.ModuleList) for block in blocks]

    def configure_model(self) -> None:
        """Spread the weights over the processes where the strategy says so (:class:`bczoo.Sharded`)."""
        if self._trainer is not None and isinstance(self.trainer.strategy, ModelParallelStrategy):
            from bczoo.train.sharded import shard

            shard(self, self.blocks(), self.trainer.strategy)

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        """The loss whose mean over processes is that of all their batches together; the mean is what is logged.

        With ``accumulate_grad_batches`` each batch of an optimiser step has the same weight, however many of its steps
        count: how many will count in the later ones is not known yet.
        """
        loss = self.loss(batch)
        means = self.mean_over_processes(torch.stack([loss.total, *loss.parts.values()]).detach())
        size = len(batch["recording"])
        for name, value in zip(["loss", *loss.parts], means, strict=True):
            self.log(f"train/{name}", value, prog_bar=name == "loss", batch_size=size)
        return loss.total

    def validation_step(self, batch: Any, batch_index: int) -> dict[str, Any]:
        return self.evaluate(batch, "val")

    def test_step(self, batch: Any, batch_index: int) -> dict[str, Any]:
        return self.evaluate(batch, "test")

    def evaluate(self, batch: Any, stage: str) -> dict[str, Any]:
        """Measure a batch of validation (``val``) or test; what is returned is for callbacks."""
        loss = self.loss(batch)
        size = len(batch["recording"])
        for name, value in {"loss": loss.total, **loss.parts}.items():
            self.log(f"{stage}/{name}", value, prog_bar=name == "loss", batch_size=size, sync_dist=True)
        return {}

    def mean_over_processes(self, values: Tensor) -> Tensor:
        """Mean over the processes of a training; every one of them has to call it. The host waits for no device."""
        if self._trainer is None or self.trainer.world_size == 1:
            return values
        gathered: Any = self.all_gather(values)
        return gathered.float().mean(dim=0)  # strategy.reduce would wait in a barrier first

    @property
    def training_settings(self) -> dict[str, Any]:
        """What of the training has to stay when a run is resumed, as plain JSON; see :class:`bczoo.FineTune`."""
        return {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # plain JSON, so that a checkpoint is read without executing anything; it brings its own weights, so rebuilding
        # from it must not download ImageNet's
        spec = self.spec
        checkpoint[CLASS_PATH], checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY] = spec["class_path"], spec["init_args"]
        checkpoint[TRAINING_SETTINGS] = self.training_settings

    def parameter_groups(self) -> list[Any]:
        """What the optimiser gets: parameters, or groups of them as torch's optimisers take them."""
        return [p for p in self.parameters() if p.requires_grad]

    def make_optimizer(self) -> Optimizer:
        """The optimiser of this model; Adam and AdamW in one pass over the weights (fused), unless told otherwise.

        Weights that are spread over processes keep torch's choice: not every sharding has the fused step.
        """
        optimizer = self.optimizer(self.parameter_groups())
        for group in optimizer.param_groups if isinstance(optimizer, torch.optim.Adam) else ():
            free = group["fused"] is None and group["foreach"] is None and not group["differentiable"]
            # in the group: Lightning clips no gradients in 16-mixed where the constructor was given fused=True
            group["fused"] = (free and not any(isinstance(p, DTensor) for p in group["params"])) or group["fused"]
        return optimizer

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer()
        if self.lr_scheduler is None:
            return optimizer
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            raise UserError("a learning rate schedule needs an end: set trainer.max_steps or trainer.max_epochs")
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.lr_scheduler(optimizer, int(steps)), "interval": "step"},
        }


def count_parameters(module: nn.Module) -> int:
    """Parameters of a module: without LoRA's matrices, with those that :meth:`bczoo.Policy.for_play` has packed."""
    packed = sum(getattr(m, "packed_parameters", 0) for m in module.modules())
    return packed + sum(p.numel() for name, p in module.named_parameters() if ".lora_" not in f".{name}")
