"""What is known of a training run, as plain JSON: where it lies and what is in it.

Place in the pipeline: :class:`bczoo.train.callbacks.run_record.RunRecord` writes it into the run's folder,
``bczoo export`` copies it into the exported folder, and the model card, the table of checkpoints and ``bczoo play``
read it. Every number carries the optimiser step it was measured at, so that no card shows a number of other weights as
theirs::

    run, bczoo, command                            what ran; run is also in the checkpoints of that run
    init_from, base_model, lora, freeze, ...       of a fine-tuning; see FineTune.training_settings
    data      {root, fraction, train {recordings, hours}, val, source, batch_size, augmented}
    training  {steps, epochs, seconds, seed, precision, devices, device, torch}
    metrics   {step, "val/loss", "val/perplexity/<group>", ...}         test_metrics the same
    play      {<game>: {seed, step, players {<who>: {mean, low, high, episodes}}}}
    replay    {video, env, seed, return, step}     the video beside exported weights
    weights_step                                   of an exported checkpoint that is not the run's last
    license, flaws                                 what was said when it was exported
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bczoo.core.errors import UserError

RUN_RECORD = "record.json"  # in the folder of a run
LAST = "last.ckpt"  # in its folder of checkpoints
EXPORTED_RECORD = "training.json"  # in an exported folder

LARGEST_FILE = 4 << 20  # bytes of a JSON file

Record = Mapping[str, Any]


def read_record(path: Path) -> dict[str, Any]:
    """The record in a file; empty if there is none.

    Raises:
        UserError: it is not laid out as a record; says where.
    """
    record = read_json(path) if path.is_file() else {}
    try:
        _check(record)
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{path} is not the record of a training run: {error!r}; delete it or record anew") from error
    return record


def weights_step(record: Record) -> int | None:
    """Optimiser steps that the weights have seen."""
    return record.get("weights_step", record.get("training", {}).get("steps"))


def _check(record: Record) -> None:
    """Look at everything that is read of a record, so that a wrong one fails here and not in the middle of a card."""
    numbers = [record.get("weights_step", 0)]
    lines = [record.get(k) or "" for k in ("command", "bczoo", "init_from", "base_model", "instruction", "license")]
    for what in ("metrics", "test_metrics"):
        if what in record:
            numbers += [record[what]["step"], *record[what].values()]
    for env, played in record.get("play", {}).items():
        lines.append(env)
        numbers += [played["seed"], played["step"]]
        for player in played["players"].values():
            numbers += [player[k] for k in ("mean", "low", "high", "episodes")]
    if "replay" in record:
        lines += [record["replay"]["video"], record["replay"]["env"]]
        numbers += [record["replay"][k] for k in ("seed", "return", "step")]
    training, data = record.get("training", {}), record.get("data", {})
    numbers += [v for k, v in training.items() if k in ("steps", "seconds", "devices", "seed")]
    lines += [training.get(k, "") for k in ("device", "precision", "torch")]
    if "train" in data:
        numbers += [data["train"]["recordings"], data["train"]["hours"], data["batch_size"]]
    for what in (data.get("root", []), record.get("flaws", [])):
        if not isinstance(what, list):
            raise TypeError(f"{what!r} is no list")
        lines += what
    data.get("source", {}).items()
    if wrong := [n for n in numbers if not (isinstance(n, int | float) and math.isfinite(n))]:
        raise TypeError(f"{wrong[0]!r} is no number")
    if wrong := [line for line in lines if not isinstance(line, str) or "\n" in line]:
        raise TypeError(f"{wrong[0]!r} is no line of text")


def read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file that may be anyone's.

    Raises:
        UserError: it is too large, or not JSON, or not an object.
    """
    if path.stat().st_size > LARGEST_FILE:
        raise UserError(f"{path} is larger than {LARGEST_FILE >> 20} MiB")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__} instead of an object")
    return content


def play_entry(results: Mapping[str, Any], seed: int, step: int) -> dict[str, Any]:
    """Returns in one game as the record keeps them: mean and 95 % interval by player.

    Args:
        results: :class:`bczoo.play.episodes.PlayResult` by player.
        seed: of the first game.
        step: optimiser steps that the policy had been trained for.
    """
    players = {
        name: {"mean": r.mean, "low": r.interval[0], "high": r.interval[1], "episodes": len(r.returns)}
        for name, r in results.items()
    }
    return {"seed": seed, "step": step, "players": players}
