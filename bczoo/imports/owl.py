"""OWL Control: folders of ``recording.mp4``, ``inputs.csv`` and ``metadata.json``.

Place in the pipeline: a format of :mod:`bczoo.imports`. Fields are those of Wayfarer-Labs/owl-control (MIT): its
description of ``inputs.csv``, ``src/output_types.rs`` and ``crates/input-capture``.

What has to be known of them:

* Times of events are seconds since 1970; the video begins at ``VIDEO_START``, which is later than ``START``.
* Frames before ``HOOK_START`` are black, since the game was not captured yet. They are left out.
* ``START`` lists what was held when the recording began.
* Their recorder rejects some of its recordings with a file ``.invalid`` that says why, their server others with
  ``.server_invalid``.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bczoo.data.errors import RecordingError
from bczoo.data.reading import open_regular
from bczoo.imports.format import Format, files_below
from bczoo.imports.frames import timed_frames
from bczoo.imports.keys import key_of_code
from bczoo.imports.session import Event, Session

INPUTS, VIDEO, METADATA = "inputs.csv", "recording.mp4", "metadata.json"
REJECTS = (".invalid", ".server_invalid")
NOTCH = 120.0  # of a wheel, in Windows' units
MOST_TEXT = 2**29  # bytes of inputs.csv
TOLD = ("START", "END", "VIDEO_START", "VIDEO_END", "HOOK_START", "FOCUS", "UNFOCUS", "UNKNOWN")  # no inputs
PAD_BUTTONS = {
    1: "south", 2: "east", 4: "north", 5: "west", 7: "left_bumper", 8: "right_bumper", 11: "select", 12: "start",
    14: "left_stick_pressed", 15: "right_stick_pressed",
    16: "dpad_up", 17: "dpad_down", 18: "dpad_left", 19: "dpad_right",
}  # fmt: skip
PAD_VALUES = {9: "left_trigger", 10: "right_trigger"}
PAD_AXES = {1: "left_stick_x", 2: "left_stick_y", 4: "right_stick_x", 5: "right_stick_y"}


class Owl(Format):
    """Recordings of OWL Control.

    Args:
        invalid: also those that their recorder or server rejected.
    """

    name = "owl"
    description = "game recordings of OWL Control: folders of recording.mp4, inputs.csv and metadata.json"

    def __init__(self, invalid: bool = False) -> None:
        self.invalid = invalid

    def find(self, source: Path) -> Iterator[Path]:
        files = (path for path in files_below(source, ".csv", ".mp4") if path.name in (INPUTS, VIDEO))
        return iter(dict.fromkeys(path.parent for path in files))

    def read(self, path: Path) -> Session:
        for reject in REJECTS:
            if (path / reject).exists() and not self.invalid:
                said = (path / reject).read_text(encoding="utf-8", errors="replace").split("\n")
                raise RecordingError(
                    path, f"rejected by its recorder ({reject}): {'; '.join(filter(None, said))[:200]}"
                )
        rows = _rows(path / INPUTS)
        times: dict[str, float] = {}
        for time, kind, _ in rows:
            times.setdefault(kind, time)
        notes: list[str] = []
        if (begin := times.get("VIDEO_START")) is None:
            if (begin := times.get("START")) is None:
                raise RecordingError(path, f"{INPUTS} has no VIDEO_START, so nothing says when the video began")
            notes.append("inputs.csv has no VIDEO_START; the video is taken to begin at START")
        return Session(
            _frames(path / VIDEO, begin, times.get("HOOK_START", begin), notes),
            _events(path, rows, notes),
            end=times.get("VIDEO_END", times.get("END")),
            env=_game(path / METADATA, notes),
            notes=notes,
        )


Row = tuple[float, str, Any]  # seconds, kind, arguments


def _rows(path: Path) -> list[Row]:
    try:
        with open_regular(path) as file:
            text = file.read(MOST_TEXT).decode("utf-8")
    except (OSError, ValueError) as error:
        raise RecordingError(path, f"cannot be read ({error})") from error
    rows: list[Row] = []
    for number, row in enumerate(csv.reader(io.StringIO(text)), 1):
        if number == 1 and row[:1] == ["timestamp"]:
            continue
        try:
            time, kind, arguments = row
            rows.append((float(time), kind, json.loads(arguments)))
        except ValueError as error:
            raise RecordingError(path, f"line {number} is no event: {','.join(row)[:80]!r}") from error
    return rows


def _frames(
    video: Path, begin: float, hooked: float, notes: list[str]
) -> Iterator[tuple[float, Callable[[], np.ndarray]]]:
    """Frames on the clock of the events, from the first one on that shows the game."""
    first = None
    black = 0
    for time, picture in timed_frames(video):
        first = time if first is None else first
        if (at := begin + time - first) < hooked:
            black += 1
            continue
        yield at, picture
    if black:
        notes.append(f"{black} frames before the game was captured are left out")


def _events(path: Path, rows: list[Row], notes: list[str]) -> list[Event]:
    events: list[Event] = []
    left_out: Counter[str] = Counter()
    for time, kind, arguments in rows:
        try:
            found = _read(time, kind, arguments)
        except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            what = json.dumps(arguments)[:80]
            raise RecordingError(path, f"{INPUTS}: {kind} at {time} has the arguments {what}") from error
        events += found
        # A trigger that is pressed far enough also counts as a button; its value says more.
        trigger = kind == "GAMEPAD_BUTTON" and arguments[0] in PAD_VALUES
        if not found and kind not in TOLD and not trigger:
            left_out[f"{kind} {arguments[0]}" if kind.startswith("GAMEPAD") else kind] += 1
    notes += [f"{count} events {kind} have no place in a recording: left out" for kind, count in left_out.items()]
    return events


def _read(time: float, kind: str, arguments: Any) -> list[Event]:
    """The events of a line; none where a recording has no place for it."""
    if kind in ("KEYBOARD", "MOUSE_BUTTON"):
        return [Event(time, key_of_code(int(arguments[0])), bool(arguments[1]))]
    if kind == "MOUSE_MOVE":
        return [Event(time, "mouse_dx", arguments[0]), Event(time, "mouse_dy", arguments[1])]
    if kind == "SCROLL":
        return [Event(time, "scroll_dy", arguments[0] / NOTCH)]
    if kind == "START" and arguments:
        return _held(time, arguments["inputs"])
    table = {"GAMEPAD_BUTTON": PAD_BUTTONS, "GAMEPAD_BUTTON_VALUE": PAD_VALUES, "GAMEPAD_AXIS": PAD_AXES}.get(kind, {})
    if table and arguments[0] in table:
        return [Event(time, table[arguments[0]], float(arguments[1]))]
    return []


def _held(time: float, inputs: dict[str, Any]) -> list[Event]:
    """What was held when the recording began."""
    events = [Event(time, key_of_code(code), 1) for code in (*inputs.get("keyboard", ()), *inputs.get("mouse", ()))]
    for pad in inputs.get("gamepads", {}).values():
        events += [Event(time, PAD_BUTTONS[b], 1) for b in pad.get("digital", ()) if b in PAD_BUTTONS]
        for values, table in ((pad.get("analog", {}), PAD_VALUES), (pad.get("axis", {}), PAD_AXES)):
            events += [Event(time, table[int(code)], value) for code, value in values.items() if int(code) in table]
    return events


def _game(path: Path, notes: list[str]) -> str:
    """The game's program, without its suffix."""
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["game_exe"]).removesuffix(".exe")
    except (OSError, ValueError, KeyError, TypeError) as error:
        notes.append(f"metadata.json says no game ({type(error).__name__})")
        return ""
