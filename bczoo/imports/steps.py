"""Frames and events of any times, cut into steps of one rate.

Place in the pipeline: `convert.py` writes the steps that are made here; every format goes this way.

Step k begins at ``start + k / fps``, where start is the time of the first frame. It shows the newest frame that there
was then, never one that came later. Its action is what the player did from then until the next step begins, so that no
step is shown what its own action led to::

    frames    A        B   C                          D         by their own times
    events      w down      w up   e tapped   mouse +3 +4
    steps     |0        |1        |2        |3        |4
    shows      A         B         C         C         C        the newest frame at the step's begin
    keys       w         w         e         -         -        held then, or pressed before the next step
    mouse      0         0         0         7         0        added up

A key that is pressed and released within a step is held in that step, and so no press is lost. The last step, which
ends after the recording does, has no known action.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bczoo.core.actions import Values
from bczoo.data.errors import RecordingError
from bczoo.imports.session import (
    GAMEPAD,
    MOTIONS,
    POSITIONS,
    STICKS_PRESSED,
    Event,
    Picture,
    Session,
    Stream,
    group_of,
    in_order,
)

SLACK_S = 1e-3  # by which a frame may come late; containers round times to milliseconds
SAME_S = 1e-6  # seconds that sums of fractions may differ by
LONGEST_GAP_S = 600.0  # between two frames; a longer one is a broken clock
FURTHEST = 1e6  # pixels of a motion; more is damage
STATE = (*MOTIONS, *POSITIONS)


class Step(NamedTuple):
    """One step.

    Args:
        frame: (H, W, 3) uint8, RGB.
        values: what the player did, by action group; None where nobody knows.
        text: the instruction that holds.
        age: seconds since the frame was taken.
    """

    frame: np.ndarray
    values: Values | None
    text: str | None
    age: float


def cut(session: Session, fps: float, where: str | Path) -> Iterator[Step]:
    """The steps of a recording, in order.

    Args:
        session: the recording.
        fps: steps per second.
        where: its file or folder, for errors.

    Raises:
        RecordingError: there is no frame, their times go back or jump, or an event holds no finite number.
    """
    inputs = None if session.events is None else _Inputs(session.events, where)
    texts = sorted(session.texts, key=itemgetter(0))
    times = [time for time, _ in texts]
    picture: Picture | None = None
    array = np.zeros((0, 0, 3), np.uint8)
    for begin, end, known, taken, shown in _shown(session, fps, where):
        if shown is not picture:
            picture, array = shown, shown() if callable(shown) else shown
        values = inputs.during(begin, end) if inputs is not None else None
        if not known or any(a < end - SAME_S and begin < b - SAME_S for a, b in session.unknown):
            values = None
        holding = bisect_left(times, begin + SAME_S) - 1
        yield Step(array, values, texts[holding][1] if holding >= 0 else None, max(begin - taken, 0.0))


def _shown(session: Session, fps: float, where: str | Path) -> Iterator[tuple[float, float, bool, float, Picture]]:
    """Begin and end of every step, whether its action is known, and time and picture of the frame that it shows."""
    frames = iter(session.frames)
    if (first := next(frames, None)) is None:
        raise RecordingError(where, "there is no frame")
    start, step, known = first[0], 0, session.end
    taken, picture = first
    last = first  # the frame that the step before shows
    for time, following in frames:
        if not -SAME_S <= time - taken <= LONGEST_GAP_S:  # nor is NaN a time
            raise RecordingError(
                where, f"the time of a frame is {time - start:.3f} s, that of the one before {taken - start:.3f} s"
            )
        while start + step / fps < time - SLACK_S:
            if step:
                end = start + step / fps
                yield start + (step - 1) / fps, end, known is None or end <= known + SLACK_S, *last
            last, step = (taken, picture), step + 1
        taken, picture = time, following
    known = taken if known is None else known
    stop = max(taken, known)
    if not stop - taken <= LONGEST_GAP_S:
        raise RecordingError(where, f"it ends {stop - taken:.0f} s after its last frame")
    while (begin := start + step / fps) < stop - SLACK_S or begin <= taken + SLACK_S:
        if step:
            yield start + (step - 1) / fps, begin, begin <= known + SLACK_S, *last
        last, step = (taken, picture), step + 1
    yield start + (step - 1) / fps, begin, begin <= known + SLACK_S, *last


class _Inputs:
    """What the player does, from step to step."""

    def __init__(self, events: Sequence[Event] | Stream, where: str | Path) -> None:
        firsts: dict[str, Event] = {}
        for event in in_order(events):
            if not (math.isfinite(event.time) and abs(event.value) <= FURTHEST):  # nor is NaN
                raise RecordingError(where, f"{event.name} is {event.value:g} at {event.time:g} s")
            firsts.setdefault(event.name, event)
        self._events = iter(in_order(events))
        self._next = next(self._events, None)
        self._groups = _groups(firsts)
        self._held = {name for name, event in firsts.items() if not event.value and name not in STATE}
        self._positions = dict.fromkeys(POSITIONS, 0.0)
        self._rest = dict.fromkeys(MOTIONS, 0.0)  # parts of pixels that are still to be told

    def during(self, begin: float, end: float) -> Values:
        """What is held, moved and steered from ``begin`` to ``end``, by action group."""
        self._pass(begin - SAME_S)
        held, pressed = set(self._held), set()
        sums = dict.fromkeys(MOTIONS, 0.0)
        areas, since = dict.fromkeys(POSITIONS, 0.0), dict.fromkeys(POSITIONS, begin)
        while (event := self._next) is not None and event.time < end - SAME_S:
            name = event.name
            if name in MOTIONS:
                sums[name] += event.value
            elif name in POSITIONS:
                areas[name] += self._positions[name] * (event.time - since[name])
                since[name] = event.time
            elif event.value:
                held.add(name)
                pressed.add(name)
            elif event.time <= begin + SAME_S and name not in pressed:  # released as the step begins
                held.discard(name)
            self._apply(event)
        means = {n: (areas[n] + self._positions[n] * (end - since[n])) / (end - begin) for n in POSITIONS}
        return self._values(held, sums, means)

    def _pass(self, until: float) -> None:
        """Keep account of what happened before ``until``, which no step has as its action."""
        while (event := self._next) is not None and event.time < until:
            self._apply(event)

    def _apply(self, event: Event) -> None:
        if event.name in POSITIONS:
            self._positions[event.name] = event.value
        elif event.name not in MOTIONS:
            (self._held.add if event.value else self._held.discard)(event.name)
        self._next = next(self._events, None)

    def _values(self, held: Iterable[str], sums: dict[str, float], means: dict[str, float]) -> Values:
        values: Values = {name: [] for name in ("keys", "mouse_buttons", "buttons") if name in self._groups}
        for name in self._groups.intersection(MOTIONS):
            exact = sums[name] + self._rest[name]
            values[name] = round(exact)
            self._rest[name] = exact - values[name]
        values |= {name: means[name] for name in POSITIONS if name in self._groups}
        for name in sorted(held):
            if name in STICKS_PRESSED:
                values[name] = True
            else:
                group, own = group_of(name)
                values[group].append(own)
        return values


def _groups(names: Iterable[str]) -> set[str]:
    """The action groups that a recording holds: keyboard and mouse, a gamepad, or both."""
    names = set(names)
    pad = {"buttons", *POSITIONS} if names & set(GAMEPAD) else set()
    desk = {"keys", "mouse_buttons", *MOTIONS} if names - set(GAMEPAD) or not pad else set()
    return pad | desk
