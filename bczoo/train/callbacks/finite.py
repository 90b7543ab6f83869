"""Training stops where numbers stop being numbers.

Place in the pipeline: a callback that every ``bczoo fit`` has. From the first NaN on, all that is trained is lost, and
a checkpoint of it would take the place of the last good one. So the loss and the norm of the gradients are looked at
in every step, and the weights before a checkpoint is written.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from bczoo.core.errors import UserError
from bczoo.hub.finite import not_finite
from bczoo.hub.names import some
from bczoo.train.callbacks.agreed import Agreed

WHAT_TO_DO = (
    "If the recordings are sound (bczoo data check), training is unstable: set --trainer.gradient_clip_val 1, or start "
    "anew with a lower learning rate (--ckpt_path null; a resumed run keeps the rate that it had)"
)


class NonFiniteError(UserError):
    """Loss, gradient or weights are NaN or infinite."""


class _Seen(NamedTuple):
    """What is needed to say what went wrong in a batch."""

    step: int
    loss: Tensor
    norm: Tensor | None
    batches: list[dict[str, Tensor]]  # of this step up to now


class FiniteCheck(L.Callback):
    """Stops training at the first loss or gradient that is not finite, in all processes at once.

    A gradient that a gradient scaler (``16-mixed``) finds infinite is no failure: the scaler leaves that step out and
    scales less. On a GPU the failure is raised a step late, so that no step waits for the device; before a checkpoint
    it is waited for. Costs one pass over the gradients in a step and one over the weights in a save.

    Raises:
        NonFiniteError: says at which step, with which recordings in the batch, and what to do.
    """

    def __init__(self) -> None:
        self._failed = Agreed()
        self._norm: Tensor | None = None
        self._batches: list[dict[str, Tensor]] = []
        self._step = -1  # of the batches

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._failed.clear()
        self._norm, self._batches, self._step = None, [], -1

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, *_: Any) -> None:
        if trainer.global_step != self._step:
            self._step, self._batches = trainer.global_step, []
        self._batches.append(_kept(batch))
        self._norm = None

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        if trainer.scaler is None:
            gradients = [p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
            self._norm = norm.full_tensor() if isinstance(norm, DTensor) else norm

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if not isinstance(loss, Tensor):
            loss = torch.zeros((), device=pl_module.device)  # the step was left out
        failed = ~loss.isfinite()
        if self._norm is not None:
            failed = failed | ~self._norm.to(failed.device).isfinite()
        self._failed.ask(trainer, failed, _Seen(self._step, loss, self._norm, list(self._batches)))
        self._raise_if_failed(trainer, all=False)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Raise rather than have a checkpoint written that is worth nothing."""
        self._raise_if_failed(trainer, all=True)
        state = checkpoint.get("state_dict", {})
        names = not_finite({k: t.to_local() if isinstance(t, DTensor) else t for k, t in state.items()})
        if not trainer.strategy.reduce_boolean_decision(not names):
            which = f": {some(names)}" if names else " on another process"
            raise NonFiniteError(
                f"the weights of step {trainer.global_step} are not finite{which}; they are not saved. {WHAT_TO_DO}"
            )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._raise_if_failed(trainer, all=True)

    def _raise_if_failed(self, trainer: L.Trainer, all: bool) -> None:
        if not (failures := self._failed.answers(all)):
            return
        first: _Seen = failures[0]
        loss = None if bool(first.loss.isfinite()) else f"the loss is {float(first.loss)}"
        reports: list[Any] = [(loss, *_recordings(trainer, first.batches))]
        if trainer.world_size > 1:
            reports = reports * trainer.world_size
            torch.distributed.all_gather_object(reports, reports[0])
        # gradients are exchanged, so a bad loss of one process spoils those of all; it is the one to look at
        failed = [t for t in reports if t[0]] or reports
        found = failed[0][0] or "the norm of the gradients is not finite"
        guilty, present = (sorted({name for t in failed for name in t[i]}) for i in (1, 2))
        if guilty:
            what = f"because the input is not finite in {some(guilty)}; mend or remove them"
        else:
            what = f"with these recordings in the batch: {some(present)}. {WHAT_TO_DO}"
        raise NonFiniteError(f"training stopped in step {first.step + 1}: {found}, {what}")


def _kept(batch: Any) -> dict[str, Tensor]:
    """What to keep of a batch to find the culprit: its numbers, not its frames or their features."""
    if not isinstance(batch, dict):
        return {}
    tensors = {k: v for k, v in batch.items() if isinstance(v, Tensor) and k not in ("frames", "features")}
    return {k: v for k, v in tensors.items() if k == "recording" or v.is_floating_point()}


def _recordings(trainer: L.Trainer, batches: list[dict[str, Tensor]]) -> tuple[list[str], list[str]]:
    """Names of recordings whose input is not finite, and of all recordings, in some batches."""
    indexes = getattr(getattr(trainer, "datamodule", None), "indexes", [])
    guilty, present = [], []
    for batch in batches:
        if "recording" not in batch:
            continue
        numbers = batch["recording"].tolist()
        sound = torch.ones(len(numbers), dtype=torch.bool, device=batch["recording"].device)
        for name, values in batch.items():
            if name != "recording" and len(values) == len(numbers):
                sound &= values.reshape(len(numbers), -1).isfinite().all(dim=1)
        for number, good in zip(numbers, sound.tolist(), strict=True):
            name = str(indexes[0].names[number]) if indexes else f"number {number}"  # the first is of training
            present.append(name)
            if not good:
                guilty.append(name)
    return guilty, present
