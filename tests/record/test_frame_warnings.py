"""Recordings whose pictures cannot have shown the game are told."""

from __future__ import annotations

import warnings

import gymnasium
import numpy as np
import pytest

from bczoo.games import DiscreteBindings, Game
from bczoo.record.command import record


class Pictures(gymnasium.Env):
    """Shows what ``picture(step)`` returns."""

    def __init__(self, picture) -> None:
        self.picture = picture

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.picture(0), {}

    def step(self, action):
        self.steps += 1
        return self.picture(self.steps), 0.0, self.steps == 5, False, {}


def noise(step, size=40):
    return np.random.default_rng(step).integers(0, 256, (size, size, 3), dtype=np.uint8)


def still(step):
    return noise(0)


def black(step):
    return np.zeros((40, 40, 3), np.uint8)


def fading(step):
    return np.full((40, 40, 3), step, np.uint8)


def late(step):
    return noise(1) if step >= 3 else black(step)


def symbols(step):
    return noise(step, 7)


def warned(picture, folder, workers=1) -> list[str]:
    game = Game("pictures", lambda: Pictures(picture), DiscreteBindings({"a": 0}, none=1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        assert len(record(game, str(folder), agent="random", episodes=4, size=32, workers=workers)) == 4
    return [str(w.message) for w in caught if "'pictures'" in str(w.message)]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("picture", "told"),
    [
        (symbols, "frames have 7 x 7 px, and at least 32 are wanted"),
        (black, "all frames of an episode have one colour"),
        (fading, "all frames of an episode have one colour"),
        (still, "the picture never changed in an episode"),
    ],
)
def test_pictures_that_show_nothing_are_told_once(picture, told, workers, tmp_path):
    (text,) = warned(picture, tmp_path, workers)
    assert text.startswith(f"game 'pictures': {told}. ") and 'render_mode="rgb_array"' in text


@pytest.mark.parametrize("picture", [noise, late])
def test_others_are_not(picture, tmp_path):
    assert warned(picture, tmp_path) == []
