"""The best weights of a run by validation, and how they are told from those of another run.

Place in the pipeline: :class:`bczoo.ResumableCheckpoint` keeps ``best.ckpt`` beside ``last.ckpt`` through here; a run
that is named as a policy means the best one (:func:`bczoo.hub.source.locate`). It holds weights and what is known of
them, not the state of the optimiser: a training is resumed from ``last.ckpt`` alone. Both hold the same mark of their
run, so that a process that is killed at any moment leaves no best checkpoint that would pass for that of another run.

    <run>/checkpoints/best.ckpt       lowest val/loss so far
    <run>/checkpoints/validated       mark of the run and step of the last validation that was taken into account
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bczoo.core import arguments
from bczoo.core.errors import UserError
from bczoo.hub.state import KEEPER_STATE, is_checkpoint, kept_by

VALIDATED = "validated"
MODES = ("min", "max")
OF_TRAINING = ("optimizer_states", "lr_schedulers")  # keys of a checkpoint that the best one does not need


@dataclass(frozen=True)
class Best:
    """A validation that was the best so far.

    Args:
        monitor: the metric that decides.
        mode: min or max.
        value: of the metric.
        step: optimiser steps of the weights.
    """

    monitor: str
    mode: str
    value: float
    step: int

    def beaten_by(self, value: float) -> bool:
        return value < self.value if self.mode == "min" else value > self.value

    def __str__(self) -> str:
        return f"step {self.step}, {self.monitor} {self.value:.4f}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, state: Any) -> Best | None:
        """From what a checkpoint keeps of it; None if it keeps nothing that makes sense."""
        if not isinstance(state, Mapping):
            return None
        monitor, mode, value, step = (state.get(name) for name in ("monitor", "mode", "value", "step"))
        if isinstance(monitor, str) and mode in MODES and isinstance(value, float) and isinstance(step, int):
            return cls(monitor, str(mode), value, step)
        return None


def check_monitor(monitor: str | None, mode: str) -> None:
    """Raise for a choice that is none."""
    arguments.one_of("mode", mode, MODES)
    if monitor is not None and not monitor.startswith("val/"):
        raise UserError(f"monitor is a metric of the validation such as val/loss, or null for none, got {monitor!r}")


def challenger(best: Best | None, metrics: Mapping[str, Any], monitor: str, mode: str, step: int) -> Best | None:
    """The validation that has just been, if it is better than the best so far.

    Args:
        best: so far; one by another monitor does not count.
        metrics: what was logged.
        monitor: the metric that decides.
        mode: min or max.
        step: optimiser steps of the weights.
    """
    value = float(metrics[monitor])
    if math.isnan(value):
        return None
    if best is not None and (best.monitor, best.mode) == (monitor, mode) and not best.beaten_by(value):
        return None
    return Best(monitor, mode, value, step)


def best_in(path: Path, run: str) -> Best | None:
    """What the best checkpoint of a run is the best of; None if there is none of this run.

    Args:
        path: of ``best.ckpt``.
        run: mark of the run.
    """
    state = kept_by(path, KEEPER_STATE) if is_checkpoint(path) else {}
    return Best.of(state.get("best")) if state.get("run") == run else None
