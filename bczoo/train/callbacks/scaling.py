"""What a run logs for a scaling law: its loss over tokens, operations and time, on a dense grid.

Place in the pipeline: a callback that every ``bczoo fit`` has; ``bczoo scaling fit`` reads what it writes
(:mod:`bczoo.scaling.points`)::

    <run>/scaling.csv                   of this run; a run that is resumed goes on in it
    <run>/scaling-before-<time>.csv     of an earlier run in the same folder

A row is the mean over an interval of steps and stands at its middle. Intervals grow with the run, so that the file
stays small however long it is: some 300 rows after a thousand steps, a thousand after a million.
"""

from __future__ import annotations

import math
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from bczoo.core.files import set_aside, write_text
from bczoo.models.bc.transformer import PolicyTransformer
from bczoo.models.model import Model
from bczoo.nn.gpt import GPT
from bczoo.train.flops import flops_per_window

SCALING_LOG = "scaling.csv"
GROWTH = 0.01  # of the steps, from a row to the next
COUNT_AFTER = 60.0  # seconds of training; counting operations takes a few
COLUMNS = (
    "step",  # optimiser steps at the middle of the interval
    "tokens",  # inputs seen by then: frames times what the transformer gets of each
    "loss",  # train/loss in nats, mean over the interval
    "end_step",
    "end_tokens",
    "samples",  # windows, frames and seconds of training by the end of the interval
    "frames",
    "seconds",
    "flops_6nd",  # by the middle; 6 N D
    "flops_6nd_attention",  # (6 N + 12 layers width window) D
    "flops_measured",  # of the forward and backward pass; empty in short runs, and where they cannot be counted
    "params",  # learned ones without position tables, as nanoGPT counts
    "params_without_embeddings",
    "params_with_positions",
    "data_tokens",  # of the recordings that are trained on; empty if not known
)


