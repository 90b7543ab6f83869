"""OpenAI's contractor recordings of Minecraft: ``.mp4`` files of 20 frames per second, each with a ``.jsonl``.

Place in the pipeline: a format of :mod:`bczoo.imports`. Fields and defects are those of openai/Video-Pre-Training
(MIT), ``data_loader.py`` and ``run_inverse_dynamics_model.py``: line i of the ``.jsonl`` is the action that was taken
at frame i.

What has to be known of them:

* Some recordings begin with the attack button held, which lasts until the player presses it: stuck, and left out.
* Scrolling is not recorded, only that another slot of the hotbar is selected. A slot that changes while its digit is
  not pressed is told as a press of that digit, as OpenAI's loader does.
* The cursor is not in the video. While a menu is open it is drawn in at the mouse's place.
* While a menu is open, the motion of some versions of the recorder is scaled (:data:`MENU_SCALE`).
* ``tick`` jumps where a part of a recording is missing.
* The camera turns by 360 / 2400 = 0.15 degrees a pixel.
* Steps in which nothing was done are many; OpenAI learned from none of them. ``null_steps: unknown`` marks them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from bczoo.core import arguments
from bczoo.data.errors import RecordingError
from bczoo.data.reading import open_regular
from bczoo.data.video import probe
from bczoo.imports.format import Format, files_below
from bczoo.imports.frames import timed_frames
from bczoo.imports.session import Event, Picture, Session, held_events

FPS = 20.0
GAME_HEIGHT = 720  # pixels in which the mouse's place is told
MENU_SCALE = {"5.7": 0.5, "5.8": 0.5, "6.7": 2.0, "6.8": 2.0, "6.9": 2.0}  # by version, of motion in an open menu
MOST_LINE = 2**22  # characters; one holds about a thousand
ATTACK = 0
BUTTONS = {ATTACK: "mouse_left", 1: "mouse_right", 2: "mouse_middle"}
KEYS = {
    "left": "LeftArrow", "right": "RightArrow", "up": "UpArrow", "down": "DownArrow", "grave.accent": "Backquote",
    "left.win": "LeftMeta", "right.win": "RightMeta", "apostrophe": "Quote",
}  # fmt: skip
CURSOR = ((0, 0), (0, 14), (4, 11), (7, 16), (9, 15), (6, 10), (11, 10))  # corners of an arrow, in a 360-pixel frame


class Vpt(Format):
    """Minecraft of OpenAI's contractors.

    Args:
        version: of the recorder, such as 6.9; the name of the folder if left out and that is one.
        null_steps: keep, or unknown for steps without an action that nobody learns from.
    """

    name = "vpt"
    description = "OpenAI's contractor recordings of Minecraft: .mp4 files with a .jsonl beside each"

    def __init__(self, version: str = "", null_steps: str = "keep") -> None:
        arguments.one_of("null_steps", null_steps, ("keep", "unknown"))
        self.version = str(version)
        self.null_steps = null_steps

    def find(self, source: Path) -> Iterator[Path]:
        return files_below(source, ".mp4")

    def read(self, path: Path) -> Session:
        lines, n_frames, notes = _lines(path.with_suffix(".jsonl")), probe(path).n_frames, []
        if n_frames != len(lines):
            notes.append(f"{n_frames} frames and {len(lines)} actions; what has no partner is left out")
            lines = lines[:n_frames]
        version = self.version or (path.parent.name if re.fullmatch(r"\d+\.\d+", path.parent.name) else "")
        scale = MENU_SCALE.get(version, 1.0)
        try:
            buttons = _buttons(lines, notes)
            keys = _keys(lines, notes)
            times = [i / FPS for i in range(len(lines))]
            events = held_events(times, [k | b for k, b in zip(keys, buttons, strict=True)])
            for time, line in zip(times, lines, strict=True):
                mouse, by = line["mouse"], scale if line["isGuiOpen"] else 1.0
                events += [Event(time, "mouse_dx", mouse["dx"] * by), Event(time, "mouse_dy", mouse["dy"] * by)]
                events += [Event(time, "scroll_dy", mouse["dwheel"])] if mouse.get("dwheel") else []
            gaps = sum(b["tick"] - a["tick"] > 1 for a, b in pairwise(lines) if "tick" in a and "tick" in b)
            cursors = [(line["mouse"]["x"], line["mouse"]["y"]) if line["isGuiOpen"] else None for line in lines]
        except (KeyError, TypeError, AttributeError) as error:
            raise RecordingError(path, f"the .jsonl holds no actions ({type(error).__name__}: {error})") from error
        if gaps:
            notes.append(f"places where parts of the game are missing (tick jumps): {gaps}")
        acting = {round(event.time * FPS) for event in events if event.value} | _held_steps(keys, buttons)
        idle = [(t, t + 1 / FPS) for i, t in enumerate(times) if i not in acting]
        return Session(
            _frames(path, cursors),
            events,
            fps=FPS,
            end=len(lines) / FPS,
            unknown=idle if self.null_steps == "unknown" else (),
            env="minecraft",
            video=path if n_frames == len(lines) and not any(cursors) else None,
            notes=notes,
        )


def _lines(path: Path) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    try:
        with open_regular(path) as file:
            while text := file.readline(MOST_LINE):
                lines.append(json.loads(text))
    except OSError as error:
        raise RecordingError(path, f"cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise RecordingError(path, f"line {len(lines) + 1} is no JSON ({error})") from error
    if not lines:
        raise RecordingError(path, "the file is empty")
    return lines


def _buttons(lines: list[dict[str, Any]], notes: list[str]) -> list[set[str]]:
    """Mouse buttons held at every line, without an attack that is stuck."""
    stuck = lines[0]["mouse"]["newButtons"] == [ATTACK]
    held, steps = [], 0
    for i, line in enumerate(lines):
        stuck = stuck and (i == 0 or ATTACK not in line["mouse"]["newButtons"])
        steps += stuck and ATTACK in line["mouse"]["buttons"]
        held.append({BUTTONS[b] for b in line["mouse"]["buttons"] if b in BUTTONS and not (stuck and b == ATTACK)})
    if steps:
        notes.append(f"the attack button is stuck for the first {steps} steps, and left out there")
    return held


def _keys(lines: list[dict[str, Any]], notes: list[str]) -> list[set[str]]:
    """Keys held at every line, with a digit where only the hotbar tells of it."""
    held = [{_key(key) for key in line["keyboard"]["keys"]} for line in lines]
    scrolled = 0
    for i in range(1, len(lines)):
        slot, digit = lines[i].get("hotbar"), str(lines[i].get("hotbar", 0) + 1)
        if slot != lines[i - 1].get("hotbar") and digit not in held[i] | held[i - 1]:
            held[i].add(digit)
            scrolled += 1
    if scrolled:
        notes.append(f"{scrolled} times another slot of the hotbar was selected without a key, told as its digit")
    return held


def _key(name: str) -> str:
    """``key.keyboard.left.shift`` is LeftShift."""
    name = name.removeprefix("key.keyboard.")
    return KEYS.get(name) or (name if len(name) == 1 else "".join(word.capitalize() for word in name.split(".")))


def _held_steps(keys: list[set[str]], buttons: list[set[str]]) -> set[int]:
    return {i for i, (k, b) in enumerate(zip(keys, buttons, strict=True)) if k or b}


def _frames(path: Path, cursors: list[tuple[float, float] | None]) -> Iterator[tuple[float, Picture]]:
    """The frames, by number, each with the cursor if a menu was open."""
    for i, ((_, picture), place) in enumerate(zip(timed_frames(path), cursors, strict=False)):
        yield i / FPS, picture if place is None else partial(_drawn, picture, place)


def _drawn(picture: Any, place: tuple[float, float]) -> np.ndarray:
    """A picture with the cursor in it."""
    image = Image.fromarray(picture())
    x, y = (v * image.height / GAME_HEIGHT for v in place)
    corners = [(x + dx * image.height / 360, y + dy * image.height / 360) for dx, dy in CURSOR]
    ImageDraw.Draw(image).polygon(corners, fill=(255, 255, 255), outline=(0, 0, 0))
    return np.asarray(image)
