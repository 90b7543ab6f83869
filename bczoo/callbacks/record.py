"""What a run did and what came out of it, as plain JSON beside its checkpoints.

Place in the pipeline: a callback that every run of the command line has; :mod:`bczoo.record` says what it writes and
who reads it.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch

import bczoo
from bczoo.callbacks.play import PlayGame
from bczoo.configs import FOLDER
from bczoo.record import RUN_RECORD, play_entry, read_record


class RunRecord(L.Callback):
    """Keeps ``record.json`` in the run's folder: data, compute, metrics, returns in play."""

    def __init__(self) -> None:
        self._seconds_before = 0.0  # of the run that this one goes on with
        self._started: float | None = None
        self._validated_at = 0  # optimiser steps

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self._seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seconds_before = float(state_dict["seconds"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        seconds = self._seconds
        self._write(
            trainer,
            {
                "bczoo": bczoo.__version__,
                "command": _command(),
                "init_from": getattr(pl_module, "init_from", None),
                "data": _data(trainer),
                "training": {
                    "steps": trainer.global_step,
                    "epochs": trainer.current_epoch,
                    "seconds": round(seconds, 1),
                    "seed": int(os.environ.get("PL_GLOBAL_SEED", -1)),
                    "precision": str(trainer.precision),
                    "devices": trainer.world_size,
                    "device": _device(trainer),
                    "torch": torch.__version__,
                },
                "metrics": {"step": self._validated_at, **metrics} if (metrics := _metrics(trainer)) else {},
                "play": {},
            },
            whole=True,
        )

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        played = {c.env: c for c in trainer.callbacks if isinstance(c, PlayGame) and c.results}  # type: ignore[attr-defined]
        if played:
            results = {env: play_entry(c.results, c.seed, trainer.global_step) for env, c in played.items()}
            self._write(trainer, {"play": results})

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write(trainer, {"test_metrics": {"step": _step(trainer), **_metrics(trainer)}})

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validated_at = trainer.global_step
        if trainer.state.fn == "validate":
            self._write(trainer, {"metrics": {"step": _step(trainer), **_metrics(trainer)}})

    @property
    def _seconds(self) -> float:
        return self._seconds_before + (time.perf_counter() - self._started if self._started is not None else 0.0)

    def _write(self, trainer: L.Trainer, content: dict[str, Any], whole: bool = False) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        path = Path(trainer.default_root_dir) / RUN_RECORD
        if not whole:
            content = read_record(path) | content
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n")


def _command() -> str:
    """What was typed, with shipped configurations by their name."""
    words = [str(Path(w).relative_to(FOLDER).with_suffix("")) if _is_shipped(w) else w for w in sys.argv[1:]]
    return shlex.join([Path(sys.argv[0]).name, *words])


def _is_shipped(word: str) -> bool:
    return word.endswith(".yaml") and Path(word).is_relative_to(FOLDER)


def _metrics(trainer: L.Trainer) -> dict[str, float]:
    """What evaluation logged; NaN, such as a perplexity of nothing, is no JSON and left out."""
    values = {k: float(v) for k, v in sorted(trainer.callback_metrics.items()) if not k.startswith("train/")}
    return {k: round(v, 6) for k, v in values.items() if math.isfinite(v)}


def _step(trainer: L.Trainer) -> int:
    """Optimiser steps of the weights that are evaluated."""
    if not trainer.ckpt_path or not Path(trainer.ckpt_path).is_file():
        return trainer.global_step
    return int(torch.load(trainer.ckpt_path, map_location="cpu", weights_only=True, mmap=True)["global_step"])


def _device(trainer: L.Trainer) -> str:
    device = trainer.strategy.root_device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads, {platform.machine()}"


def _data(trainer: L.Trainer) -> dict[str, Any]:
    """Recordings that were trained on: how many, how long, of which games."""
    data = getattr(trainer, "datamodule", None)
    describe = getattr(data, "describe", None)
    return describe() if describe is not None else {}
