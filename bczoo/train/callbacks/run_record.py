"""What a run did and what came out of it, as plain JSON beside its checkpoints.

Place in the pipeline: a callback that every run of the command line has; :mod:`bczoo.train.run_record` says what it
writes and who reads it.
"""

from __future__ import annotations

import math
import os
import platform
import shlex
import sys
import time
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch

import bczoo
from bczoo.core.configs import FOLDER, IMPORT
from bczoo.core.files import write_json
from bczoo.train.callbacks.play import PlayGame
from bczoo.train.run_record import RUN_RECORD, play_entry, read_record


class RunRecord(L.Callback):
    """Keeps ``record.json`` in the run's folder: data, compute, metrics, returns in play."""

    def __init__(self) -> None:
        self._run = uuid.uuid4().hex  # the same in the record and in the checkpoints of a run
        self._seconds_before = 0.0  # of the run that this one goes on with
        self._started: float | None = None
        self._measured: dict[str, float] = {}  # by the last validation
        self._due = False  # a validation follows on the last step

    def state_dict(self) -> dict[str, Any]:
        return {"run": self._run, "seconds": self._seconds, "measured": self._measured, "validation_due": self._due}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["run"] != self._run or _later(state_dict["measured"], self._measured):
            self._measured = state_dict["measured"]  # else it was validated again since
        self._run, self._due = state_dict["run"], state_dict.get("validation_due", False)
        self._seconds_before = float(state_dict["seconds"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        # Lightning's own word: a checkpoint that is written now may be all that is left of a run
        loop = trainer.fit_loop
        self._due = loop.epoch_loop._should_check_val_fx(loop._data_fetcher)  # type: ignore[arg-type]

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._seconds_before, self._started = self._seconds, None
        try:
            self._write(trainer, self._content(trainer, pl_module), whole=True)
        except OSError as error:  # the checkpoint is still to be written, and the record once more
            warnings.warn(f"the record of the run could not be written: {error}", stacklevel=2)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write what was played too, and all of it once more: training may have been over when this run began."""
        played = [c for c in trainer.callbacks if isinstance(c, PlayGame) and c.results]  # type: ignore[attr-defined]
        results = {c.env: play_entry(c.results, c.seed, trainer.global_step) for c in played}
        self._write(trainer, self._content(trainer, pl_module) | {"play": results}, whole=True)

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

    def owes_validation(self, trainer: L.Trainer, checkpoint: Mapping[str, Any]) -> bool:
        """Whether the validation at the end of a training was interrupted, or never begun.

        Args:
            trainer: the trainer that is to go on from the checkpoint.
            checkpoint: what is in the checkpoint.
        """
        state, step = checkpoint.get("callbacks", {}).get(self.state_key, {}), checkpoint["global_step"]
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        by_steps = trainer.max_steps != -1 and step >= trainer.max_steps
        last_epoch = trainer.max_epochs not in (None, -1) and checkpoint["epoch"] + 1 >= trainer.max_epochs
        if not state.get("validation_due") or not (by_steps or (last_epoch and progress["is_last_batch"])):
            return False
        known = read_record(Path(trainer.default_root_dir) / RUN_RECORD)
        return known.get("run") != state["run"] or known.get("metrics", {}).get("step") != step

    def _content(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        known = read_record(Path(trainer.default_root_dir) / RUN_RECORD)
        if known.get("run") == self._run and _later(known.get("metrics", {}), self._measured):
            self._measured = known["metrics"]
        return {
            "bczoo": bczoo.__version__,
            "command": _command(),
            **getattr(pl_module, "training_settings", {}),
            "data": _data(trainer),
            "training": {
                "steps": trainer.global_step,
                "epochs": trainer.current_epoch,
                "seconds": round(self._seconds, 1),
                "seed": int(os.environ.get("PL_GLOBAL_SEED", -1)),
                "precision": str(trainer.precision),
                "devices": trainer.world_size,
                "device": _device(trainer),
                "torch": torch.__version__,
            },
            **({"metrics": self._measured} if self._measured else {}),
            "play": {},
        }

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
        write_json(path, content | {"run": self._run}, default=str)


def _later(measured: Mapping[str, float], than: Mapping[str, float]) -> bool:
    return measured.get("step", -1) > than.get("step", -1)


def _command() -> str:
    """What was typed, with shipped configurations by their name."""
    own = [word for name in os.environ.get(IMPORT, "").split(",") if name for word in ("--import", name)]
    return shlex.join(["bczoo", *(_with_name(word) for word in sys.argv[1:]), *own])


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
