"""Games on the clock: deadlines are counted as they are missed, and nothing is pressed twice that was meant once."""

from __future__ import annotations

import pickle
import time

import numpy as np
import pytest
import tiny_game

from bczoo.core.actions import Decision
from bczoo.games import Game
from bczoo.play.episodes import play
from bczoo.play.realtime import Episode, RealTimeEnvs, RealTimeReport


class Noting(tiny_game.Catch):
    """Shows the number of the step; rewards 100 if w is held, and 1 per pixel of the mouse."""

    def reset(self, *, seed=None, options=None):
        self.step_number = 0
        return self._show(), super().reset(seed=seed)[1]

    def step(self, values):
        self.step_number += 1
        _, _, done, truncated, _ = super().step(2)
        key, motion = "w" in values.get("keys", []), values.get("mouse_dx", 0)
        return self._show(), 100.0 * key + motion, done, truncated, {}

    def _show(self):
        frame = np.zeros((4, 4, 3), np.uint8)
        frame[0, 0] = self.step_number
        return frame


def values_as_they_are(values):
    return values


class Slow(Noting):
    def step(self, values):
        time.sleep(0.06)
        return super().step(values)


class SlowAtFirst(Noting):
    def step(self, values):
        if self.step_number == 0:
            time.sleep(0.06)
        return super().step(values)


class Pressing:
    """Holds w and moves the mouse by 1 px, after thinking for ``seconds``."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.seen: list[list[int]] = []
        self.resets: list[tuple[int, int]] = []
        self.times = None

    def start(self, games: int, seed: int) -> None:
        pass

    def reset(self, row: int, seed: int) -> None:
        self.resets.append((row, seed))

    def act(self, rows, frames, infos):
        if self.times is not None:  # the clock runs
            self.seen.append([int(frame[0, 0, 0]) for frame in frames])
            self.times.add("backbone", self.seconds)
            time.sleep(self.seconds)
        return [Decision({"keys": ["w"], "mouse_buttons": [], "mouse_dx": 1, "mouse_dy": 0}) for _ in rows]


def noting(env=Noting, fps: float = 20.0, ticks: int = 12) -> Game:
    return Game("noting", env, values_as_they_are, fps=fps, time_limit_s=ticks / fps)


def test_a_player_in_time_misses_nothing():
    player = Pressing(0.0)
    played = play(noting(fps=0.5, ticks=3), player, 2, parallel=2, progress=False, realtime=True)
    report = played.realtime
    assert played.lengths == [3, 3] and played.returns == [3 * 101.0] * 2, "every action was done once"
    assert report == RealTimeReport(6, 0, 0, 0, 6)
    assert played.seconds >= 4, "two ticks after the first have to be waited for"
    assert {stage: row["n"] for stage, row in played.latency.items()} == {
        "capture": 4,
        "backbone": len(player.seen),
        "send": 4,
        "game": 6,
        "total": 4,
    }, "the first frame of an episode is not on the clock"
    assert "missed deadlines: 0 of 6 (0.0 %)" in report.summary()


def test_a_slow_player_misses_deadlines_and_its_mouse_moves_once():
    player = Pressing(3 / 20)
    played = play(noting(SlowAtFirst), player, 1, progress=False, realtime=True)
    report = played.realtime
    assert played.lengths == [12] and report.ticks == 12
    assert report.late_ticks > 0 and 12 - 2 >= report.missed_deadlines > 0, "the first tick and that after a late one"
    assert report.missed_deadlines + report.late_ticks >= 12 - report.answers > 0, "a tick in time has its own answer"
    assert report.superseded_frames == 12 - report.answers
    motion = played.returns[0] - 12 * 100
    assert 1 <= motion <= report.answers, "w is held at every tick, the mouse moves once an answer"
    numbers = [seen for (seen,) in player.seen]
    assert numbers == sorted(set(numbers)) and numbers[0] == 0, "always a newer frame"
    assert played.latency["total"]["p50"] >= 150, "thinking is part of it"
    assert played.actions_per_second < sum(played.lengths) / played.seconds


def test_a_game_that_is_too_slow_is_told_apart():
    report = play(noting(Slow, ticks=6), Pressing(0.0), 1, progress=False, realtime=True).realtime
    assert report.late_ticks == 6, "every step takes 60 ms of 50"
    assert report.missed_deadlines == 0, "the player never had time"


def test_what_an_episode_tells_does_not_grow_with_its_length(monkeypatch):
    told, news = [], RealTimeEnvs.news

    def noticed(self, rows=()):
        newest = news(self, rows)
        told.extend(one for one in newest.values() if isinstance(one, Episode))
        return newest

    monkeypatch.setattr(RealTimeEnvs, "news", noticed)
    played = [play(noting(fps=500.0, ticks=n), Pressing(0.0), 1, progress=False, realtime=True) for n in (4, 50)]
    short, long = (episode.times.stages["game"] for episode in told)
    assert (short.n, long.n) == (4, 50) and abs(len(pickle.dumps(long)) - len(pickle.dumps(short))) < 30
    assert [one.latency["game"] for one in played] == [short.summary(), long.summary()]


def test_every_episode_is_played_and_begins_with_its_seed():
    player = Pressing(0.0)
    played = play(noting(fps=100.0, ticks=5), player, 5, seed=30, parallel=2, progress=False, realtime=True)
    assert played.lengths == [5] * 5 and played.seeds == [30, 31, 32, 33, 34]
    assert sorted(seed for _, seed in player.resets[2:]) == played.seeds, "the first two again, after warming up"
    assert played.realtime.ticks == 25


def test_what_is_shown_of_a_game_is_told_step_by_step():
    steps = []
    game = noting(fps=20.0)
    played = play(game, Pressing(0.0), 1, progress=False, realtime=True, on_step=lambda *step: steps.append(step))
    assert len(steps) == played.realtime.answers and {episode for episode, *_ in steps} == {0}
    assert sum(reward for *_, reward in steps) <= played.returns[0]
    assert steps[0][1].shape == (4, 4, 3) and steps[0][2].values["keys"] == ["w"]


@pytest.mark.parametrize(("part", "told"), [(0, "0 of 12,345 (0.0 %)"), (617, "617 of 12,345 (5.0 %)")])
def test_shares_are_told_with_their_counts(part, told):
    assert f"missed deadlines: {told}" in RealTimeReport(12_345, part, 0, 0, 12_345).summary()
