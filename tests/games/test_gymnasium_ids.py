"""Environments of Gymnasium by their id."""

from __future__ import annotations

import dataclasses
import importlib.util
import pickle
import sys
import warnings

import gymnasium
import numpy as np
import pytest
import tiny_game

from bczoo import cli
from bczoo.core.errors import UserError
from bczoo.games import WAIT, Game, UnknownGameError, gymnasium_game, make_game
from bczoo.games.game import announce, is_known
from bczoo.record.command import record


class Mine(gymnasium.Env):
    """Shows a bar for the last action; is registered by the fixture ``mine``."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 40}  # noqa: RUF012  (gymnasium's own attribute)
    observation_space = gymnasium.spaces.Box(-1, 1, (2,))

    def __init__(self, render_mode=None, actions=None) -> None:
        self.render_mode = render_mode
        self.action_space = actions or gymnasium.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.last = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.last = int(np.sum(action))
        return np.zeros(2, np.float32), 1.0, False, False, {}

    def render(self):
        frame = np.zeros((48, 64, 3), np.uint8)
        frame[:, : 10 + self.last] = 200
        return frame


class Blind(Mine):
    metadata = {"render_modes": ["human"], "render_fps": 40}  # noqa: RUF012


def lacking(**options):
    raise gymnasium.error.DependencyNotInstalled("there is no box")


@pytest.fixture
def mine():
    for name, entry in {"Mine": Mine, "Blind": Blind, "Lacking": lacking}.items():
        gymnasium.register(f"tiny/{name}-v0", entry, max_episode_steps=8)
    yield "tiny/Mine-v0"
    for name in ("Mine", "Blind", "Lacking"):
        del gymnasium.registry[f"tiny/{name}-v0"]


def test_an_id_is_a_game_with_its_own_rate_and_pictures(mine):
    game = make_game(mine)
    assert game.name == mine and game.expert is None and game.fps == 20
    with game.open() as running:
        first, _ = running.reset(seed=0)
        frame, reward, done, _ = running.step({"keys": ["3"]})
        assert first.shape == (48, 64, 3) and frame[0, 11].all() and not frame[0, 12].any()
        assert (reward, done) == (2.0, False), "40 steps at 20 decisions"
        assert [running.step({"keys": ["1"]})[2] for _ in range(3)] == [False, False, True]


def test_it_is_recorded_at_random_in_processes_and_says_its_keys_once(mine, tmp_path, capsys):
    record(mine, str(tmp_path), agent="random", episodes=2, size=64, workers=1)
    told = capsys.readouterr().out
    assert f"{mine}, 20 decisions a second: the environment says 40 steps a second. Default keys" in told
    assert "| 1       | action 0              |" in told and "| nothing | the environment waits |" in told
    announce(make_game(mine))
    assert capsys.readouterr().out == ""
    assert len(list(tmp_path.iterdir())) == 2


def test_the_expert_of_an_id_is_told_to_be_missing(mine, tmp_path, capsys):
    assert cli.main(["record", "--env", mine, "--out", str(tmp_path)]) != 0
    told = " ".join(capsys.readouterr().err.split())
    assert f"game '{mine}' has no expert" in told and "--agent random or --agent keyboard" in told
    assert "docs/games.md" in told


def test_options_and_fields_can_be_changed(mine):
    actions = gymnasium.spaces.MultiBinary(2)
    game = gymnasium_game(mine, actions=actions)
    with game.open() as running:
        running.reset(seed=0)
        assert running.step({"keys": ["1", "2"]})[0][0, 11].all()
    slower = dataclasses.replace(game, fps=10.0)
    assert pickle.loads(pickle.dumps(slower)).fps == 10 and "20 decisions" not in slower.about


def test_a_module_before_the_id_is_imported(tmp_path, monkeypatch):
    (tmp_path / "own_envs.py").write_text(
        "import gymnasium\nfrom test_gymnasium_ids import Mine\ngymnasium.register('Own-v3', Mine)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        game = make_game("own_envs:Own-v3")
        assert game.name == "Own-v3" and not is_known("own_envs:Own-v3")
        assert pickle.loads(pickle.dumps(game)).name == "Own-v3", "other processes make it by name"
    finally:
        sys.modules.pop("own_envs", None)
        gymnasium.registry.pop("Own-v3", None)


@pytest.mark.parametrize(
    ("name", "kind", "told"),
    [
        ("CartPoel-v1", UnknownGameError, "no game 'CartPoel-v1'.*Did you mean: `CartPole`.*module:CartPoel-v1"),
        ("CartPole-v9", UnknownGameError, "no game 'CartPole-v9'.*v9"),
        ("nowhere:Mine-v0", UnknownGameError, "finds no module 'nowhere'; install it, or put it on PYTHONPATH"),
        ("tiny/Blind-v0", UserError, 'no render_mode="rgb_array", so it shows no pictures'),
        ("tiny/Lacking-v0", UserError, "package that is not installed: there is no box. pip install 'gymnasium"),
    ],
)
def test_what_cannot_be_made_is_told(mine, name, kind, told):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(kind, match=told):
            make_game(name)


@pytest.mark.parametrize(
    ("name", "package", "module"),
    [("ALE/Pong-v5", "ale-py", "ale_py"), ("MiniGrid-Empty-5x5-v0", "minigrid", "minigrid")],
)
def test_a_missing_package_is_named(name, package, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UnknownGameError, match=f"no module '{module}'; pip install '{package}'"):
        make_game(name)
    assert not is_known(name)


def test_an_action_space_without_keys_asks_for_bindings(mine):
    with pytest.raises(
        UserError, match=r"Mine-v0 has the action space Dict.*write bindings of your own: docs/games.md"
    ):
        gymnasium_game(mine, actions=gymnasium.spaces.Dict(a=gymnasium.spaces.Discrete(2)))


def test_an_unknown_name_mentions_ids():
    with pytest.raises(UnknownGameError, match=r"goes by its id \(CarRacing-v3\), your own game by package.module"):
        make_game("doom/nothing")


def test_what_a_policy_was_measured_in_is_known_where_it_is_registered(mine):
    assert is_known(mine) and is_known("doom/basic")
    assert not is_known("tiny/Other-v0") and not is_known("tiny_game:catch")


needs_classic = pytest.mark.skipif(importlib.util.find_spec("pygame") is None, reason="needs bczoo[window]")


@needs_classic
def test_cart_pole_is_seen_through_render():
    game = make_game("CartPole-v1")
    assert game.bindings.combinations == {"a": 0, "d": 1} and game.bindings.none is WAIT
    with game.open() as running:
        frame, _ = running.reset(seed=0)
        assert frame.shape == (400, 600, 3) and np.unique(frame).size > 2
        assert running.step({"keys": ["d"]})[1] == 2 and running.step({"keys": ["a"]})[1] == 3


def test_car_racing_has_a_wheel_and_pedals():
    pytest.importorskip("Box2D", reason="needs bczoo[games]")
    game = make_game("CarRacing-v3")
    assert dict(game.bindings.rows()) == {"a": "steering -1", "d": "steering +1", "w": "gas +1", "s": "brake +1"}
    np.testing.assert_array_equal(game.bindings({"keys": ["a", "w"]}), np.float32([-1, 1, 0]))
    choices = gymnasium_game("CarRacing-v3", continuous=False).bindings
    assert choices.combinations == {"d": 1, "a": 2, "w": 3, "s": 4} and choices.none == 0


def test_atari_is_played_at_sixty_frames():
    pytest.importorskip("ale_py", reason="needs bczoo[games]")
    game = make_game("ALE/Pong-v5")
    assert game.bindings.combinations["d"] == 2 and game.bindings.none == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with game.open() as running:
            before = running.reset(seed=0)[1]["frame_number"]
            assert running.step({})[3]["frame_number"] - before == 3
    slow = dataclasses.replace(gymnasium_game("ALE/Pong-v5", frameskip=4), fps=15)
    with slow.open() as running:
        assert running.env.metadata["render_fps"] == 15 and running.pace.per_decision == 1


def test_minigrid_is_a_picture_and_waits():
    pytest.importorskip("minigrid", reason="needs bczoo[games]")
    game = make_game("MiniGrid-Empty-5x5-v0")
    assert game.bindings.combinations["w"] == 2
    with game.open() as running:
        first, _ = running.reset(seed=0)
        assert first.shape == (160, 160, 3)
        assert (running.step({"keys": []})[0] == first).all()
        assert (running.step({"keys": ["d"]})[0] != first).any()


def with_symbols(render_mode=None) -> Game:
    """Observes a small grid of symbols under "image", as MiniGrid does."""

    class Grid(Mine):
        def reset(self, **options):
            super().reset(**options)
            return {"image": np.zeros((7, 7, 3), np.uint8), "mission": "go"}, {}

    return dataclasses.replace(tiny_game.catch(), name="symbols", env=lambda: Grid(render_mode))


def test_render_comes_before_symbols_in_the_observation():
    with with_symbols("rgb_array").open() as running:
        assert running.reset(seed=0)[0].shape == (48, 64, 3)


def test_symbols_of_an_environment_that_could_render_are_refused():
    with (
        with_symbols().open() as running,
        pytest.raises(UserError, match=r'7 x 7 px.*Make the environment with render_mode="rgb_array"$'),
    ):
        running.reset(seed=0)


def test_a_state_of_an_environment_that_could_render_is_refused():
    game = dataclasses.replace(tiny_game.catch(), env=Mine)
    with (
        game.open() as running,
        pytest.raises(UserError, match=r'float32 \(2,\).*Make the environment with render_mode="rgb_array"$'),
    ):
        running.reset(seed=0)


def test_a_package_that_render_needs_is_named():
    class Unseen(Mine):
        def render(self):
            raise gymnasium.error.DependencyNotInstalled('pygame is missing, run `pip install "gymnasium[box2d]"`')

    game = dataclasses.replace(tiny_game.catch(), env=lambda: Unseen("rgb_array"))
    with game.open() as running, pytest.raises(UserError, match="'catch' cannot be shown: pygame is missing"):
        running.reset(seed=0)
