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
import uuid
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
        self._run = uuid.uuid4().hex  # the same in the record and in the checkpoints of a run
        self._seconds_before = 0.0  # of the run that this one goes on with
        self._started: float | None = None
        self._measured: dict[str, float] = {}  # by the last validation

    def state_dict(self) -> dict[str, Any]:
        return {"run": self._run, "seconds": self._seconds, "measured": self._measured}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._run, self._measured = state_dict["run"], state_dict["measured"]
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
                **getattr(pl_module, "training_settings", {}),
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
                **({"metrics": self._measured} if self._measured else {}),
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
        if metrics := _metrics(trainer):
            self._write(trainer, {"test_metrics": {"step": _step(trainer), **metrics}})

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        metrics = _metrics(trainer)
        if trainer.sanity_checking or not metrics:
            return
        self._measured = {"step": _step(trainer), **metrics}
        if trainer.state.fn == "validate":
            self._write(trainer, {"metrics": self._measured})

    @property
    def _seconds(self) -> float:
        return self._seconds_before + (time.perf_counter() - self._started if self._started is not None else 0.0)

    def _write(self, trainer: L.Trainer, content: dict[str, Any], whole: bool = False) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        path = Path(trainer.default_root_dir) / RUN_RECORD
        if not whole:
            known = read_record(path)
            if known and known.get("run") != self._run:
                return  # these numbers are of the weights of another run than the record that lies there
            content = known | content
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".tmp")
        fresh.write_text(json.dumps(content | {"run": self._run}, indent=2, default=str) + "\n")
        fresh.replace(path)


def _command() -> str:
    """What was typed, with shipped configurations by their name."""
    return shlex.join(["bczoo", *(_with_name(word) for word in sys.argv[1:])])


def _with_name(word: str) -> str:
    option, equals, value = word.rpartition("=")
    if value.endswith(".yaml") and Path(value).is_relative_to(FOLDER):
        return f"{option}{equals}{Path(value).relative_to(FOLDER).with_suffix('').as_posix()}"
    return word


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
