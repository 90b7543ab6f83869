"""Metrics of the user's own, in validation and test.

Place in the pipeline: a callback in any YAML; feeds torchmetrics with the logits that the policy's own validation step
has computed, and logs their values over the epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
from torchmetrics import Metric

from bczoo.core.errors import UserError
from bczoo.core.spec import loss_mask, targets


class LogMetrics(L.Callback):
    """Logs ``val/<name>`` and ``test/<name>``, reduced over ranks and the epoch.

    Args:
        metrics: by name a torchmetrics Metric whose ``update`` takes logits per group (B, T, n, V), recorded ids per
            group (B, T, n) and the mask (B, T) of the steps that count. One that computes a dict logs each of its
            entries as ``<name>/<entry>``.
    """

    def __init__(self, metrics: dict[str, Metric]) -> None:
        if not metrics:
            raise UserError("metrics is empty; give at least one by its name")
        self.metrics = {part: {name: metric.clone() for name, metric in metrics.items()} for part in ("val", "test")}

    def _update(self, pl_module: Any, outputs: Any, batch: Any, part: str) -> None:
        if not isinstance(outputs, Mapping) or "logits" not in outputs:
            raise UserError(f"{type(pl_module).__name__} gives no logits in validation, which LogMetrics measures")
        mask = loss_mask(batch, getattr(pl_module, "supervision", "user"))
        for metric in self.metrics[part].values():
            metric.update(outputs["logits"], targets(batch), mask)

    def _start(self, pl_module: Any, part: str) -> None:
        for metric in self.metrics[part].values():  # also where no batch comes: computing reduces over ranks
            metric.to(pl_module.device)

    def _log(self, pl_module: Any, part: str) -> None:
        for name, metric in self.metrics[part].items():
            value = metric.compute()
            values = {f"/{entry}": v for entry, v in value.items()} if isinstance(value, Mapping) else {"": value}
            pl_module.log_dict({f"{part}/{name}{entry}": v for entry, v in values.items()}, sync_dist=True)
            metric.reset()

    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._start(pl_module, "val")

    def on_test_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._start(pl_module, "test")

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._update(pl_module, outputs, batch, "val")

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._log(pl_module, "val")

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._update(pl_module, outputs, batch, "test")

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._log(pl_module, "test")
