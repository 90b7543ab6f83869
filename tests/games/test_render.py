"""The overlay: what is pressed can be seen, for keyboard, mouse and gamepad."""

from __future__ import annotations

import numpy as np
import pytest

from bczoo.core.actions import ActionSpace, Decision
from bczoo.games import render_decision
from bczoo.games.render import LIT

FRAME = np.full((60, 80, 3), 90, np.uint8)
NEUTRAL = {"keys": [], "mouse_buttons": [], "mouse_dx": 0, "mouse_dy": 0}
PAD = {"buttons": [], **{f"{s}_stick_{a}": 0.0 for s in ("left", "right") for a in "xy"}}


def lit(values: dict, **more) -> np.ndarray:
    """Where the panel shows the colour of what is pressed."""
    drawn = render_decision(FRAME, Decision(values, **more))
    return (drawn == LIT).all(axis=-1)


def test_nothing_is_lit_when_nothing_is_pressed():
    assert not lit(NEUTRAL).any()
    assert not lit(PAD).any()


@pytest.mark.parametrize(
    "change",
    [
        *({"keys": [k]} for k in ("w", "a", "s", "d", "Space", "LeftShift", "4")),
        *({"mouse_buttons": [b]} for b in "012"),
        *({"mouse_dx": dx} for dx in (1, -1, 500)),
        {"mouse_dy": 3},
    ],
    ids=str,
)
def test_every_input_lights_something_of_its_own(change):
    mask = lit({**NEUTRAL, **change})
    assert mask.sum() > 20
    for other in ({"keys": ["w"]}, {"mouse_buttons": ["0"]}, {"mouse_dx": -9}):
        if other != change:
            assert (lit({**NEUTRAL, **other}) != mask).any()
    assert not mask[:, :512].any(), "the game's own picture stays clean"


def test_w_is_above_s_and_the_arrow_points_where_the_mouse_goes():
    rows = {k: np.nonzero(lit({**NEUTRAL, "keys": [k]}))[0].mean() for k in "ws"}
    assert rows["w"] < rows["s"]
    columns = {dx: np.nonzero(lit({**NEUTRAL, "mouse_dx": dx}))[1].mean() for dx in (-40, 40)}
    assert columns[-40] + 10 < columns[40]


@pytest.mark.parametrize("name", ["south", "dpad_up", "left_bumper", "start"])
def test_gamepad_buttons_and_sticks(name):
    assert lit({**PAD, "buttons": [name]}).sum() > 20
    left, right = lit({**PAD, "left_stick_x": -0.8}), lit({**PAD, "right_stick_x": 0.8})
    assert np.nonzero(left)[1].mean() < np.nonzero(right)[1].mean()


def test_probabilities_are_drawn_and_the_choice_is_marked():
    space = ActionSpace.keyboard_mouse()
    values = {**NEUTRAL, "keys": ["w"], "mouse_dx": 38}
    ids = space.encode(**values)
    flat = {g.name: np.full((g.tokens, g.choices), 1 / g.choices) for g in space.groups}
    sure = {g.name: np.eye(g.choices)[ids[g.name]] for g in space.groups}
    pictures = [render_decision(FRAME, Decision(values, ids, p)).astype(int)[130:, 512:] for p in (None, flat, sure)]
    assert (pictures[0] != pictures[1]).any() and (pictures[1] != pictures[2]).any()
    assert (lit(values, ids=ids, probabilities=sure)[130:].sum()) > 500


@pytest.mark.parametrize(("shape", "size"), [((60, 80), 384), ((33, 47), 101), ((240, 320), 192)])
def test_sizes_are_even_as_videos_need_it(shape, size):
    frame = np.zeros((*shape, 3), np.uint8)
    for caption in (None, "doom/basic"):
        drawn = render_decision(frame, Decision(NEUTRAL), caption, size)
        assert drawn.dtype == np.uint8 and drawn.shape[0] % 2 == drawn.shape[1] % 2 == 0
        assert drawn.shape[0] >= size
    assert (drawn[-20:] > 150).any(), "the caption is legible"


def test_many_keys_and_long_names_stay_in_their_place():
    few, many = lit({**NEUTRAL, "keys": ["Space"]}), lit({**NEUTRAL, "keys": [f"key {i}" * 30 for i in range(300)]})
    assert many[:130].sum() > 20
    assert (few[130:] == many[130:]).all(), "below the keys nothing changes"
    assert np.nonzero(many)[1].max() < 512 + 130, "nor beside them"
