"""Keys for environments that nobody has written bindings for."""

from __future__ import annotations

from enum import IntEnum

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from bczoo.core.actions import ActionSpace
from bczoo.core.errors import UserError
from bczoo.games import WAIT, default_bindings
from bczoo.games.bindings import inputs_in
from bczoo.games.default_keys import UniformActions, random_actions

SPACE = ActionSpace.keyboard_mouse()


class Bare(gymnasium.Env):
    """Has an action space and what is set on it."""

    def __init__(self, space: spaces.Space, **attributes) -> None:
        self.action_space = space
        for name, value in attributes.items():
            setattr(self, name, value)


def keys(*names: str) -> dict:
    return {"keys": list(names)}


def meaning(*names: str) -> dict:
    return {"get_action_meanings": lambda: list(names)}


def test_meanings_become_the_usual_keys_and_combinations():
    told = meaning("NOOP", "FIRE", "UP", "RIGHT", "LEFT", "DOWN", "UPRIGHT", "DOWNLEFTFIRE", "Teleport")
    bindings = default_bindings(Bare(spaces.Discrete(9), **told))
    assert bindings.combinations == {
        "Space": 1, "w": 2, "d": 3, "a": 4, "s": 5, "w+d": 6, "s+a+Space": 7, "1": 8
    }  # fmt: skip
    assert bindings(keys()) == 0 and bindings(keys("a", "s", "Space")) == 7
    assert ("Space", "FIRE (1)") in bindings.rows() and ("nothing", "NOOP (0)") in bindings.rows()


def test_two_meanings_of_one_key_both_stay_reachable():
    bindings = default_bindings(Bare(spaces.Discrete(3), **meaning("NOOP", "GAS", "ACCELERATE")))
    assert bindings.combinations == {"w": 1, "1": 2}


def test_names_of_an_enumeration_are_meanings():
    actions = IntEnum("Actions", ["left", "right", "forward"], start=0)
    bindings = default_bindings(Bare(spaces.Discrete(3), actions=actions))
    assert bindings.combinations == {"a": 0, "d": 1, "w": 2} and bindings.none is WAIT
    other = default_bindings(Bare(spaces.Discrete(3), actions=IntEnum("Actions", ["left", "right"], start=0)))
    assert other.combinations == {"1": 0, "2": 1, "3": 2}, "of another number of actions"


def test_the_environment_s_own_keys_come_first():
    own = {(): 1, (276,): 0, (1073741903,): 2, (275, 276): 1, (" ", "w"): 3, "d": 4}
    bindings = default_bindings(Bare(spaces.Discrete(5), get_keys_to_action=lambda: own))
    assert bindings.none == 1
    assert bindings.combinations == {"LeftArrow": 0, "RightArrow": 2, "LeftArrow+RightArrow": 1, "Space+w": 3, "d": 4}
    assert bindings(keys("LeftArrow", "RightArrow")) == 1, "both at once are what the environment says"


def test_own_keys_that_the_keyboard_lacks_are_replaced_altogether():
    bindings = default_bindings(Bare(spaces.Discrete(2), get_keys_to_action=lambda: {("x",): 0, ("d",): 1}))
    assert bindings.combinations == {"1": 0, "2": 1}


def test_a_key_of_the_neutral_action_does_not_block_others():
    own = {("e",): 0, (" ",): 1, ("d",): 2}
    told = meaning("NOOP", "FIRE", "RIGHT")
    bindings = default_bindings(Bare(spaces.Discrete(3), get_keys_to_action=lambda: own, **told))
    assert bindings(keys("d", "e")) == 2 and bindings.none == 0


def test_actions_without_a_meaning_get_keys_in_order_and_start_where_the_space_does():
    bindings = default_bindings(Bare(spaces.Discrete(40, start=5)))
    actions = list(bindings.combinations.values())
    assert actions == list(range(5, 45)) and bindings.none is WAIT
    assert bindings(keys("1")) == 5 and bindings(keys("LeftShift", "1")) == 5 + 17
    assert bindings.inputs <= inputs_in(SPACE)
    with pytest.raises(UserError, match=r"Bare has 60 more actions, and there are 51 keys.*write bindings of your own"):
        default_bindings(Bare(spaces.Discrete(60)))


