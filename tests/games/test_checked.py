"""What players answer with is checked where it comes in."""

from __future__ import annotations

import copy
import dataclasses
import warnings

import gymnasium
import numpy as np
import pytest
import tiny_game

from bczoo.core.actions import ActionSpace, Decision
from bczoo.core.errors import UserError
from bczoo.games import DiscreteBindings, Game, VectorBindings
from bczoo.games.checked import ValuesCheck
from bczoo.games.players import ExpertPlayer
from bczoo.play.episodes import play
from bczoo.record.command import record

GAME = Game("my_game", gymnasium.Env, VectorBindings({"w": 0, "Space": 1, "mouse_left": 2, "mouse_dx": 3}, 4))


class Says:
    """Answers with the same thing in every step."""

    answer: object = None

    def reset(self, seed):
        pass

    def act(self, frame, info):
        return self.answer


def saying(answer) -> Game:
    return dataclasses.replace(tiny_game.catch(), name="saying", expert=type("MyExpert", (Says,), {"answer": answer}))


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"keys": []},
        {"keys": ["w", "Space"], "mouse_buttons": ["0"], "mouse_dx": -3.5, "mouse_dy": 0},
        {"keys": ("w",), "mouse_buttons": {"0"}, "mouse_dx": np.float32(2)},
        {"keys": np.array(["w"]), "mouse_dx": np.int64(0)},
    ],
)
def test_values_that_fit_pass_as_they_are(values):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ValuesCheck(GAME, "expert Mine")(values) is values


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({"keys": "Space"}, r"keys='Space', and not a list of names; did you mean \['Space'\]\?"),
        ({"keys": {"w": 1}}, r"keys=\{'w': 1\}, and not a list of names"),
        ({"keys": None}, "keys=None, and not a list of names"),
        ({"keys": ["space"]}, r"'space' in keys, which it does not have; did you mean 'Space'\?"),
        ({"keys": ["w", "leftarow"]}, r"'leftarow' in keys.*did you mean 'LeftArrow'"),
        ({"keys": [1]}, "gave 1 in keys"),
        ({"keys": ["mouse_left"]}, r"it is held as \{'mouse_buttons': \['0'\]\}"),
        ({"keys": ["_no_key"]}, "'_no_key' in keys"),
        ({"mouse_buttons": ["mouse_left"]}, r"'mouse_left' in mouse_buttons.*did you mean '0'"),
        ({"key": ["w"]}, r"'key', which is no group.*did you mean 'keys'"),
        ({"w": 1}, r"'w', which is no group.*held as \{'keys': \['w'\]\}"),
        ({"mouse_dx": "3"}, "mouse_dx='3', and not a finite number"),
        ({"mouse_dx": True}, "mouse_dx=True, and not a finite number"),
        ({"mouse_dx": float("nan")}, "mouse_dx=nan, and not a finite number"),
        ({"mouse_dx": [3]}, r"mouse_dx=\[3\], and not a finite number"),
        (["w"], r"gave \['w'\], and not a dictionary"),
        (None, "gave None, and not a dictionary"),
    ],
)
def test_what_does_not_fit_is_told_with_the_game_the_player_and_what_is_allowed(answer, told):
    with pytest.raises(UserError, match=rf"game 'my_game': expert Mine .*{told}.*takes a dictionary of keys \(a list"):
        ValuesCheck(GAME, "expert Mine")(answer)


def test_keys_that_the_game_does_not_listen_to_are_told_once():
    check = ValuesCheck(GAME, "expert Mine")
    with pytest.warns(UserWarning) as told:
        for _ in range(3):
            check({"keys": ["w", "q"], "mouse_buttons": ["1"], "mouse_dy": 4})
    assert sorted(str(w.message).split("uses ")[1].split(",")[0] for w in told) == [
        "'mouse_dy'",
        "'mouse_right'",
        "'q'",
    ]
    assert "it listens to Space, mouse_dx, mouse_left, w" in str(told[0].message)


