"""Bindings, and the interface through which new games come in."""

from __future__ import annotations

import dataclasses
import pickle

import gymnasium
import numpy as np
import pytest
import tiny_game

from bczoo.core.actions import ActionSpace
from bczoo.core.errors import UserError
from bczoo.games import (
    DictBindings,
    DiscreteBindings,
    Game,
    UnknownGameError,
    VectorBindings,
    make_game,
    register_game,
)


def values(*keys: str, buttons: tuple[str, ...] = (), dx: float = 0, dy: float = 0) -> dict:
    return {"keys": list(keys), "mouse_buttons": list(buttons), "mouse_dx": dx, "mouse_dy": dy}


def test_discrete_bindings_take_the_largest_combination_that_is_held():
    bindings = DiscreteBindings({"a": 0, "d": 1, "d+mouse_left": 2, "1": 3}, none=9)
    assert bindings(values("a")) == 0
    assert bindings(values("d")) == 1
    assert bindings(values("d", buttons=("0",))) == 2
    assert bindings(values("a", "d")) == 0, "the one written first among equals"
    assert bindings(values("Space", buttons=("1",))) == 9, "the right mouse button is not the digit 1"
    assert bindings(values("1")) == 3


def test_vector_bindings_add_up_and_stay_in_bounds():
    bindings = VectorBindings({"w": 0, "s": (0, -1.0), "mouse_dx": (1, 0.25), "mouse_right": 2}, 3, low=-5, high=5)
    np.testing.assert_array_equal(bindings(values("w", dx=-8)), np.float32([1, -2, 0]))
    np.testing.assert_array_equal(bindings(values("w", "s", buttons=("1",), dx=400)), np.float32([0, 5, 1]))
    with pytest.raises(ValueError, match=r"'d': 3.*size 3"):
        VectorBindings({"d": 3}, 3)


def test_dict_bindings_combine_others_and_gamepads_work():
    bindings = DictBindings(
        jump=DiscreteBindings({"south": 1}, none=0),
        move=VectorBindings({"left_stick_x": 0, "dpad_left": (0, -1.0)}, 1),
    )
    action = bindings({"buttons": ["south"], "left_stick_x": 0.5})
    assert action["jump"] == 1
    np.testing.assert_array_equal(action["move"], np.float32([0.5]))
    Game("pad", gymnasium.Env, bindings, action_space=ActionSpace.gamepad())


def test_bindings_to_inputs_that_the_action_space_lacks_are_refused():
    with pytest.raises(ValueError, match=r"binds 'leftarrow'.*did you mean.*LeftArrow"):
        Game("wrong", gymnasium.Env, DiscreteBindings({"leftarrow": 0}, none=1))
    with pytest.raises(ValueError, match=r"binds 'r'.*extra_keys"):
        Game("wrong", gymnasium.Env, DiscreteBindings({"r": 0}, none=1))
    space = ActionSpace.keyboard_mouse(extra_keys=["r"])
    Game("right", gymnasium.Env, DiscreteBindings({"r": 0}, none=1), action_space=space)


@pytest.mark.parametrize("shown_as", ["array", "dict", "render"])
def test_frames_come_from_the_observation_or_from_render(shown_as):
    with tiny_game.catch(shown_as).open() as running:
        first, _ = running.reset(seed=3)
        frame, *_ = running.step(values("a"))
    assert first.shape == (12, 12, 3) and first.dtype == np.uint8
    assert first[-1, 6, 1] == 255 and frame[-1, 5, 1] == 255, "the paddle moved left"


def test_a_game_without_frames_says_what_to_do():
    game = tiny_game.catch("vector")
    with game.open() as running, pytest.raises(UserError, match=r"float32 \(2,\).*render_mode"):
        running.reset(seed=0)


def test_the_time_limit_ends_an_episode():
    game = Game("catch", tiny_game.Catch, DiscreteBindings({"a": 0}, none=2), fps=10, time_limit_s=0.5)
    with game.open() as running:
        running.reset(seed=0)
        assert [running.step({})[2] for _ in range(5)] == [False] * 4 + [True]


