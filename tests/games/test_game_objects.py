"""Whatever takes the name of a game takes a Game too, and the id of an environment."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import lightning
import pytest
import tiny
import tiny_game

from bczoo.games import Game, PlayedRecordings, gymnasium_game
from bczoo.play.command import play_policy
from bczoo.record.command import record
from bczoo.train.callbacks.play import PlayGame

needs_classic = pytest.mark.skipif(importlib.util.find_spec("pygame") is None, reason="needs bczoo[window]")


@pytest.fixture
def policy(tmp_path, monkeypatch):
    """A policy in the current folder, by its name."""
    monkeypatch.chdir(tmp_path)
    tiny.tiny_policy(text_dim=None).save_pretrained(tmp_path / "policy")
    return "policy"


def test_recordings_for_training_are_played_in_games(tmp_path):
    by_name = PlayedRecordings("tiny_game:catch", episodes=1, size=32, workers=1)
    one = PlayedRecordings(tiny_game.catch(), episodes=1, size=32, workers=1)
    some = PlayedRecordings([tiny_game.catch(), tiny_game.catch("dict")], episodes=[1, 2], size=32, workers=1)
    assert (one.describe()["env"], some.describe()["env"]) == ("catch", ["catch", "catch"])
    assert by_name.describe()["env"] == "tiny_game:catch"
    assert json.dumps(some.describe())
    some.prepare(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_the_callback_plays_a_game(tmp_path):
    callback = PlayGame(tiny_game.short(), episodes=1, parallel=1)
    trainer = lightning.Trainer(default_root_dir=tmp_path, **tiny.QUIET)
    policy = tiny.tiny_policy(text_dim=None)
    callback.setup(trainer, policy, "fit")
    callback.on_fit_end(trainer, policy)
    assert callback.env == "short" and callback.results["policy"].lengths == [10]


def test_a_policy_plays_and_is_corrected_in_a_game(policy):
    results = play_policy(policy, tiny_game.short(), episodes=1, parallel=1, compare=False)
    assert results["policy"].game == "short"
    options = {"episodes": 1, "size": 64, "policy": policy, "parallel": 1, "takeover": 0.5}
    (folder,) = record(tiny_game.catch(), "out", expert="expert", **options)
    assert Path(folder, "annotation.proto").stat().st_size


@needs_classic
@pytest.mark.parametrize("env", ["CartPole-v1", gymnasium_game])
def test_a_policy_plays_an_environment_of_gymnasium(policy, env, capsys):
    game = env if isinstance(env, str) else env("CartPole-v1")
    results = play_policy(policy, game, episodes=1, parallel=1, video="play.mp4", video_seconds=0.2, compare=False)
    assert isinstance(results["policy"].game, str) and results["policy"].game == "CartPole-v1"
    assert Path("play.mp4").stat().st_size
    assert isinstance(game, Game) or "CartPole-v1, 1 game each" in capsys.readouterr().out


@needs_classic
def test_a_policy_is_recorded_in_an_environment_that_has_no_expert(policy):
    (folder,) = record("CartPole-v1", "out", episodes=1, size=64, policy=policy, parallel=1)
    assert Path(folder, "annotation.proto").stat().st_size
