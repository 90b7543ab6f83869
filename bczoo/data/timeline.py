"""What is held when, as a strip under a video: ``bczoo data view``.

Place in the pipeline: :mod:`bczoo.data.view` draws a frame and the action that answers it; this draws what comes before
and after, so that a press of one step, a key that is stuck or actions that lie a step off can be seen::

              2 s before the frame            2 s after it
    w         ##########          ####|################        filled: held in that step
    LeftShift                         |##
    fire      #   #   #   #           #   #   #                a press of one step
    mouse_dx  ^^^^vvv                 |^^^^^                   above its line where it is positive
                                      the frame: what begins here was decided after seeing it

Outlines are what an expert wanted where something else was done. Steps whose action nobody knows are dark, a policy's
own and those under noise have a line above them.

Shape legend: n annotations of a recording, K rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bczoo.data.recording import LABELLED, PSEUDO, SYSTEM, UNKNOWN, action_values, known_action
from bczoo.games.render import BACK, BAR, CAP, DIM, EDGE, LIT, MOUSE_BUTTONS, TEXT

SECONDS = 2.0  # shown on each side of the frame
ROWS = 8  # names that have one, the most frequent ones
ROW, TOP, NAMES = 16, 8, 90  # pixels: height of a row, of the line of who acts, width of the names
LONGEST = 11  # characters of a name
COLOURS = {SYSTEM: DIM, LABELLED: DIM, PSEUDO: BAR}


class Timeline:
    """The inputs of a recording.

    Args:
        frames: its n annotations.
        groups: whose values are drawn.
        fps: steps per second.
    """

    def __init__(self, frames: Sequence[Any], groups: Sequence[str], fps: float) -> None:
        self._reach = max(1, round(SECONDS * fps))  # steps on each side
        n, counts = len(frames), Counter[str]()
        held: list[set[str]] = []
        wanted: dict[int, set[str]] = {}
        self._kind = np.zeros(n, np.uint8)
        numbers = {group: np.zeros(n) for group in groups if group not in ("keys", "mouse_buttons", "buttons")}
        for i, frame in enumerate(frames):
            self._kind[i], action = known_action(frame)
            held.append(set())
            if self._kind[i] == UNKNOWN:
                continue
            values = action_values(action, groups)
            held[i] = _names(values)
            if self._kind[i] == LABELLED:
                wanted[i] = _names(action_values(frame.expert_action, groups))
            counts.update(held[i] | wanted.get(i, set()))
            for group, row in numbers.items():
                row[i] = values[group]
        self.names = [name for name, _ in counts.most_common(ROWS)]
        self._held = np.array([[name in now for name in self.names] for now in held], bool).reshape(n, len(self.names))
        self._wanted = self._held.copy()
        for i, now in wanted.items():
            self._wanted[i] = [name in now for name in self.names]
        self._moved = {group: _scaled(row) for group, row in numbers.items() if row.any()}

    @property
    def height(self) -> int:
        """Of the strip, in pixels; even, as video encoders need it."""
        return 2 * TOP + ROW * max(1, len(self.names) + len(self._moved))

    def draw(self, frame: int, width: int) -> np.ndarray:
        """The strip (height, width, 3), uint8, as it is at a frame."""
        image = Image.new("RGB", (width, self.height), BACK)
        pen, font = ImageDraw.Draw(image), ImageFont.load_default(11)
        a_step = (width - NAMES) / (2 * self._reach)
        now = NAMES + self._reach * a_step

        def place(step: int) -> float:
            return now + (step - frame) * a_step

        first, last = max(0, frame - self._reach), min(len(self._kind) - 1, frame + self._reach)
        for step in range(first, last):  # whose action annotation step + 1 holds
            kind, left, right = int(self._kind[step + 1]), place(step), place(step + 1) - 1
            if kind == UNKNOWN:
                pen.rectangle([left, TOP, right, self.height - TOP], CAP)
            elif kind in COLOURS:
                pen.rectangle([left, 2, right, 4], COLOURS[kind])
            for row in range(len(self.names)):
                top = TOP + row * ROW
                held, wanted = self._held[step + 1, row], self._wanted[step + 1, row]
                if held:
                    pen.rectangle([left, top + 3, right, top + ROW - 4], LIT)
                if wanted != held:
                    pen.rectangle([left, top + 2, right, top + ROW - 3], None, TEXT)
            for row, moved in enumerate(self._moved.values(), len(self.names)):
                middle = TOP + row * ROW + ROW / 2
                there = middle - moved[step + 1] * (ROW / 2 - 1)
                pen.rectangle([left, min(middle, there), right, max(middle, there)], BAR)
        for row, name in enumerate([*self.names, *self._moved]):
            middle = TOP + row * ROW + ROW / 2
            pen.line([NAMES, middle + ROW / 2, width, middle + ROW / 2], EDGE)
            pen.text((6, middle), " ".join(name.split())[:LONGEST], DIM, font, "lm")
        pen.line([now, 0, now, self.height], TEXT, 2)
        return np.asarray(image)


def _names(values: dict[str, Any]) -> set[str]:
    """What is held, of all groups."""
    buttons = {own: f"{name} button" for own, name in MOUSE_BUTTONS}
    held = {name for group in ("keys", "buttons") for name in values.get(group, ())}
    return held | {buttons.get(own, f"button {own}") for own in values.get("mouse_buttons", ())}


def _scaled(numbers: np.ndarray) -> np.ndarray:
    """Motions (n,) from -1 to 1, where 1 is the largest one that is not rare."""
    largest = np.quantile(np.abs(numbers[numbers != 0]), 0.95)
    return np.clip(numbers / largest, -1, 1)
