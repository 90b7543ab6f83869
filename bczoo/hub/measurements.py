"""Numbers that commands measure of a policy, kept with it.

Place in the pipeline: ``bczoo play``, ``causality`` and ``bench latency`` hand what they measured to :func:`keep`. It
goes into the record of the run (:mod:`bczoo.train.run_record`), from where ``bczoo export`` takes it into the model
card; in an exported folder into ``training.json`` and the section "Measured" of its card. Every number carries the step
of the weights that it was measured on, and none takes the place of a better founded one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bczoo.core.errors import UserError
from bczoo.core.files import write_json, write_text
from bczoo.hub.card import MEASURED_HEADING, measured_section
from bczoo.hub.folder import CARD
from bczoo.hub.source import Source, chosen_step
from bczoo.train.run_record import read_record, weights_step


def measured_step(found: Source | None) -> int | None:
    """Optimiser steps of the weights, as far as they are known."""
    return None if found is None else weights_step(found.record)


def keep(
    found: Source | None, what: str, name: str, entry: Mapping[str, Any], amount: int, wanted: bool | None = None
) -> str:
    """Add a measurement to what is known of a policy; returns a line that says where it is, or why not.

    Args:
        found: the policy.
        what: play, causality or latency.
        name: of the game, the recordings or the device.
        entry: the measurement, with its ``step``.
        amount: how many games or steps it rests on; one that rests on more is kept.
        wanted: whether to keep it; if left out, only of a run, because an exported folder is the work of its user.

    Raises:
        UserError: it is wanted and there is no place for it.
    """
    path = None if found is None or found.repository else found.record_path
    if wanted is False:
        return ""
    if found is None or path is None or entry.get("step") is None:
        if wanted:
            raise UserError("nothing is known of the training of these weights that this could be added to")
        return ""
    if found.exported and not wanted:
        return f"--add_to_record true keeps this in {path} and in the card beside it"
    record = read_record(path)
    known = record.get(what, {}).get(name)
    if known is not None and (why := _why_kept(known, entry, amount, what, found)):
        return f"{path} keeps the {what} in {name} that it has: {why}"
    entry = {**entry, "on": _dtype(found)} if found.exported else entry
    record[what] = {**record.get(what, {}), name: dict(entry)}
    write_json(path, record)
    replaced = "" if known is None else f"; it takes the place of one of step {known['step']}"
    return f"kept in {path}{_into_card(found.path, record) if found.exported else ''}{replaced}"


def _why_kept(known: Mapping[str, Any], entry: Mapping[str, Any], amount: int, what: str, found: Source) -> str:
    """Why a measurement that is there stays; "" if the new one takes its place."""
    if known["step"] == entry["step"]:
        before = amount_of(what, known)
        return f"it rests on {before}, more than {amount}" if before > amount else ""
    if not found.exported and known["step"] == chosen_step(found.path):
        return f"it is of step {known['step']}, which the run stands for, and this one of step {entry['step']}"
    return ""


def amount_of(what: str, entry: Mapping[str, Any]) -> int:
    """How many games, windows or steps a measurement rests on."""
    if what == "play":
        return int(entry["players"]["policy"]["episodes"]) if "policy" in entry["players"] else 0
    return int(entry["windows"]) if what == "causality" else int(entry["steps_measured"])


def _dtype(found: Source) -> str:
    return str(next(found.blueprint().parameters()).dtype).removeprefix("torch.")


def _into_card(folder: Path, record: Mapping[str, Any]) -> str:
    """Write the section of a card anew, and nothing else of it; returns what to say of it."""
    path = folder / CARD
    lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
    if MEASURED_HEADING not in lines:
        return f" ({path} has no section {MEASURED_HEADING!r} to write it to)"
    start = lines.index(MEASURED_HEADING)
    end = next((i for i in range(start + 1, len(lines)) if lines[i].startswith(("# ", "## "))), len(lines))
    section = measured_section(record).split("\n")
    write_text(path, "\n".join([*lines[:start], *section, *([""] if end < len(lines) else []), *lines[end:]]))
    return f" and in {path}"


def results_folder(policy: str, name: str) -> str:
    """Where a command writes its results unless it is told: into the run's folder, or beside all runs.

    Args:
        policy: the policy, as the command was given it.
        name: of the folder.
    """
    run = Path(policy)
    return str((run if (run / "checkpoints").is_dir() else Path("runs")) / name)
