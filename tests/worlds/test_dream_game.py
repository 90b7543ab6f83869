"""A world model as a game: found by name, played by policies, at random and by hand, the same for the same seed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tiny
import toy_world
from command_line import here as here

from bczoo.core.configs import IMPORT
from bczoo.core.errors import UserError
from bczoo.data.index import open_index
from bczoo.games.game import make_game
from bczoo.play.command import play_policy
from bczoo.record.command import record

pytestmark = pytest.mark.usefixtures("one_thread")


def column(frame):
    return int(frame[0].mean(-1).argmax() * toy_world.COLUMNS / toy_world.SIZE)


def test_keys_move_the_square(world_folder):
    game = make_game(f"dream:{world_folder}")
    assert game.fps == 20 and "a" in game.inputs and game.expert is None
    with game.open() as running:
        frame, _ = running.reset(seed=3)
        again, _ = running.reset(seed=3)
        assert np.array_equal(frame, again) and np.array_equal(frame, toy_world.frame(column(frame)))
        at = column(frame)
        for key in [1] * 8 + [2] * 8 + [0]:
            frame, reward, over, _ = running.step({"keys": toy_world.KEYS[key], "mouse_dx": 0})
            at = int(toy_world.move(at, key))
            assert np.array_equal(frame, toy_world.frame(at)) and reward == 0 and not over
        starts = {column(running.reset(seed=seed)[0]) for seed in range(20)}
    assert len(starts) > 1


def test_the_random_player_presses_what_was_pressed_in_the_starts(world_folder):
    game = make_game(f"dream:{world_folder}")
    rng = np.random.default_rng(0)
    pressed = {tuple(game.random_values(rng)["keys"]) for _ in range(60)}
    assert pressed <= {(), ("a",), ("d",)} and len(pressed) > 1


def short(folder):
    return dataclasses.replace(make_game(f"dream:{folder}"), time_limit_s=1.0)


def test_a_policy_plays_in_a_process_of_its_own_and_a_video_shows_it(world_folder, here, monkeypatch):
    monkeypatch.setenv(IMPORT, "tiny")
    policy = tiny.tiny_cnn().save_pretrained(here / "policy")
    played = play_policy(str(policy), short(world_folder), episodes=1, compare=False, video="play.mp4")["policy"]
    assert played.returns == [0.0] and played.lengths == [20] and (here / "play.mp4").is_file()


def test_its_episodes_are_recorded_like_those_of_any_game(world_folder, tmp_path):
    record(short(world_folder), str(tmp_path / "walked"), agent="random", episodes=1, workers=1)
    index = open_index(str(tmp_path / "walked"), toy_world.SPACE, 20.0, None)
    assert len(index) == 1 and index.n_frames[0] >= 20


def test_what_cannot_be_dreamt_in_is_refused(tmp_path, here):
    world = tiny.tiny_world().save_pretrained(tmp_path / "untrained")
    with pytest.raises(UserError, match="no starts yet"):
        make_game(f"dream:{world}").open()
    with pytest.raises(UserError, match="holds a policy, and only a world model"):
        make_game(f"dream:{tiny.tiny_cnn().save_pretrained(tmp_path / 'policy')}")
    with pytest.raises(UserError, match="there is no policy"):
        make_game("dream:nowhere/at/all")
