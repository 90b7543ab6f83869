"""The learning rate among the metrics of a run.

Place in the pipeline: a callback that every ``bczoo fit`` has; what it logs is in ``metrics.csv`` and in every other
logger beside the training loss. Lightning's LearningRateMonitor writes rows of its own, under names that depend on the
class of the optimiser.
"""

from __future__ import annotations

from typing import Any

import lightning as L


class LogLearningRate(L.Callback):
    """Logs ``lr``, the rate that a step is taken with; with several groups of parameters ``lr/<group>`` each."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer._logger_connector.should_update_logs:
            pl_module.log_dict(learning_rates(trainer), on_step=True, on_epoch=False)


def learning_rates(trainer: L.Trainer) -> dict[str, float]:
    """The current rates by name; a group of parameters is called by its ``name``, or by its number."""
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    if len(groups) == 1:
        return {"lr": float(groups[0]["lr"])}
    names = [str(group.get("name", number)) for number, group in enumerate(groups)]
    if len(set(names)) < len(names):
        names = [f"{number}" for number in range(len(groups))]
    return {f"lr/{name}": float(group["lr"]) for name, group in zip(names, groups, strict=True)}


def is_learning_rate(name: str) -> bool:
    """Whether a metric was logged here."""
    return name == "lr" or name.startswith("lr/")
