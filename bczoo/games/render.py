"""A frame with what the player pressed drawn beside it, for videos and web pages.

Place in the pipeline: takes a frame and the :class:`~bczoo.core.actions.Decision` that answers it, and returns a
larger
frame: the game on the left, a panel on the right with keys as caps that light up, the mouse, gamepad buttons
and sticks, and, where a policy decided, the probabilities that it drew from.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bczoo.core.actions import ActionSpace, Decision, HeldGroup, SwitchGroup

BACK, CAP, EDGE, TEXT, DIM = (22, 24, 30), (44, 48, 58), (70, 76, 90), (235, 238, 245), (140, 147, 162)
LIT, INK, BAR = (255, 196, 61), (30, 24, 8), (86, 148, 240)
MOUSE_BUTTONS = (("0", "left"), ("2", "middle"), ("1", "right"))  # from left to right on the mouse
LETTERS_SHOWN = "wasd"
UNIT = 384  # the panel is drawn for this height and scaled to others
BARS = 5  # most likely choices to show
CAPS = 4  # further keys to show, beside w, a, s and d
LONGEST = 120  # characters of a text to draw


def render_decision(
    frame: np.ndarray,
    decision: Decision,
    caption: str | None = None,
    size: int = UNIT,
    space: ActionSpace | None = None,
) -> np.ndarray:
    """The frame, scaled up, with a panel that shows the decision.

    Args:
        frame: uint8 (height, width, 3).
        decision: of the player, after seeing the frame; keyboard and mouse, or gamepad.
        caption: a line under the frame.
        size: height of the result in pixels, without the caption.
        space: names the choices of ``decision.probabilities``; the reference keyboard and mouse if left out.

    Returns:
        uint8 (height, width, 3), height and width even, as video encoders need it.
    """
    scale = size / UNIT
    height = size + size % 2
    width = _even(frame.shape[1] * height / frame.shape[0])
    panel = _even(250 * scale)
    footer = _even(26 * scale) if caption else 0
    image = Image.new("RGB", (width + panel, height + footer), BACK)
    enlarge = Image.Resampling.NEAREST if height >= 2 * frame.shape[0] else Image.Resampling.HAMMING
    image.paste(Image.fromarray(frame).resize((width, height), enlarge), (0, 0))
    pen = _Pen(ImageDraw.Draw(image), width, 0, scale)
    if "keys" in decision.values or "mouse_dx" in decision.values:
        _draw_keyboard(pen, decision)
        _draw_mouse(pen, decision)
        _draw_keyboard_probabilities(pen, decision, space or ActionSpace.keyboard_mouse())
    else:
        _draw_gamepad(pen, decision)
    if caption:
        _Pen(pen.draw, 0, height, scale).text(10, 13, caption, 13, TEXT, "lm")
    return np.asarray(image)


@dataclass(frozen=True)
class Choice:
    """A name of a group, how likely it is in any token of a step, and whether it is held now."""

    label: str
    probability: float
    held: bool


def likeliest(group: HeldGroup | SwitchGroup, probabilities: np.ndarray, held: Sequence[str]) -> list[Choice]:
    """What a group's probabilities say of every name, the likeliest first.

    Args:
        group: keys, mouse buttons or switches.
        probabilities: (tokens, choices) of this group.
        held: names that are held; of a held group, "none" counts as held if there are none.
    """
    tokens = np.asarray(probabilities, np.float64)
    if isinstance(group, SwitchGroup):
        likely = tokens[:, 1]
    else:
        likely = np.minimum(tokens.sum(axis=0), 1.0)
        likely[0] = tokens[0, 0]  # nothing is held if the first token says so
    buttons = dict(MOUSE_BUTTONS) if group.name == "mouse_buttons" else {}
    choices = []
    for i in np.argsort(-likely, kind="stable"):
        name = group.names[i]
        none = isinstance(group, HeldGroup) and i == 0
        label = "none" if none else buttons.get(name, name)
        choices.append(Choice(label, float(likely[i]), not held if none else name in held))
    return choices


class _Pen:
    """Draws in panel units at the panel's place and scale."""

    def __init__(self, draw: ImageDraw.ImageDraw, left: float, top: float, scale: float) -> None:
        self.draw, self.left, self.top, self.scale = draw, left, top, scale

    def at(self, *xy: float) -> list[float]:
        return [(self.left, self.top)[i % 2] + v * self.scale for i, v in enumerate(xy)]

    def text(self, x: float, y: float, text: str, size: float, colour: Any, anchor: str = "mm") -> None:
        text = " ".join(text[:LONGEST].split())  # one line
        place = (self.left + x * self.scale, self.top + y * self.scale)
        self.draw.text(place, text, colour, _font(max(6, round(size * self.scale))), anchor)

    def box(self, x: float, y: float, w: float, h: float, fill: Any, edge: Any = None, radius: float = 5) -> None:
        self.draw.rounded_rectangle(self.at(x, y, x + w, y + h), radius * self.scale, fill, edge)

    def circle(self, x: float, y: float, r: float, fill: Any, edge: Any = None) -> None:
        self.draw.ellipse(self.at(x - r, y - r, x + r, y + r), fill, edge)

    def line(self, points: list[float], colour: Any, width: float = 1) -> None:
        self.draw.line(self.at(*points), colour, max(1, round(width * self.scale)))

    def cap(self, x: float, y: float, w: float, h: float, label: str, lit: bool, size: float = 14) -> None:
        self.box(x, y, w, h, LIT if lit else CAP, LIT if lit else EDGE)
        self.text(x + w / 2, y + h / 2, label, size, INK if lit else DIM)

    def arrow(self, x: float, y: float, dx: float, dy: float, colour: Any) -> None:
        length = math.hypot(dx, dy)
        ux, uy = dx / length, dy / length
        head = min(9.0, length)
        tip, base = (x + dx, y + dy), (x + dx - ux * head, y + dy - uy * head)
        self.line([x, y, *base], colour, 3)
        wing = head * 0.6
        corners = [*tip, base[0] - uy * wing, base[1] + ux * wing, base[0] + uy * wing, base[1] - ux * wing]
        self.draw.polygon(self.at(*corners), colour)


