"""Whether a policy sees what it must not, before the first step of a training.

Place in the pipeline: a callback in any YAML; hands the first batch to :func:`bczoo.causality.leaks.check_mask`, which
probes the policy on its device, in its precision and at its window, before anything is learned from it.
"""

from __future__ import annotations

from typing import Any

import lightning as L

from bczoo.causality.leaks import check_mask
from bczoo.core.errors import UserError


class AttentionMaskCheck(L.Callback):
    """Stops the training if a policy sees what it must not; the error says what.

    Of a BCPolicy every layer's mask is read off its attention, and the error names layer, query and key. Of every
    family the logits are looked at: none may depend on a later frame, nor on the action that it is to predict. Costs
    one forward per layer's mask and some of a short window, once, before the first training step.

    Args:
        every_n_validations: look again at the first batch of every n-th validation; null for the start alone.
    """

    def __init__(self, every_n_validations: int | None = None) -> None:
        if every_n_validations is not None and every_n_validations < 1:
            raise UserError(f"every_n_validations is a number from 1 on, or null for never, got {every_n_validations}")
        self.every_n_validations = every_n_validations
        self._started = False
        self._validations = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._started, self._validations = False, 0

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if not self._started:
            self._check(trainer, pl_module, batch)
            self._started = True

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self.every_n_validations is None or trainer.sanity_checking or batch_idx or dataloader_idx:
            return
        self._validations += 1
        if self._validations % self.every_n_validations == 0:
            self._check(trainer, pl_module, batch)

    def _check(self, trainer: L.Trainer, pl_module: Any, batch: Any) -> None:
        with trainer.precision_plugin.forward_context():
            check_mask(pl_module, batch)