def test_bindings_that_do_not_say_their_inputs_and_players_of_other_spaces_are_not_told_of():
    plain = Game("plain", gymnasium.Env, lambda values: 0)
    larger = ActionSpace.keyboard_mouse(extra_keys=["r"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ValuesCheck(plain, "expert Mine")({"keys": ["q"], "mouse_dx": 1})
        ValuesCheck(GAME, "player Policy", larger)({"keys": ["r", "q"], "mouse_dy": 3})


def test_gamepads_are_checked_too():
    game = Game("pad", gymnasium.Env, lambda values: 0, action_space=ActionSpace.gamepad())
    check = ValuesCheck(game, "expert Mine")
    check({"buttons": ["south"], "left_stick_x": 0.5})
    with pytest.raises(UserError, match=r"'souht' in buttons.*did you mean 'south'"):
        check({"buttons": ["souht"]})


def test_an_expert_s_mistake_ends_the_recording_and_leaves_nothing(tmp_path):
    for workers in (1, 2):
        with pytest.raises(
            UserError, match=r"game 'saying': expert MyExpert gave keys='Space'.*did you mean \['Space'\]"
        ):
            record(saying({"keys": "Space"}), str(tmp_path / "out"), episodes=2, size=32, workers=workers)
    assert not list((tmp_path / "out").glob("[!.]*"))


def test_unbound_keys_are_told_once_by_all_worker_processes(tmp_path):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        record(saying({"keys": ["q"]}), str(tmp_path), episodes=4, size=32, workers=2)
    texts = [str(w.message) for w in told if "does not listen" in str(w.message)]
    assert texts == [
        "game 'saying': expert MyExpert uses 'q', to which the game does not listen, so it changes nothing; "
        "it listens to a, d"
    ]
    assert len(list(tmp_path.iterdir())) == 4, "they are recorded"


def test_an_own_random_is_checked():
    game = dataclasses.replace(tiny_game.catch(), random=lambda rng: {"keys": "a"})
    with pytest.raises(UserError, match="its random gave keys='a'"):
        game.random_values(np.random.default_rng(0))


def test_an_expert_that_is_none_is_refused():
    class Half:
        def act(self, frame, info):
            return {}

    with pytest.raises(UserError, match=r"expert Half has no method reset; an expert has reset\(seed\) and act"):
        dataclasses.replace(tiny_game.catch(), expert=Half).make_expert()
    with pytest.raises(UserError, match="expert makes a player and has to be its class or a function"):
        dataclasses.replace(tiny_game.catch(), expert=tiny_game.CatchExpert())


def test_a_copied_expert_is_another_one_that_is_checked():
    expert = saying({"keys": "a"}).make_expert()
    again = copy.deepcopy(expert)
    assert again.expert is not expert.expert
    with pytest.raises(UserError, match="did you mean"):
        again.act(np.zeros((4, 4, 3), np.uint8), {})


class Own:
    """A player of one's own."""

    def __init__(self, answer) -> None:
        self.answer = answer

    def start(self, num_envs, seed):
        pass

    def reset(self, env_id, seed):
        pass

    def act(self, env_ids, frames, infos):
        return self.answer(len(env_ids))


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda n: [Decision({"keys": "a"})] * n, r"game 'catch': player Own gave keys='a'"),
        (lambda n: [{"keys": ["a"]}] * n, r"player Own answered \{'keys': \['a'\]\}, and not a Decision"),
        (lambda n: [], r"player Own answered \[\]; act returns a list with one Decision for each.* here 1"),
        (lambda n: Decision({}), "player Own answered Decision.*act returns a list"),
    ],
)
def test_own_players_are_checked(answer, told):
    with pytest.raises(UserError, match=told):
        play(tiny_game.catch(), Own(answer), 1, parallel=1, progress=False)


def test_the_expert_player_checks_its_expert():
    player = ExpertPlayer(saying({"keys": ["x"]}))
    player.start(1, 0)
    with pytest.raises(UserError, match="expert MyExpert gave 'x' in keys"):
        player.act([0], [np.zeros((4, 4, 3), np.uint8)], [{}])


def test_discrete_bindings_with_names_are_described():
    bindings = DiscreteBindings({"a": 0, "d": 1}, none=2, names={0: "LEFT"})
    assert bindings.rows() == [("a", "LEFT (0)"), ("d", "action 1"), ("nothing", "action 2")]
