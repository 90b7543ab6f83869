"""A recording as a format reads it: frames with their times, and what was pressed and moved, with its times.

Place in the pipeline: :meth:`bczoo.imports.format.Format.read` gives a :class:`Session`; `steps.py` cuts it into steps.

All times are seconds on one clock, which may start anywhere. A format whose frames and events come from different
clocks brings them together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bczoo.core.actions import GAMEPAD_BUTTONS, GAMEPAD_STICKS
from bczoo.games.bindings import MOUSE_BUTTON_NAMES

Picture = np.ndarray | Callable[[], np.ndarray]

MOTIONS = ("mouse_dx", "mouse_dy", "scroll_dx", "scroll_dy")  # what is summed over a step
POSITIONS = (*GAMEPAD_STICKS, "left_trigger", "right_trigger")  # what has a value at any time
STICKS_PRESSED = ("left_stick_pressed", "right_stick_pressed")
GAMEPAD = (*GAMEPAD_BUTTONS, *POSITIONS, *STICKS_PRESSED)
_BUTTONS = {flat: name for name, flat in MOUSE_BUTTON_NAMES.items()} | {"mouse_x1": "3", "mouse_x2": "4"}


class Event(NamedTuple):
    """Something that was pressed, released or moved.

    Attributes:
        time: seconds.
        name: of a key (``w``, ``LeftShift``), of a mouse button (``mouse_left``, ``mouse_right``, ``mouse_middle``,
            ``mouse_x1``, ``mouse_x2``), of a gamepad's button (``south``, ``left_stick_pressed``), of a motion or of a
            position.
        value: 1 for pressed and 0 for released. Motions (``mouse_dx`` and ``mouse_dy`` in pixels to the right and
            downwards, ``scroll_dx`` and ``scroll_dy`` in notches to the right and upwards) add up. Positions
            (``left_stick_x``, from -1 to 1; ``left_trigger``, from 0 to 1) hold until the next one.
    """

    time: float
    name: str
    value: float


@dataclass(frozen=True)
class Stream:
    """Events of a recording that may be too long to hold them all: they are read anew whenever they are asked for.

    Args:
        read: the events, in order of time.
    """

    read: Callable[[], Iterator[Event]]

    def __iter__(self) -> Iterator[Event]:
        return self.read()


def in_order(events: Sequence[Event] | Stream) -> Iterable[Event]:
    """Events in order of time; those of the same time as they were."""
    return events if isinstance(events, Stream) else sorted(events, key=lambda event: event.time)


@dataclass
class Session:
    """One recording as it was made.

    Args:
        frames: time and picture of every frame, in order of time: a (H, W, 3) uint8 array in RGB, or a function that
            gives it, which is called for the frames that a step shows and for no other.
        events: what the player did; None where nobody knows, as in a video from elsewhere. A list in any order, those
            of the same time in the order in which they happened; or a :class:`Stream`, which need not fit into memory.
            A name whose first event is its release was held from the start.
        texts: since when which instruction holds; None ends one.
        fps: steps per second, of formats that hold one action a frame; None for events of any time.
        end: until when it is known what the player did; until the last frame if left out.
        unknown: spans, from and to, in which it is not known.
        env: name of the game.
        env_subtype: map or level.
        user: who played.
        task: what the player was to do.
        video: the file whose frames these are, all of them and as they are, if there is one.
        notes: what the format has put right or left out, for the report; reading the frames may add to them.
    """

    frames: Iterable[tuple[float, Picture]]
    events: Sequence[Event] | Stream | None = None
    texts: Sequence[tuple[float, str | None]] = ()
    fps: float | None = None
    end: float | None = None
    unknown: Sequence[tuple[float, float]] = ()
    env: str = ""
    env_subtype: str = ""
    user: str = ""
    task: str = ""
    video: Path | None = None
    notes: list[str] = field(default_factory=list)


def group_of(name: str) -> tuple[str, str]:
    """The action group of something that is held, and its name there: ``mouse_left`` is "0" of ``mouse_buttons``."""
    if name in _BUTTONS:
        return "mouse_buttons", _BUTTONS[name]
    return ("buttons", name) if name in GAMEPAD_BUTTONS else ("keys", name)


def input_of(told: str) -> str | None:
    """The input that a report calls ``keys:w``, ``mouse_buttons:0`` or ``mouse_dx``; None where it is none."""
    group, _, own = told.partition(":")
    if group == "mouse_buttons":
        return {other: name for name, other in _BUTTONS.items()}.get(own)
    if group in ("keys", "buttons"):
        return own if own and group_of(own)[0] == group else None
    return told if told in MOTIONS or told in POSITIONS else None


def held_events(times: Iterable[float], held: Iterable[Iterable[str]]) -> list[Event]:
    """Events of a format that says at every frame what is held then.

    Args:
        times: of the frames.
        held: names at each of them; they are held until the next frame.
    """
    events: list[Event] = []
    before: set[str] = set()
    for time, names in zip(times, held, strict=True):
        now = set(names)
        events += [Event(time, name, 0) for name in sorted(before - now)]
        events += [Event(time, name, 1) for name in sorted(now - before)]
        before = now
    return events
