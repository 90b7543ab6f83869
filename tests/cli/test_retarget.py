"""A configuration for one game, turned to another with --env."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import tiny_game
import yaml

from bczoo.cli import main
from bczoo.cli.trainer import TrainerCLI
from bczoo.core.actions import ActionSpace
from bczoo.games import DiscreteBindings

CATCH = "tiny_game:catch"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class Parsed(Exception):
    """Everything is parsed, and nothing is built."""


@pytest.fixture
def parsed(monkeypatch):
    """What a command comes to before anything is built."""

    def stop(self):
        raise Parsed(self.config[self.subcommand])

    monkeypatch.setattr(TrainerCLI, "instantiate_classes", stop)

    def parse(*argv, command="fit"):
        with pytest.raises(Parsed) as caught:
            main([command, *argv])
        return caught.value.args[0]

    return parse


def with_game(monkeypatch, **changes) -> str:
    """A name under which the tiny game is found with some fields changed."""
    game = dataclasses.replace(tiny_game.catch(), **changes)
    monkeypatch.setattr(tiny_game, "changed", lambda: game, raising=False)
    return "tiny_game:changed"


def played(config):
    return next(c for c in config.trainer.callbacks if c.class_path.endswith("PlayGame")).init_args


@pytest.mark.parametrize("name", ["quickstart", "bc_cnn_quickstart"])
def test_recordings_run_video_and_games_are_those_of_the_new_game(parsed, capsys, name):
    config = parsed("--config", name, "--env", "doom/basic")
    assert config.data.init_args.root == "data/quickstart-doom-basic"
    assert config.data.init_args.source.init_args.env == played(config).env == "doom/basic"
    assert config.trainer.default_root_dir == f"runs/{name}-doom-basic"
    assert not isinstance(played(config).video, str) or played(config).video == f"runs/{name}-doom-basic/play.mp4"
    assert config.env is None, "a config that is kept is not turned again"
    told = f"doom/basic: recordings in data/quickstart-doom-basic, run in runs/{name}-doom-basic\n"
    assert told in capsys.readouterr().out


def test_without_it_nothing_changes(parsed):
    config = parsed("--config", "quickstart")
    assert (config.data.init_args.root, config.trainer.default_root_dir) == ("data/quickstart", "runs/quickstart")
    assert played(config).env == "doom/health_gathering"


def test_it_may_stand_in_a_file(parsed):
    Path("mine.yaml").write_text(f"env: {CATCH}\n")
    assert parsed("--config", "quickstart", "--config", "mine.yaml").data.init_args.root.endswith("-tiny_game-catch")


@pytest.mark.parametrize(
    "given", [["--trainer.default_root_dir=mine", "--data.root", "own"], ["--trainer.default_root_dir", "mine"]]
)
def test_folders_that_are_given_stay(parsed, given):
    config = parsed("--config", "quickstart", "--env", CATCH, *given)
    assert config.trainer.default_root_dir == "mine"
    assert config.data.init_args.root == ("own" if "own" in given else "data/quickstart-tiny_game-catch")


def test_a_validation_source_is_turned_too(parsed):
    config = parsed("--config", "quickstart", "--config", "tasks/defend_the_line", "--env", CATCH)
    data = config.data.init_args
    assert data.val_source.init_args.env == data.source.init_args.env == CATCH
    assert data.val_root == "data/defend_the_line-val-tiny_game-catch"


def test_validation_of_a_turned_run_finds_its_folders(parsed):
    config = parsed("--config", "quickstart", "--env", CATCH, command="validate")
    assert config.trainer.default_root_dir == "runs/quickstart-tiny_game-catch"


def test_the_policy_takes_the_games_rate_and_keys(parsed, monkeypatch, capsys):
    space = ActionSpace.keyboard_mouse(extra_keys=["r"])
    bindings = DiscreteBindings({"r": 0, "d": 1}, none=2)
    env = with_game(monkeypatch, fps=10.0, action_space=space, bindings=bindings)
    config = parsed("--config", "quickstart", "--env", env)
    assert config.model.init_args.fps == 10.0
    assert ActionSpace.of(config.model.init_args.action_space) == space
    out = capsys.readouterr().out
    assert "the policy acts 10 times a second, as catch runs (was 20)" in out and "listens to more keys" in out
    config = parsed("--config", "quickstart", "--env", env, "--model.fps", "20")
    assert config.model.init_args.fps == 20.0


def test_a_game_without_an_expert_is_told_before_anything_else(parsed, monkeypatch, capsys):
    env = with_game(monkeypatch, expert=None)
    assert main(["fit", "--config", "quickstart", "--env", env]) == 1
    told = capsys.readouterr().err
    assert told.startswith("bczoo: tiny_game:changed has no expert that could be recorded.")
    by_hand = f"bczoo record --env {env} --agent keyboard --out data/quickstart-tiny_game-changed --size 96"
    for way in (by_hand, "--data.source null", "package.module:function", "--data.source.agent random"):
        assert way in told
    assert list(Path.cwd().iterdir()) == []
    parsed("--config", "quickstart", "--env", env, "--data.source.agent", "random")
    Path("data/quickstart-tiny_game-changed/rec").mkdir(parents=True)
    Path("data/quickstart-tiny_game-changed/rec/annotation.proto").touch()
    config = parsed("--config", "quickstart", "--env", env, "--data.source", "null")
    assert config.data.init_args.source is None and played(config).env == env


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--config", "tiny", "--env", CATCH], "this configuration records no game and plays none; quickstart and"),
        (["--config", "doom", "--env", CATCH], "takes the place of one game, but this configuration has several"),
        (["--config", "quickstart", "--env", "doom/basc"], "there is no game 'doom/basc'; did you mean doom/basic"),
    ],
)
def test_what_cannot_be_turned_is_told(argv, told, capsys):
    assert main(["fit", *argv]) == 1
    assert told in capsys.readouterr().err


def test_the_quick_start_with_a_game_of_ones_own(capfd):
    small = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--trainer.callbacks.episodes", "1"]
    small += ["--trainer.callbacks.video_seconds", "1", "--data.source.episodes", "3", "--data.batch_size", "2"]
    assert main(["fit", "--config", "quickstart", "--env", CATCH, *small]) == 0
    out = capfd.readouterr().out
    assert "3 episodes of tiny_game:catch in data/quickstart-tiny_game-catch" in out
    assert "| policy |" in out and "| expert |" in out
    assert sorted(p.name for p in Path.cwd().iterdir()) == ["data", "runs"]
    (run,) = Path("runs").iterdir()
    assert run.name == "quickstart-tiny_game-catch" and (run / "play.mp4").is_file()
    (kept,) = run.rglob("config.yaml")
    assert yaml.safe_load(kept.read_text())["data"]["init_args"]["root"] == "data/quickstart-tiny_game-catch"
