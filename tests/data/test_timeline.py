"""The timeline under a video: what is held when, and that it begins at the frame that it answers."""

from __future__ import annotations

import numpy as np
from synthetic import SIZE, numbered

from bczoo.data.recording import RecordingWriter, read_annotation
from bczoo.data.timeline import NAMES, ROW, TOP, Timeline
from bczoo.games.render import BAR, CAP, LIT, TEXT

GROUPS = ("keys", "mouse_buttons", "mouse_dx")
WIDTH = NAMES + 80 * 8  # of 40 steps on each side, 8 pixels each


def timeline(folder, steps):
    with RecordingWriter(folder, size=SIZE) as writer:
        for i, who in enumerate(steps):
            writer.add(numbered(i), **who)
    return Timeline(read_annotation(folder).frame_annotations, GROUPS, 20.0)


def colours(strip, row):
    """Of the steps from three before the frame on, at the top, middle and bottom of a row."""
    left = NAMES + 40 * 8
    middle = TOP + row * ROW + ROW // 2
    return [
        [tuple(strip[y, left + 8 * i + 4].tolist()) for i in range(-3, 8)] for y in (middle - 5, middle, middle + 5)
    ]


def test_a_bar_begins_at_the_frame_that_it_answers(tmp_path):
    steps = [
        {"user": {"keys": ["w"] if 4 <= i < 7 else [], "mouse_buttons": ["0"] if i == 5 else []}} for i in range(12)
    ]
    drawn = timeline(tmp_path / "rec", steps)
    assert drawn.names == ["w", "left button"]
    strip = drawn.draw(4, WIDTH)
    assert strip.shape == (drawn.height, WIDTH, 3) and drawn.height % 2 == 0
    held = [[colour == LIT for colour in colours(strip, row)[1]] for row in (0, 1)]
    assert held == [[False] * 3 + [True] * 3 + [False] * 5, [False] * 4 + [True] + [False] * 6]
    assert tuple(strip[2, NAMES + 40 * 8].tolist()) == TEXT, "the line of the frame"
    later = drawn.draw(6, WIDTH)
    assert [colour == LIT for colour in colours(later, 0)[1]] == [False, True, True, True] + [False] * 7


def test_motion_goes_up_and_down_and_what_nobody_knows_is_dark(tmp_path):
    steps = [{"user": {"mouse_dx": dx}} for dx in (10, -10)] + [{}, {"user": {"keys": ["a"]}}]
    drawn = timeline(tmp_path / "rec", steps)
    up, _, down = colours(drawn.draw(0, WIDTH), 1)
    assert [colour == BAR for colour in up[3:5]] == [True, False]
    assert [colour == BAR for colour in down[3:5]] == [False, True]
    assert up[5] == CAP != up[4]


def test_what_an_expert_wanted_is_an_outline(tmp_path):
    steps = [{"system": {"keys": ["a"]}, "expert": {"keys": ["d"]}}, {"user": {"keys": ["a"]}}]
    drawn = timeline(tmp_path / "rec", steps)
    strip = drawn.draw(0, WIDTH)
    a, d = (colours(strip, drawn.names.index(name))[1][3] for name in "ad")
    assert a == LIT and d != LIT
    top = TOP + drawn.names.index("d") * ROW + 2
    assert tuple(strip[top, NAMES + 40 * 8 + 4].tolist()) == TEXT


def test_hundreds_of_names_and_no_name_at_all(tmp_path):
    many = timeline(tmp_path / "many", [{"user": {"keys": [f"key {i}\n" * 9 for i in range(300)]}}])
    assert len(many.names) == 8
    none = timeline(tmp_path / "none", [{}])
    assert np.isfinite(none.draw(0, 300)).all() and none.height == 2 * TOP + ROW