def test_games_are_found_by_name_and_by_module():
    assert make_game("tiny_game:catch").name == "catch"
    register_game("my/catch", tiny_game.catch)
    assert make_game("my/catch").name == "catch"
    with pytest.raises(UnknownGameError, match=r"did you mean doom/basic.*Known games: .*doom/deadly_corridor"):
        make_game("doom/bassic")
    with pytest.raises(UnknownGameError, match="no module 'no_such_module'"):
        make_game("no_such_module:game")
    with pytest.raises(UnknownGameError, match="'tiny_game' has no 'cach'"):
        make_game("tiny_game:cach")
    with pytest.raises(UnknownGameError, match="did you mean 'catch'"):
        make_game("tiny_game:catc")


BROKEN = """
from bczoo.games import Game
import tiny_game

wrong_type = tiny_game.Catch
number = 3
game = tiny_game.catch()

def needs(level, *, speed):
    return game
"""


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("tiny_game:Catch", r"Catch\(\) has to return a bczoo.games.Game, got Catch"),
        ("broken_game:number", "'number' has to be a function, got int"),
        ("broken_game:game", "'game' is a Game, but has to be a function that returns one"),
        ("broken_game:needs", r"needs\(\) is called without arguments, but needs level, speed"),
        ("broken_game:", "named package.module:function"),
        (":game", "named package.module:function"),
        (".game:game", "named package.module:function"),
        ("lacking_game:game", "no module 'pygame_of_mine', which 'lacking_game' imports"),
    ],
)
def test_what_is_wrong_in_the_function_of_a_game_is_told(name, told, tmp_path, monkeypatch):
    (tmp_path / "broken_game.py").write_text(BROKEN)
    (tmp_path / "lacking_game.py").write_text("import pygame_of_mine")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=told):
        make_game(name)


def test_an_attribute_error_inside_of_a_game_s_module_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "failing_game.py").write_text("import math\nmath.no_such_thing")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(AttributeError, match="no_such_thing"):
        make_game("failing_game:game")


def test_an_environment_without_render_mode_is_told_what_to_do():
    class Bare:
        def reset(self, seed):
            return 0, {}

    game = Game("bare", Bare, DiscreteBindings({"a": 0}, none=1))
    with pytest.raises(UserError, match=r"observation is int, render\(\) gave nothing"):
        game.open().reset(seed=0)


def test_games_made_by_name_are_pickled_by_name():
    for name in ("tiny_game:with_lambdas", "doom/basic"):
        game = make_game(name)
        again = pickle.loads(pickle.dumps(game))
        assert again.name == game.name and again.inputs == game.inputs
    game = make_game("tiny_game:catch")
    longer = dataclasses.replace(game, time_limit_s=99.0)
    assert pickle.loads(pickle.dumps(longer)).time_limit_s == 99.0, "what was changed is not made anew"
    register_game("my/lambdas", tiny_game.with_lambdas)
    assert pickle.loads(pickle.dumps(make_game("my/lambdas"))).name == "lambdas"
    register_game("my/nameless", lambda: tiny_game.catch("dict"))
    assert pickle.loads(pickle.dumps(make_game("my/nameless"))).env.shown_as == "dict"


def test_without_vizdoom_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'bczoo\[doom\]'"):
        make_game("doom/basic")


def test_the_random_player_presses_what_is_bound_and_nothing_else():
    space = ActionSpace.keyboard_mouse()
    inputs = {"w": 0, "a": 0, "s": 0, "d": 0, "q": 0, "mouse_left": 1, "mouse_dx": 2}
    game = Game("any", gymnasium.Env, VectorBindings(inputs, 3))
    rng = np.random.default_rng(0)
    drawn = [game.random_values(rng) for _ in range(2000)]
    assert {key for v in drawn for key in v["keys"]} == set("wasdq")
    assert all(len(v["keys"]) <= 4 and "mouse_dy" not in v for v in drawn)
    assert 0.45 < np.mean(["0" in v["mouse_buttons"] for v in drawn]) < 0.55
    dx = [v["mouse_dx"] for v in drawn]
    assert min(dx) < -50 and max(dx) > 50 and max(map(abs, dx)) <= 60
    assert all(space.encode(**v) for v in drawn)
    with pytest.raises(ValueError, match="random player cannot know"):
        Game("any", gymnasium.Env, lambda v: 0).random_values(rng)


def test_a_module_that_is_no_python_is_told_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "half_typed.py").write_text("def my_game(:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"game 'half_typed:my_game': .*half_typed.py, line 1, is no Python: invalid"):
        make_game("half_typed:my_game")
