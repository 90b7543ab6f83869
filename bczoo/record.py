"""What is known of a training run, as plain JSON: where it lies and what is in it.

Place in the pipeline: :class:`bczoo.callbacks.record.RunRecord` writes it into the run's folder, ``bczoo export``
copies it into the published folder, and the model card, the table of checkpoints and ``bczoo play`` read it. Every
number carries the optimiser step it was measured at, so that no card shows a number of other weights as theirs::

    bczoo, command, init_from                      what ran
    data      {root, fraction, train {recordings, hours}, val, source, batch_size, augmented}
    training  {steps, epochs, seconds, seed, precision, devices, device, torch}
    metrics   {step, "val/loss", "val/perplexity/<group>", ...}         test_metrics the same
    play      {<game>: {seed, step, players {<who>: {mean, low, high, episodes}}}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bczoo.errors import UserError

RUN_RECORD = "record.json"  # in the folder of a run
PUBLISHED_RECORD = "training.json"  # in a published folder

LARGEST_FILE = 4 << 20  # bytes of a JSON file

Record = Mapping[str, Any]


def read_record(path: Path) -> dict[str, Any]:
    """The record in a file; empty if there is none."""
    return read_json(path) if path.is_file() else {}


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
        results: :class:`bczoo.games.play.PlayResult` by player.
        seed: of the first game.
        step: optimiser steps that the policy had been trained for.
    """
    players = {
        name: {"mean": r.mean, "low": r.interval[0], "high": r.interval[1], "episodes": len(r.returns)}
        for name, r in results.items()
    }
    return {"seed": seed, "step": step, "players": players}
