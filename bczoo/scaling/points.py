"""Where the points of a fit come from: folders of runs, or a table.

Place in the pipeline: ``bczoo scaling fit`` reads everything it is given through :func:`read_sources`::

    <run>/scaling.csv                 of every `bczoo fit`: bczoo.train.callbacks.scaling.ScalingLog
    <run>/metrics.csv, record.json    for another measure than the training loss
    points.csv                        columns run, params, tokens, loss, maybe flops; a run per row without run

Nothing here imports torch.
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from bczoo.compare.runs import read_run
from bczoo.core.errors import UserError
from bczoo.scaling.curves import Curve
from bczoo.scaling.law import FLOPS_PER_PARAMETER

Flops = Literal["6nd", "6nd_attention", "measured"]
Params = Literal["with", "without"]
SCALING_LOG = "scaling.csv"  # in the folder of a run
MOST_EPOCHS = 4  # over the recordings, up to which a loss is that of fresh ones (Muennighoff et al. 2305.16264)
PARAMS = {"with": "params", "without": "params_without_embeddings"}
FLOPS = {"6nd_attention": ("flops_6nd_attention",), "measured": ("flops_measured", "flops")}

Table = dict[str, list[str]]


@dataclass(frozen=True)
class Sources:
    """What was read.

    Args:
        curves: one a run.
        notes: what is to be said of them.
        dropped: what was left out, and why.
        tokens_per_frame: inputs a frame, where all runs log one number.
    """

    curves: list[Curve]
    notes: list[str]
    dropped: list[str]
    tokens_per_frame: float | None = None


def read_sources(
    sources: Sequence[str],
    target: str = "loss",
    flops: Flops = "6nd",
    params: Params = "with",
    columns: Mapping[str, str] | None = None,
) -> Sources:
    """The curves of runs and tables.

    Args:
        sources: folders of runs, and CSV files.
        target: measure in the place of the loss: a column of the tables, or what the runs logged.
        flops: how C is counted.
        params: whether N counts embeddings.
        columns: by name here the column of tables that are named otherwise.

    Raises:
        UserError: there is nothing, or it lacks a column; says what and where.
    """
    curves, notes, dropped, per_frame = [], [], [], set()
    for source in sources:
        path = Path(source)
        if path.is_dir():
            log = _run_log(path)
            curves.append(_run_curve(path, log, target, flops, params))
            notes += _too_many_epochs(path, log)
            per_frame.add(float(log["end_tokens"][-1]) / float(log["frames"][-1]))
        elif path.is_file():
            found, note, lost = _table_curves(path, target, flops, params, columns or {})
            curves += found
            notes += note
            dropped += lost
        else:
            raise UserError(f"there is no {source}; give folders of runs such as runs/a, or a table such as points.csv")
    return Sources(curves, notes, dropped, per_frame.pop() if len(per_frame) == 1 else None)


def parse_columns(text: str | None) -> dict[str, str]:
    """``params=N,tokens=D`` by name; empty for None.

    Raises:
        UserError: a part of it is no ``name=column``.
    """
    pairs = [part.partition("=") for part in (text or "").split(",") if part.strip()]
    known = ("run", "params", "tokens", "loss", "flops")
    for name, equals, column in pairs:
        if name.strip() not in known or not equals or not column.strip():
            raise UserError(
                f"--columns takes name=column with the names {', '.join(known)}, got {name + equals + column!r}"
            )
    return {name.strip(): column.strip() for name, _, column in pairs}


def read_table(path: Path) -> Table:
    """The columns of a CSV file as text.

    Raises:
        UserError: it has no rows, or one of another length.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        head = next(reader, [])
        rows = [row for row in reader if row]
        if not rows:
            raise UserError(f"{path} has no rows")
    if wrong := next((i for i, row in enumerate(rows, 2) if len(row) != len(head)), None):
        raise UserError(f"{path}, row {wrong}: another number of cells than the {len(head)} of the head")
    return {name.strip(): list(column) for name, column in zip(head, zip(*rows, strict=True), strict=True)}


