"""Action spaces: the published encodings and decodings, and the errors."""

import json
from pathlib import Path

import numpy as np
import pytest

from bczoo.core.actions import ActionSpace, UnknownActionError

GOLDEN = json.loads((Path(__file__).parent / "golden" / "action_mapping_public.json").read_text())


def golden_ids(ids):
    """The golden file's names and scalars, in our names and lists."""
    return {k.replace("mouse_delta_", "mouse_d"): v if isinstance(v, list) else [v] for k, v in ids.items()}


def test_published_encodings():
    for case in GOLDEN["encode"]:
        space = ActionSpace.keyboard_mouse(
            max_keys=case.get("max_keys", 4), max_mouse_buttons=case.get("max_mouse_keys", 2)
        )
        ids = space.encode(
            ignore_unknown=True,
            keys=case["keys"],
            mouse_buttons=case["mouse_buttons"],
            mouse_dx=case["dx"],
            mouse_dy=case["dy"],
        )
        assert ids == golden_ids(case["ids"]), case


@pytest.mark.parametrize("how", ["mean", "conservative"])
def test_published_decodings(how):
    space = ActionSpace.keyboard_mouse()
    for case in GOLDEN["decode"]:
        values = space.decode(golden_ids(case["ids"]), mouse=how)
        assert values["keys"] == case["keys"]
        assert values["mouse_buttons"] == case["mouse_buttons"]
        assert [values["mouse_dx"], values["mouse_dy"]] == case[how]


def test_truncated_normal_stays_in_the_published_support_and_fills_it():
    space = ActionSpace.keyboard_mouse()
    rng = np.random.default_rng(0)
    for axis in "xy":
        group = next(g for g in space.groups if g.name == f"mouse_d{axis}")
        for case in GOLDEN["truncated_normal"][axis]:
            low, high = case["support"]
            assert group.support(case["bin"]) == (low, high)
            draws = {group.decode([case["bin"]], "truncated_normal", rng) for _ in range(300)}
            assert min(draws) >= low and max(draws) <= high
            if high - low <= 12:
                assert draws == set(range(low, high + 1))


def test_spaces_survive_json():
    for space in (ActionSpace.keyboard_mouse(extra_keys=["r"]), ActionSpace.gamepad()):
        assert ActionSpace.from_dict(json.loads(json.dumps(space.to_dict()))) == space


def test_gamepad_has_sixteen_tokens_and_round_trips():
    space = ActionSpace.gamepad()
    assert space.tokens == 16
    ids = space.encode(buttons=["south", "select"], left_stick_x=-1.0, left_stick_y=0.0, right_stick_x=1.0)
    assert ids["left_stick_x"] == [0] and ids["left_stick_y"] == [5] and ids["right_stick_x"] == [10]
    assert space.decode(ids)["buttons"] == ["south", "select"]
    assert space.encode(**space.decode(ids)) == ids


def test_errors_name_what_was_wrong():
    space = ActionSpace.keyboard_mouse()
    with pytest.raises(UnknownActionError, match=r"\['r'\]"):
        space.encode(keys=["r"])
    with pytest.raises(UnknownActionError, match="no group"):
        space.encode(stick=1)
    with pytest.raises(ValueError, match="finite"):
        space.encode(mouse_dx=float("nan"))
    with pytest.raises(ValueError, match=r"mouse_buttons needs 2 ids in 0\.\.3"):
        space.decode({**space.neutral, "mouse_buttons": [0, 4]})
    with pytest.raises(ValueError, match="not known by name"):
        ActionSpace.from_name("wheel")
