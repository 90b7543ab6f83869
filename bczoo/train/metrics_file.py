"""The numbers of a run as one CSV file in its folder, whatever other loggers there are.

Place in the pipeline: a logger that every ``bczoo fit`` has. Columns are ``step`` (optimiser steps that the weights had
seen), ``epoch``, and one per metric; a cell is empty where a metric was not logged or is not a number::

    <run>/metrics.csv                   of this run; a run that is resumed goes on in it
    <run>/metrics-before-<time>.csv     of an earlier run in the same folder

Lightning's CSVLogger makes a folder per start instead, deletes what it finds there, and ends a training on a full disk.
"""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
import warnings
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from bczoo.core.files import set_aside, sweep, write_text

METRICS_FILE = "metrics.csv"
FIRST = ("step", "epoch")  # columns
DIGITS = 8  # of a number; metrics are float32, and 0.001 of these would read 0.0010000000474974513


class MetricsFile(Logger):
    """Writes ``metrics.csv``. A full disk is told once and is no reason to end a training: rows wait for room.

    Args:
        folder: of the run.

    Attributes:
        trainer: whose steps are counted; None takes the steps that a row is logged with.
        evaluated_step: of the weights, while they are evaluated outside of a training.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.trainer: L.Trainer | None = None
        self.evaluated_step: int | None = None
        self._continue_from: int | None = None
        self._again: tuple[str, ...] = ()
        self._opened = False
        self._columns: list[str] = []
        self._waiting: list[dict[str, Any]] = []  # rows that are not in the file
        self._failed = False

    @property
    def path(self) -> Path:
        return self.folder / METRICS_FILE

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        """Lightning's callbacks and profilers write here."""
        return str(self.folder)

    log_dir = save_dir

    def go_on_from(self, step: int, again: tuple[str, ...] = ()) -> None:
        """Keep the file that is there, but for what was logged after a step; to be called before anything is logged.

        Args:
            step: that the run is resumed from.
            again: beginnings of metrics that are logged once more for that step, so that what was goes.
        """
        self._continue_from, self._again = step, again

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: ``config.yaml`` holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        row = {name: _plain(value) for name, value in metrics.items()}
        self._waiting.append({**row, "step": self.step_of(step)})

    @rank_zero_only
    def save(self) -> None:
        """Write the rows that wait."""
        if not self._waiting:
            return
        try:
            self._open()
            self._write()
        except OSError as error:
            if not self._failed:
                warnings.warn(f"{self.path} could not be written: {error}; it is tried again", stacklevel=2)
            self._failed = True
            return
        self._failed = False

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()

    def step_of(self, step: int | None) -> int:
        """Steps that the weights have seen; Lightning counts from 0 what checkpoints and records count from 1."""
        if self.evaluated_step is not None:
            return self.evaluated_step
        return self.trainer.global_step if self.trainer is not None else step or 0

    def _open(self) -> None:
        """Put the file that is there in order, once."""
        if self._opened:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        sweep(self.folder, METRICS_FILE)
        if self.path.is_file():
            if self._continue_from is None:
                print(f"the metrics of an earlier run are kept as {set_aside(self.path)}")
            else:
                columns, rows = read_metrics(self.path)
                known = [row for row in rows if self._stays(row)]
                self._columns = columns
                write_text(self.path, _text(columns, known, head=True))
        self._opened = True

    def _stays(self, row: Mapping[str, str]) -> bool:
        """Whether a row of the file is of what the resumed run goes on from."""
        assert self._continue_from is not None
        try:
            step = float(row.get("step") or "nan")
        except ValueError:
            return False
        told_again = any(value for name, value in row.items() if self._again and name.startswith(self._again))
        return step < self._continue_from or (step == self._continue_from and not told_again)

    def _write(self) -> None:
        """Append the rows; a file that lacks one of their columns is written anew."""
        rows = self._waiting
        new = {name for row in rows for name in row} - set(self._columns)
        if new or not self.path.is_file():
            older = read_metrics(self.path)[1] if self.path.is_file() else []
            columns = [*FIRST, *sorted({*self._columns, *new} - set(FIRST))]
            write_text(self.path, _text(columns, [*older, *rows], head=True))
            self._columns = columns
        else:
            before = self.path.stat().st_size
            try:
                with self.path.open("ab") as file:
                    file.write(_text(self._columns, rows).encode("utf-8"))
            except OSError:
                with contextlib.suppress(OSError):
                    os.truncate(self.path, before)  # half a row would spoil the next
                raise
        self._waiting = []


def read_metrics(path: str | Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a ``metrics.csv``; a last row that a killed process left unfinished is left out."""
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    whole = text[: text.rfind("\n") + 1]
    table = list(csv.reader(io.StringIO(whole)))
    columns = table[0] if table else []
    return columns, [dict(zip(columns, row, strict=True)) for row in table[1:] if len(row) == len(columns)]


def _text(columns: list[str], rows: list[dict[str, Any]], head: bool = False) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    if head:
        writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else f"{value:.{DIGITS}g}"