def _draw_keyboard(pen: _Pen, decision: Decision) -> None:
    held = set(decision.values.get("keys", []))
    for letter, x, y in (("w", 51, 14), ("a", 14, 51), ("s", 51, 51), ("d", 88, 51)):
        pen.cap(x, y, 34, 34, letter.upper(), letter in held, 16)
    others = sorted(held - set(LETTERS_SHOWN))
    if len(others) > CAPS:
        others = [*others[: CAPS - 1], f"+{len(others) - CAPS + 1}"]
    if others:  # whatever else is held
        width = (108 - 4 * (len(others) - 1)) / len(others)
        for i, name in enumerate(others):
            label = name if len(others) == 1 else _short(name)
            size = 12 if len(others) < 3 else 10
            pen.cap(14 + i * (width + 4), 91, width, 26, label[: int(1.8 * width / size)], True, size)


def _draw_mouse(pen: _Pen, decision: Decision) -> None:
    held = set(decision.values.get("mouse_buttons", []))
    x, y, w, h = 140.0, 14.0, 46.0, 71.0
    pen.box(x, y, w, h, CAP, EDGE, radius=18)
    for i, (name, _) in enumerate(MOUSE_BUTTONS):
        lit = name in held
        left, top, wide, high = (
            (x + 4, y + 5, 15, 26),
            (x + 20, y + 8, 6, 20),
            (x + 27, y + 5, 15, 26),
        )[i]
        pen.box(left, top, wide, high, LIT if lit else BACK, LIT if lit else EDGE, radius=4)
    dx, dy = float(decision.values.get("mouse_dx", 0)), float(decision.values.get("mouse_dy", 0))
    cx, cy, reach = 217.0, 45.0, 27.0
    pen.circle(cx, cy, reach, None, EDGE)
    pen.circle(cx, cy, 2, DIM)
    if dx or dy:  # logarithmic, as the bins are: 1 px is still visible and 500 px do not leave the circle
        length = math.hypot(dx, dy)
        shown = 8 + (reach - 8) * min(1.0, math.log1p(length) / math.log1p(150))
        pen.arrow(cx, cy, dx / length * shown, dy / length * shown, LIT)
    pen.text(182, 104, f"dx {dx:+.0f}  dy {dy:+.0f} px", 12, TEXT if dx or dy else DIM)


def _draw_keyboard_probabilities(pen: _Pen, decision: Decision, space: ActionSpace) -> None:
    probabilities = decision.probabilities or {}
    y = 136.0
    for group in space.groups:
        if isinstance(group, HeldGroup) and group.name in probabilities:
            rows = 3 if group.name == "mouse_buttons" else BARS
            y = _draw_choices(pen, y, group, probabilities[group.name], decision, rows)
    for name in ("mouse_dx", "mouse_dy"):
        if name in probabilities:
            chosen = decision.ids[name][0] if decision.ids else None
            _draw_distribution(pen, y, name.replace("_", " "), probabilities[name][0], chosen, 40)
            y += 58