def _numbers(path: Path, table: Table, name: str) -> np.ndarray:
    """A column as numbers; an empty cell is not a number."""
    if name not in table:
        close = difflib.get_close_matches(name, table, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ";"
        raise UserError(f"{path} has no column {name!r}{hint} It has {', '.join(table)}")
    try:
        return np.array([float(cell) if cell.strip() else np.nan for cell in table[name]])
    except ValueError as error:
        raise UserError(f"{path}, column {name}: {error}") from error


def _table_curves(
    path: Path, target: str, flops: Flops, params: Params, columns: Mapping[str, str]
) -> tuple[list[Curve], list[str], list[str]]:
    """The runs of a table, what is to be said of them, and what was left out."""
    table = read_table(path)
    loss = _numbers(path, table, columns.get("loss", target) if target == "loss" else target)
    n = _numbers(path, table, columns.get("params", PARAMS[params]) if params == "with" else PARAMS[params])
    given = next((c for c in (columns.get("flops", ""), *FLOPS.get(flops, ("flops",))) if c in table), None)
    notes = []
    if columns.get("tokens", "tokens") in table:
        d = _numbers(path, table, columns.get("tokens", "tokens"))
    elif given is not None:
        d = _numbers(path, table, given) / (FLOPS_PER_PARAMETER * n)
        notes.append(f"{path} has no tokens: D = {given} / 6 N")
    else:
        raise UserError(f"{path} has neither tokens nor flops; name them by --columns tokens=NAME")
    if flops != "6nd" and given is None:
        raise UserError(f"{path} has no column for --flops {flops}: {' or '.join(FLOPS[flops])}")
    c = None if flops == "6nd" or given is None else _numbers(path, table, given)
    name = columns.get("run", "run")
    if name in columns.values() and name not in table:
        raise UserError(f"{path} has no column {name!r}; it has {', '.join(table)}")
    if name in table:
        labels = np.array(table[name])
    else:
        labels = np.array([f"row {i}" for i in range(2, len(loss) + 2)])
        notes.append(f"{path} has no column run: each row counts as a run of its own")
    whole = np.isfinite(n) & np.isfinite(d) & (c is None or np.isfinite(c))
    lost = int((~whole).sum())
    dropped = [f"{path}: {lost} rows without a size or tokens"] if lost else []
    curves = []
    for label in dict.fromkeys(labels):
        of_run = whole & (labels == label)
        for size in np.unique(n[of_run]):  # a run has one size; a label over several is a group of runs
            rows = of_run & (n == size)
            curves.append(Curve(float(size), d[rows], loss[rows], None if c is None else c[rows], str(label)))
    if labels_of_several := len(curves) - len(dict.fromkeys(labels[whole])):
        notes.append(f"{path}: labels of runs are over several sizes; {labels_of_several} runs more than labels")
    return curves, notes, dropped


def _run_log(path: Path) -> dict[str, np.ndarray]:
    """What a run logged for a law, by column."""
    log = path / SCALING_LOG
    if not log.is_file():
        raise UserError(
            f"{path} has no {SCALING_LOG}, which bczoo fit writes since it fits scaling laws; train it anew"
        )
    table = read_table(log)
    return {name: _numbers(log, table, name) for name in table}


def _run_curve(path: Path, log: Mapping[str, np.ndarray], target: str, flops: Flops, params: Params) -> Curve:
    """The curve of a run: its training loss, or what else it logged, at the tokens that it had seen by then."""
    n, tokens = float(log[PARAMS[params]][-1]), log["tokens"]
    c = None if flops == "6nd" else log[FLOPS[flops][0]]
    if c is not None and np.isnan(c).any():
        raise UserError(
            f"{path} has no {FLOPS[flops][0]}: operations are counted after a minute of training, where the model "
            "allows it; take another --flops"
        )
    if target == "loss":
        return Curve(n, tokens, log["loss"], c, str(path))
    run = read_run(path)
    if target in run.curves:
        steps, values = run.curves[target]
    elif target in run.measures and (step := run.measures[target].step) is not None:
        steps, values = np.array([step]), np.array([run.measures[target].value])
    else:
        known = sorted({*run.curves, *run.measures})
        close = difflib.get_close_matches(target, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise UserError(f"{path} has no {target!r}{hint} There is: loss, {', '.join(known)}")
    after = (steps > 0) & (steps <= log["end_step"][-1])
    at = np.concatenate([[0.0], log["end_step"]])

    def then(values: np.ndarray) -> np.ndarray:
        return np.interp(steps[after], at, np.concatenate([[0.0], values]))

    ends = log["end_tokens"]
    return Curve(n, then(ends), values[after], None if c is None else then(ends * c[-1] / tokens[-1]), str(path))


def _too_many_epochs(path: Path, log: Mapping[str, np.ndarray]) -> list[str]:
    """A flag of a run that saw its recordings too often for its loss to be that of fresh ones."""
    seen, there = log["end_tokens"][-1], log.get("data_tokens", np.array([np.nan]))[-1]
    if not seen > MOST_EPOCHS * there:
        return []
    return [
        f"{path} saw its recordings {seen / there:.1f} times: above {MOST_EPOCHS} times the training loss is not that "
        "of fresh recordings"
    ]
