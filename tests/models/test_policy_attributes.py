"""What a policy needs its input to be, by short names."""

import pytest
import tiny

from bczoo import InputSpec
from bczoo.core.actions import ActionSpace
from bczoo.models.policy import Policy


class Own(Policy):
    """A family of somebody's own, with arguments and attributes under other names."""

    def __init__(self) -> None:
        super().__init__(InputSpec(ActionSpace.gamepad(), 96, 30.0, 7, None))


@pytest.mark.parametrize("make", [lambda: tiny.tiny_policy(fps=10.0), tiny.tiny_cnn, Own])
def test_rate_size_window_and_text_are_those_of_the_input_spec(make):
    policy = make()
    spec = policy.input_spec
    assert (policy.fps, policy.frame_size, policy.window) == (spec.fps, spec.frame_size, spec.window)
    assert policy.text_dim == spec.text_dim
    assert isinstance(policy.fps, float) and policy.action_space == spec.action_space


class Naming(Own):
    """Has always called something of its own so."""

    def __init__(self) -> None:
        super().__init__()
        self.window = "mine"


def test_a_family_may_keep_something_else_under_these_names():
    assert Naming().window == "mine" and Naming().fps == 30.0