def test_multi_discrete_has_keys_for_each_element():
    bindings = default_bindings(Bare(spaces.MultiDiscrete([3, 2])))
    np.testing.assert_array_equal(bindings(keys()), [0, 0])
    np.testing.assert_array_equal(bindings(keys("2", "3")), [2, 1])
    assert ("3", "element 1: action 1") in bindings.rows()
    assert spaces.MultiDiscrete([3, 2]).contains(bindings(keys("1", "3")))


def test_multi_binary_has_a_key_for_each_bit():
    space = spaces.MultiBinary(4)
    bindings = default_bindings(Bare(space, **meaning("LEFT", "FIRE", "B", "WEST")))
    np.testing.assert_array_equal(bindings(keys("a", "Space")), [1, 1, 0, 0])
    np.testing.assert_array_equal(bindings(keys("1", "2")), [0, 0, 1, 1])
    assert space.contains(bindings(keys("a")))
    with pytest.raises(UserError, match="30 switches, and there are 17 keys"):
        default_bindings(Bare(spaces.MultiBinary(30)))


def test_a_box_has_a_pair_of_keys_for_each_element():
    space = spaces.Box(np.float32([-2, 0, 1]), np.float32([2, 3, 5]))
    bindings = default_bindings(Bare(space))
    np.testing.assert_array_equal(bindings(keys()), np.float32([0, 0, 1]))
    np.testing.assert_array_equal(bindings(keys("a", "w", "RightArrow")), np.float32([-2, 3, 5]))
    assert space.contains(bindings(keys("d"))) and bindings.inputs == {"a", "d", "w", "RightArrow"}
    assert ("a", "element 0 -2") in bindings.rows()


@pytest.mark.parametrize(
    ("space", "told"),
    [
        (spaces.Dict(a=spaces.Discrete(2)), r"no default keys; write bindings of your own"),
        (spaces.Tuple([spaces.Discrete(2)]), r"no default keys; write bindings of your own"),
        (spaces.Box(-np.inf, np.inf, (2,)), r"need a vector with bounds; write bindings"),
        (spaces.Box(-1, 1, (2, 2)), r"need a vector with bounds; write bindings"),
        (spaces.Box(-1, 1, (10,)), r"10 continuous actions, and there are keys for 9; write bindings"),
        (spaces.MultiDiscrete([[2, 2]]), r"of shape \(1, 2\); write bindings"),
        (spaces.MultiDiscrete([2, 1]), r"an element has no choice; write bindings"),
        (spaces.MultiBinary((2, 2)), r"of shape \(2, 2\); write bindings"),
        (spaces.Discrete(1), None),
    ],
)
def test_what_has_no_keys_is_told(space, told):
    if told is None:
        assert default_bindings(Bare(space)).combinations == {"1": 0}, "one action and waiting"
        return
    with pytest.raises(UserError, match=told):
        default_bindings(Bare(space))


def test_the_random_player_takes_every_action_alike():
    bindings = default_bindings(Bare(spaces.Discrete(4), **meaning("NOOP", "LEFT", "RIGHT", "LEFTFIRE")))
    sample, rng = UniformActions([bindings], SPACE), np.random.default_rng(0)
    counts = np.bincount([bindings(sample(rng)) for _ in range(2000)])
    assert counts.min() > 420, "a quarter each"
    waits = default_bindings(Bare(spaces.Discrete(2)))
    sample = UniformActions([waits], SPACE)
    assert {waits(sample(rng)) for _ in range(50)} == {0, 1}, "it does not wait"


def test_the_random_player_never_holds_more_keys_than_the_space():
    bindings = default_bindings(Bare(spaces.MultiDiscrete([2] * 8)))
    sample, rng = random_actions(bindings, SPACE), np.random.default_rng(0)
    held = [len(sample(rng)["keys"]) for _ in range(200)]
    assert max(held) == 4 and min(held) < 4
    assert random_actions(default_bindings(Bare(spaces.Box(-1, 1, (2,)))), SPACE) is None
