"""How the steps of an environment are brought to the rate of decisions."""

from __future__ import annotations

import warnings

import gymnasium
import numpy as np
import pytest

from bczoo.core.errors import UserError
from bczoo.games import WAIT, DiscreteBindings, Game
from bczoo.games.pace import Pace, own_rate, pace_of

BINDINGS = DiscreteBindings({"a": 1}, none=0)


class Clock(gymnasium.Env):
    """Shows how often it was stepped; a step is worth one point, and an episode ends after ``length`` steps."""

    def __init__(self, render_fps=None, length=100) -> None:
        self.metadata = {"render_modes": []} | ({"render_fps": render_fps} if render_fps else {})
        self.length = length

    def reset(self, *, seed=None, options=None):
        self.actions = []
        return self.frame(), {"steps": 0}

    def step(self, action):
        self.actions.append(action)
        return self.frame(), 1.0, len(self.actions) >= self.length, False, {"steps": len(self.actions)}

    def frame(self):
        return np.full((40, 40, 3), len(self.actions), np.uint8)


def opened(render_fps=None, length=100, bindings=BINDINGS, **fields):
    return Game("clock", lambda: Clock(render_fps, length), bindings, **fields).open()


def rewards(running, decisions=6) -> list[float]:
    running.reset(seed=0)
    return [running.step({"keys": ["a"]})[1] for _ in range(decisions)]


@pytest.mark.parametrize(
    ("render_fps", "fields", "steps"),
    [
        (50, {}, [2, 3, 2, 3, 2, 3]),
        (60, {}, [3] * 6),
        (30, {}, [1, 2, 1, 2, 1, 2]),
        (35, {}, [1, 2, 2, 2, 1, 2]),
        (20, {}, [1] * 6),
        (50, {"fps": 50}, [1] * 6),
        (10, {}, [1] * 6),
        (None, {}, [1] * 6),
        (None, {"env_fps": 50}, [2, 3, 2, 3, 2, 3]),
        (50, {"frame_skip": 4}, [4] * 6),
        (50, {"frame_skip": 1}, [1] * 6),
        (10, {"env_fps": 60}, [3] * 6),
    ],
)
def test_an_action_is_held_until_the_next_decision_and_rewards_are_added(render_fps, fields, steps):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with opened(render_fps, **fields) as running:
            assert rewards(running) == steps
            assert running.env.actions == [1] * sum(steps)


def test_the_schedule_keeps_the_average_and_starts_anew_with_every_episode():
    pace = Pace(50 / 35)
    assert sum(pace.steps(i) for i in range(35)) == 50
    thirds = Pace(5 / 3)
    assert sum(thirds.steps(i) for i in range(300)) == 500
    with opened(50) as running:
        assert rewards(running, 3) == rewards(running, 3) == [2, 3, 2]


def test_the_frame_is_the_last_one_and_an_end_cuts_the_steps_short():
    with opened(50, length=4) as running:
        running.reset(seed=0)
        frame, reward, done, info = running.step({})
        assert (frame[0, 0, 0], reward, done, info["steps"]) == (2, 2, False, 2)
        frame, reward, done, info = running.step({})
        assert (frame[0, 0, 0], reward, done, info["steps"]) == (4, 2, True, 4)


def test_the_time_limit_counts_decisions():
    with opened(50, time_limit_s=0.25) as running:
        running.reset(seed=0)
        assert [running.step({})[2] for _ in range(5)] == [False] * 4 + [True]


def test_an_environment_that_waits_is_not_stepped():
    with opened(50, bindings=DiscreteBindings({"a": 1}, none=WAIT), time_limit_s=0.2) as running:
        first, _ = running.reset(seed=0)
        frame, reward, done, info = running.step({"keys": []})
        assert (frame == first).all() and (reward, done, info) == (0, False, {"steps": 0})
        assert running.step({"keys": ["a"]})[1] == 3 and running.env.actions == [1, 1, 1]
        running.step({})
        assert running.step({})[2], "time passes for the player"


@pytest.mark.parametrize(
    ("render_fps", "fields", "told"),
    [
        (
            50,
            {"env_fps": 30},
            r"'clock' says env_fps=30.*environment says 50 .*render_fps.*0.60 times.*Leave env_fps out",
        ),
        (15, {}, r"'clock' has fps=20.*runs at 15 .*1.33 times.*Give the Game fps=15, or frame_skip=1"),
    ],
)
def test_a_rate_that_contradicts_the_environment_s_is_told(render_fps, fields, told):
    with pytest.warns(UserWarning, match=told):
        opened(render_fps, **fields)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"env_fps": 10}, r"fps=20, and its environment only env_fps=10.*fps=10, or frame_skip=1"),
        ({"env_fps": 40, "frame_skip": 2}, "env_fps and frame_skip, which say the same thing"),
        ({"frame_skip": 0}, "frame_skip of game 'clock' must be a whole number"),
        ({"frame_skip": 1.5}, "frame_skip of game 'clock' must be a whole number"),
        ({"env_fps": float("nan")}, "env_fps of game 'clock' must be a number"),
        ({"fps": 0}, "fps of game 'clock' must be a number"),
    ],
)
def test_rates_that_cannot_be_are_refused(fields, told):
    with pytest.raises(UserError, match=told):
        Game("clock", Clock, BINDINGS, **fields)


@pytest.mark.parametrize("metadata", [None, {}, {"render_fps": None}, {"render_fps": "50"}, {"render_fps": 0}])
def test_an_environment_may_say_no_rate(metadata):
    env = Clock()
    env.metadata = metadata
    assert own_rate(env) is None and pace_of(Game("clock", Clock, BINDINGS), env) == Pace()


def test_doom_is_stepped_once_a_decision():
    from bczoo.games.doom import FPS, DoomEnv

    assert DoomEnv.metadata["render_fps"] == FPS == Game("doom", DoomEnv, BINDINGS).fps
