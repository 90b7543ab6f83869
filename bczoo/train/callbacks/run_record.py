"""What a run did and what came out of it, as plain JSON beside its checkpoints.

Place in the pipeline: a callback that every run of the command line has; :mod:`bczoo.train.run_record` says what it
writes and who reads it.
"""

from __future__ import annotations

import math
import os
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
from bczoo.core.devices import device_name
from bczoo.core.files import set_aside, write_json
from bczoo.hub.state import RUN_STATE, is_checkpoint, kept_by, without_weights
from bczoo.train.callbacks.checkpoint import ResumableCheckpoint
from bczoo.train.callbacks.final_validation import validation_due
from bczoo.train.callbacks.learning_rate import is_learning_rate
from bczoo.train.callbacks.play import PlayGame
from bczoo.train.run_record import MEASURED, RUN_RECORD, play_entry, read_record


class RunRecord(L.Callback):
    """Keeps ``record.json`` in the run's folder: data, compute, metrics, returns in play."""

    def __init__(self) -> None:
        self._run = uuid.uuid4().hex  # the same in the record and in the checkpoints of a run
        self._seconds_before = 0.0  # of the run that this one goes on with
        self._started: float | None = None
        self._measured: dict[str, float] = {}  # by the last validation
        self._due = False  # a validation follows on the last step
        self._precision = ""  # that the run is trained in
        self.settings: dict[str, Any] = {}  # that a resumed run has to have too (bczoo.cli.resume), plain JSON

    @property
    def measured(self) -> dict[str, float]:
        """Metrics of the last validation, and the step that it was made at."""
        return self._measured

    def state_dict(self) -> dict[str, Any]:
        return {
            "run": self._run,
            "seconds": self._seconds,
            "measured": self._measured,
            "validation_due": self._due,
            "settings": self.settings,
            "precision": self._precision,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["run"] != self._run or _later(state_dict["measured"], self._measured):
            self._measured = state_dict["measured"]  # else it was validated again since
        self._run, self._due = state_dict["run"], state_dict.get("validation_due", False)
        self._seconds_before = float(state_dict["seconds"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started, self._precision = time.perf_counter(), str(trainer.precision)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._due = validation_due(trainer)  # a checkpoint that is written now may be all that is left of a run

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._seconds_before, self._started = self._seconds, None
        try:
            self._write(trainer, self._content(trainer, pl_module), whole=True)
        except OSError as error:  # the checkpoint is still to be written, and the record once more
            warnings.warn(f"the record of the run could not be written: {error}", stacklevel=2)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write what was played too, and all of it once more: training may have been over when this run began."""
        played = [c for c in trainer.callbacks if isinstance(c, PlayGame) and c.results]  # type: ignore[attr-defined]
        content = self._content(trainer, pl_module)
        entries = {c.env: play_entry(c.results, c.seed, c.step, c.settings) for c in played}
        self._write(trainer, content | {"play": content["play"] | entries}, whole=True)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if metrics := _metrics(trainer):
            measured = {"step": _step(trainer), **metrics}
            before = read_record(_path(trainer)).get("test_metrics", measured)
            if before["step"] != measured["step"]:
                print(f"test metrics of step {measured['step']} replace those of step {before['step']} in the record")
            self._write(trainer, {"test_metrics": measured})

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        metrics = _metrics(trainer)
        if trainer.sanity_checking or not metrics:
            return
        measured = {"step": _step(trainer), **metrics}
        if trainer.state.fn != "validate":
            self._measured = measured
            return
        known = read_record(_path(trainer))
        best = known.get("best", {})
        if best and best["metrics"]["step"] == measured["step"] != known.get("metrics", {}).get("step"):
            self._write(trainer, {"best": {**best, "metrics": measured}})
        else:
            self._measured = measured
            self._write(trainer, {"metrics": measured})

    def owes_validation(self, trainer: L.Trainer, checkpoint: Mapping[str, Any]) -> bool:
        """Whether a validation that belongs behind the step of a checkpoint was interrupted, or never begun.

        Lightning goes on with the step after it.

        Args:
            trainer: the trainer that is to go on from the checkpoint.
            checkpoint: what is in the checkpoint.
        """
        state, step = checkpoint.get("callbacks", {}).get(self.state_key, {}), checkpoint["global_step"]
        if not state.get("validation_due"):
            return False
        keepers = [c for c in trainer.checkpoint_callbacks if isinstance(c, ResumableCheckpoint)]
        if any(keeper.has_validated(checkpoint) for keeper in keepers):
            return False
        known = read_record(_path(trainer))
        return known.get("run") != state["run"] or known.get("metrics", {}).get("step") != step

    def _content(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        known = read_record(_path(trainer))
        known = known if known.get("run") == self._run else {}
        if _later(known.get("metrics", {}), self._measured):
            self._measured = known["metrics"]
        best = self._best(trainer)
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
            **({"best": best} if best else {}),
            "play": {},
            **{what: known[what] for what in MEASURED if what in known},
        }

    def _best(self, trainer: L.Trainer) -> dict[str, Any]:
        """What the run's best checkpoint is, with the metrics that it was chosen by."""
        for keeper in trainer.checkpoint_callbacks:
            if isinstance(keeper, ResumableCheckpoint) and keeper.best is not None:
                measured = kept_by(keeper.best_path, RUN_STATE).get("measured", {})
                if measured.get("step") == keeper.best.step:
                    return {**keeper.best.to_dict(), "metrics": measured}
        return {}

    @property
    def _seconds(self) -> float:
        return self._seconds_before + (time.perf_counter() - self._started if self._started is not None else 0.0)

    def _write(self, trainer: L.Trainer, content: dict[str, Any], whole: bool = False) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        path = _path(trainer)
        known = read_record(path)
        if whole and known and known.get("run") != self._run:
            set_aside(path)
        if not whole:
            if known and known.get("run") != self._run:
                return  # these numbers are of the weights of another run than the record that lies there
            content = known | content
        write_json(path, content | {"run": self._run}, default=str)


def _path(trainer: L.Trainer) -> Path:
    return Path(trainer.default_root_dir) / RUN_RECORD


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
    logged = sorted(trainer.callback_metrics.items())
    values = {k: float(v) for k, v in logged if not (k.startswith("train/") or is_learning_rate(k))}
    return {k: round(v, 6) for k, v in values.items() if math.isfinite(v)}


def _step(trainer: L.Trainer) -> int:
    """Optimiser steps of the weights that are evaluated."""
    if not trainer.ckpt_path or not is_checkpoint(trainer.ckpt_path):
        return trainer.global_step
    return int(without_weights(trainer.ckpt_path)["global_step"])


def _device(trainer: L.Trainer) -> str:
    device = trainer.strategy.root_device
    name = device_name(device)
    return name if device.type == "cuda" else f"{device.type}, {torch.get_num_threads()} threads, {name}"


def _data(trainer: L.Trainer) -> dict[str, Any]:
    """Recordings that were trained on: how many, how long, of which games."""
    data = getattr(trainer, "datamodule", None)
    describe = getattr(data, "describe", None)
    return describe() if describe is not None else {}