class ScalingLog(L.Callback):
    """Writes ``scaling.csv`` beside a run's checkpoints: when one is kept, and at the end."""

    def __init__(self) -> None:
        self._rows: list[list[float]] = []  # all columns but those that are the same in all rows or a multiple
        self._samples = self._frames = 0  # of all processes
        self._seconds_before, self._started = 0.0, 0.0
        self._since = 0  # the step that the current interval began after
        self._frames_since = 0
        self._losses: list[Tensor] = []
        self._sizes: dict[str, float] = {}
        self._measured: float | None = None  # operations a token; not a number where they cannot be counted
        self._resumed = self._off = False

    def state_dict(self) -> dict[str, Any]:
        return {
            "samples": self._samples,
            "frames": self._frames,
            "seconds": self._seconds,
            "since": self._since,
            "frames_since": self._frames_since,
            "losses": [float(x) for x in self._losses],
            "rows": self._rows,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed = True
        self._samples, self._frames = state_dict["samples"], state_dict["frames"]
        self._seconds_before, self._since = state_dict["seconds"], state_dict["since"]
        self._frames_since = state_dict["frames_since"]
        self._losses = [torch.tensor(x) for x in state_dict["losses"]]
        self._rows = [list(row) for row in state_dict["rows"]]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started = time.perf_counter()
        self._sizes = {**model_sizes(pl_module), "data_tokens": math.nan}
        hours = _hours(trainer)
        if hours and (spec := getattr(pl_module, "input_spec", None)) is not None:
            self._sizes["data_tokens"] = hours * 3600 * spec.fps * self._sizes["tokens_per_frame"]
        self._off = trainer.global_step > 0 and not self._resumed  # what this run saw before is not known
        path = _path(trainer)
        if not self._resumed and self._writes(trainer) and path.is_file():
            set_aside(path)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        valid, loss = (
            batch.get("valid") if isinstance(batch, dict) else None,
            trainer.callback_metrics.get("train/loss"),
        )
        if not isinstance(valid, Tensor) or loss is None or self._off:
            return
        self._samples += valid.shape[0] * trainer.world_size
        self._frames += valid.numel() * trainer.world_size
        self._losses.append(loss.detach().clone())
        step = trainer.global_step
        if step > self._since and step >= (1 + GROWTH) * self._since:
            self._end_interval(step)
            if self._measured is None and self._seconds > COUNT_AFTER:
                self._measured = _operations(pl_module) / self._sizes["tokens_per_frame"]

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._losses and trainer.global_step > self._since:
            self._end_interval(trainer.global_step)
        self._write(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._write(trainer)

    @property
    def _seconds(self) -> float:
        return self._seconds_before + (time.perf_counter() - self._started if self._started else 0.0)

    def _end_interval(self, step: int) -> None:
        """A row of the steps since the last one; the device is waited for here alone."""
        per_frame = self._sizes["tokens_per_frame"]
        self._rows.append(
            [
                (self._since + step) / 2,
                (self._frames + self._frames_since) / 2 * per_frame,
                float(torch.stack(self._losses).mean()),
                step,
                self._frames * per_frame,
                self._samples,
                self._frames,
                self._seconds,
            ]
        )
        self._since, self._frames_since, self._losses = step, self._frames, []

    def _table(self) -> str:
        """The rows, with the columns that follow from the sizes of the model."""
        n, same = self._sizes["params"], [self._sizes[name] for name in COLUMNS[-4:]]
        a_token = (6 * n, 6 * n + self._sizes["attention"], math.nan if self._measured is None else self._measured)
        rows = [[*row, *(flops * row[1] for flops in a_token), *same] for row in self._rows]
        lines = [",".join("" if math.isnan(x) else f"{x:.10g}" for x in row) for row in rows]
        return "\n".join([",".join(COLUMNS), *lines, ""])

    def _writes(self, trainer: L.Trainer) -> bool:
        return trainer.is_global_zero and not trainer.fast_dev_run  # type: ignore[attr-defined]

    def _write(self, trainer: L.Trainer) -> None:
        if not self._rows or not self._writes(trainer):
            return
        try:
            write_text(_path(trainer), self._table())
        except OSError as error:  # no reason to end a training; the next checkpoint tries again
            warnings.warn(f"{_path(trainer)} could not be written: {error}; it is tried again", stacklevel=2)


def model_sizes(model: nn.Module) -> dict[str, float]:
    """Learned parameters of a model, counted three ways, what it takes in of a frame, and its attention's operations.

    Returns:
        ``params`` without tables of learned positions, ``params_without_embeddings``, ``params_with_positions``,
        ``tokens_per_frame``, and ``attention``: 12 layers width window, operations a token.
    """
    learned = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    positions = sum(n for name, n in learned.items() if name.rpartition(".")[2] == "positions")
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    embeddings = sum(p.numel() for p in model.parameters() if id(p) in tables and p.requires_grad)
    everything = sum(learned.values())
    layout, spec = getattr(model, "layout", None), getattr(model, "input_spec", None)
    per_frame = float(layout.length) if layout is not None else 1.0
    window = spec.window * per_frame if spec is not None else 0.0
    backbones = [m for m in model.modules() if isinstance(m, PolicyTransformer | GPT)]
    return {
        "params": float(everything - positions),
        "params_without_embeddings": float(everything - positions - embeddings),
        "params_with_positions": float(everything),
        "tokens_per_frame": per_frame,
        "attention": sum(12.0 * len(m.blocks) * m.width * window for m in backbones),
    }


def _operations(model: L.LightningModule) -> float:
    """Operations a frame of a training step; not a number for a model that cannot be followed without memory."""
    if not isinstance(model, Model):
        return math.nan
    try:
        return flops_per_window(model) / model.input_spec.window
    except Exception as error:  # anyone's model; its training goes on
        warnings.warn(f"the operations of this model are not counted for scaling.csv: {error}", stacklevel=2)
        return math.nan


def _hours(trainer: L.Trainer) -> float:
    """Of recordings that are trained on; 0 if that is not known."""
    describe = getattr(getattr(trainer, "datamodule", None), "describe", None)
    return float(describe().get("train", {}).get("hours", 0.0)) if describe is not None else 0.0


def _path(trainer: L.Trainer) -> Path:
    return Path(trainer.default_root_dir) / SCALING_LOG
