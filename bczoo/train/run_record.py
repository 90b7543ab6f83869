"""What is known of a training run, as plain JSON: where it lies and what is in it.

Place in the pipeline: :class:`bczoo.train.callbacks.run_record.RunRecord` writes it into the run's folder,
``bczoo export`` copies it into the exported folder, and the model card, the table of checkpoints and ``bczoo play``
read it. Every number carries the optimiser step it was measured at, so that no card shows a number of other weights as
theirs::

    run, bczoo, command                            what ran; run is also in the checkpoints of that run
    init_from, base_model, lora, freeze, ...       of a fine-tuning; see FineTune.training_settings
    data      {root, fraction, train {recordings, hours}, val, source, batch_size, augmented}
    training  {steps, epochs, seconds, seed, precision, devices, device, torch}
    metrics   {step, "val/loss", "val/perplexity/<group>", ...}         of the last validation; test_metrics the same
    best      {monitor, mode, value, step, metrics {step, ...}}         of the best checkpoint
    play      {<game>: {seed, step, players {<who>: {mean, low, high, episodes}}, ...}}   low, high null for one game
    causality {<data>: {step, part, windows, recordings, metrics {<name>: {value, low, high}}}}
    latency   {<device>: {step, dtype, games, threads, steps_measured, p50, p99, budget}} milliseconds
    replay    {video, env, seed, return, step}     the video beside exported weights
    weights_step                                   of an exported checkpoint that is not the run's last
    rounded_to                                     type of exported weights that are not saved as they were trained
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
LAST, BEST = "last.ckpt", "best.ckpt"  # in its folder of checkpoints
EXPORTED_RECORD = "training.json"  # in an exported folder

MEASURED = ("play", "causality", "latency")  # what commands add to a record, by name of what it was measured on

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
    if "best" in record:
        best = record["best"]
        numbers += [best["step"], best["value"], best["metrics"]["step"], *best["metrics"].values()]
        lines += [best["monitor"], best["mode"]]
    for env, played in record.get("play", {}).items():
        lines.append(env)
        numbers += [played["seed"], played["step"]]
        for player in played["players"].values():
            numbers += [player["mean"], player["episodes"], *_known(player["low"], player["high"])]
        lines += [str(word) for pair in played.get("settings", {}).items() for word in pair]
    for data_folder, scored in record.get("causality", {}).items():
        lines += [data_folder, scored["part"]]
        numbers += [scored["step"], scored["recordings"], scored["windows"]]
        for metric in scored["metrics"].values():
            numbers += _known(metric["value"], metric["low"], metric["high"])
    for device, timed in record.get("latency", {}).items():
        lines += [device, timed["dtype"]]
        numbers += [timed[k] for k in ("step", "games", "threads", "steps_measured", "p50", "p99", "budget")]
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


def _known(*values: float | None) -> list[float]:
    return [value for value in values if value is not None]


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


def play_entry(
    results: Mapping[str, Any], seed: int, step: int, settings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Returns in one game as the record keeps them: mean and 95 % interval by player.

    Args:
        results: :class:`bczoo.play.episodes.PlayResult` by player.
        seed: of the first game.
        step: optimiser steps that the policy had been trained for.
        settings: how it played, where that is not the default: temperature, greedy, realtime and so on.
    """
    players = {}
    for name, result in results.items():
        low, high = result.interval if result.interval is not None else (None, None)
        players[name] = {"mean": result.mean, "low": low, "high": high, "episodes": len(result.returns)}
    entry: dict[str, Any] = {"seed": seed, "step": step, "players": players}
    return entry | ({"settings": dict(settings)} if settings else {})


def records_of_runs(checkpoint: Path) -> list[Path]:
    """Records of the runs in whose folder a checkpoint lies: the current one first, then earlier ones."""
    run = checkpoint.parent.parent
    stem, suffix = Path(RUN_RECORD).stem, Path(RUN_RECORD).suffix
    earlier = sorted(run.glob(f"{stem}-before-*{suffix}"), reverse=True)
    return [path for path in (run / RUN_RECORD, *earlier) if path.is_file()]