def _draw_choices(
    pen: _Pen, y: float, group: HeldGroup, probabilities: np.ndarray, decision: Decision, rows: int
) -> float:
    """Bars of the likeliest names. Returns where to go on."""
    pen.text(14, y, group.name.replace("_", " "), 11, DIM, "lm")
    y += 11
    for choice in likeliest(group, probabilities, decision.values.get(group.name, []))[:rows]:
        colour = LIT if choice.held else TEXT
        pen.text(70, y + 6, _short(choice.label), 11, colour, "rm")
        pen.box(76, y + 1, 124, 10, CAP, radius=2)
        if choice.probability > 0.01:
            pen.box(76, y + 1, 124 * choice.probability, 10, LIT if choice.held else BAR, radius=2)
        pen.text(237, y + 6, f"{100 * choice.probability:.0f} %", 11, colour, "rm")
        y += 14
    return y + 8


def _draw_distribution(
    pen: _Pen, y: float, title: str, probabilities: np.ndarray, chosen: int | None, high: float
) -> None:
    """Bars over all bins of a number, from the most negative to the most positive one."""
    pen.text(14, y, title, 11, DIM, "lm")
    values = np.asarray(probabilities, np.float64)
    floor, wide = y + 8 + high, 222 / len(values)
    pen.line([14, floor, 236, floor], EDGE)
    middle = 14 + 222 / 2
    pen.line([middle, floor - high, middle, floor], CAP)
    for i, p in enumerate(values):
        tall = high * float(np.sqrt(p))  # the square root keeps unlikely bins visible
        x = 14 + i * wide
        if tall >= 0.5:
            pen.box(x + 1, floor - tall, wide - 2, tall, LIT if i == chosen else BAR, radius=0)
        if i == chosen:
            pen.line([x + 1, floor + 3, x + wide - 1, floor + 3], LIT, 2)


def _draw_gamepad(pen: _Pen, decision: Decision) -> None:
    held = set(decision.values.get("buttons", []))
    pen.cap(18, 14, 80, 20, "LB", "left_bumper" in held, 11)
    pen.cap(152, 14, 80, 20, "RB", "right_bumper" in held, 11)
    for name, x, y in (("up", 46, 46), ("left", 22, 70), ("right", 70, 70), ("down", 46, 94)):
        pen.cap(x, y, 24, 24, "", f"dpad_{name}" in held)
    for name, label, x, y in (
        ("north", "N", 192, 58),
        ("west", "W", 166, 82),
        ("east", "E", 218, 82),
        ("south", "S", 192, 106),
    ):
        lit = name in held
        pen.circle(x, y, 13, LIT if lit else CAP, LIT if lit else EDGE)
        pen.text(x, y, label, 12, INK if lit else DIM)
    pen.cap(102, 62, 46, 16, "select", "select" in held, 9)
    pen.cap(102, 86, 46, 16, "start", "start" in held, 9)
    for side, middle in (("left", 62.0), ("right", 188.0)):
        sx, sy = (max(-1.0, min(1.0, float(decision.values.get(f"{side}_stick_{axis}", 0.0)))) for axis in "xy")
        pen.circle(middle, 174, 36, CAP, EDGE)
        moved = math.hypot(sx, sy) > 0.1
        pen.circle(middle + 24 * sx, 174 + 24 * sy, 14, LIT if moved else EDGE)
        pen.text(middle, 222, f"{sx:+.2f}  {sy:+.2f}", 11, TEXT if moved else DIM)
    for i, axis in enumerate(("left_stick_x", "left_stick_y", "right_stick_x", "right_stick_y")):
        if decision.probabilities and axis in decision.probabilities:
            chosen = decision.ids[axis][0] if decision.ids else None
            title = axis.replace("_", " ")
            _draw_distribution(pen, 246 + 35 * i, title, decision.probabilities[axis][0], chosen, 18)


def _short(name: str) -> str:
    return {"LeftShift": "LShift", "RightShift": "RShift"}.get(name, name.replace("Arrow", ""))


def _even(value: float) -> int:
    return 2 * max(1, round(value / 2))


@functools.cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)
