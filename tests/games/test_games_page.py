"""The examples of docs/games.md run."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import numpy as np
import pytest

from bczoo.games import Game, VectorBindings, default_bindings
from bczoo.record.command import record

PAGE = (Path(__file__).parents[2] / "docs" / "games.md").read_text(encoding="utf-8")


def example(name: str) -> dict:
    """What a marked block of the page defines."""
    (code,) = re.findall(rf"<!-- {name}:begin -->\n(.*?)<!-- {name}:end -->", PAGE, re.DOTALL)
    defined: dict = {"__name__": f"example_{name}"}
    exec(compile(textwrap.dedent(code), f"docs/games.md, {name}", "exec"), defined)
    return defined


def play(game: Game, seed: int, decisions: int) -> tuple[float, bool]:
    """The expert's return and whether its episode ended."""
    with game.open(for_expert=True) as running:
        expert, (frame, info) = game.make_expert(), running.reset(seed)
        expert.reset(seed)
        total, done = 0.0, False
        for _ in range(decisions):
            frame, reward, done, info = running.step(expert.act(frame, info))
            total += reward
            if done:
                break
    return total, done


def test_the_start_in_python_runs():
    pytest.importorskip("pygame", reason="needs bczoo[window]")
    defined = example("start")
    game = defined["cart_pole"]()
    assert game.fps == 50
    with game.open() as running:
        running.reset(seed=0)
        assert running.step({"keys": ["a"]})[1] == 1
        rows = defined["bindings_of_my_environment"](running.env).rows()
    assert rows == game.bindings.rows()


def test_the_car_stays_on_the_road():
    pytest.importorskip("Box2D", reason="needs bczoo[games]")
    game = example("car")["car"]()
    with game.open() as running:
        assert default_bindings(running.env).rows()[0][0] == "a" and running.pace.per_decision == 2.5
    total, _ = play(game, seed=0, decisions=60)
    assert total > 30, "it passes tiles of the road; standing still is -15"


def test_the_paddle_follows_the_ball():
    pytest.importorskip("ale_py", reason="needs bczoo[games]")
    game = example("atari")["pong"]()
    total, done = play(game, seed=0, decisions=600)
    assert done and total >= -2


def test_the_walker_reaches_the_goal_and_is_recorded(tmp_path):
    pytest.importorskip("minigrid", reason="needs bczoo[games]")
    game = example("grid")["grid"]()
    total, done = play(game, seed=0, decisions=30)
    assert done and total > 0.9
    (folder,) = record(game, str(tmp_path), episodes=1, size=64)
    assert Path(folder, "annotation.proto").stat().st_size


def test_the_bindings_of_the_page_are_built():
    names = re.findall(r"`(VectorBindings\(\{.*?\}.*?\))`", PAGE)
    assert names
    for code in names:
        bindings = eval(code, {"VectorBindings": VectorBindings})
        np.testing.assert_allclose(bindings({"keys": ["w"], "mouse_dx": 25}), [1, 0.5])
