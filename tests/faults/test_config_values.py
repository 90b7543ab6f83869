"""Every entry of a policy's config set to values that make no sense: refused when it is read, or the policy plays."""

from __future__ import annotations

import copy
import json
import os
import random
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from bczoo import ActionDecoder, ActionSpace, BackboneHeads, BCPolicy, GemmaTextEncoder, IndependentHeads
from bczoo.core.actions import BinnedGroup, HeldGroup, SwitchGroup
from bczoo.core.errors import UserError

SLOW = os.environ.get("BCZOO_SLOW") == "1"
NASTY = [
    None,
    "x",
    "",
    "\ud800\n",
    -1,
    0,
    1,
    2.0,
    1e9,
    10**5,
    0.5,
    True,
    False,
    [],
    {},
    float("nan"),
    "NaN",
    [0] * 10**5,
]
SPACE = ActionSpace(
    "small",
    (
        HeldGroup("keys", ("_no_key", "w", "a"), tokens=2),
        SwitchGroup("buttons", ("south", "north")),
        BinnedGroup("mouse_dx", (-5.1, 0.0, 5.0), low=-9, high=9, std=4.0),
        BinnedGroup("stick", (-0.5, 0.5), low=-1.0, high=1.0, integer=False),
    ),
)
POLICIES = {
    "published": {
        "transformer": {"history": [1, None], "sinks": 1, "kv_heads": 2},
        "decoder": partial(ActionDecoder, layers=1, heads=4),
        "text_encoder": GemmaTextEncoder(),
    },
    "backbone heads": {"decoder": BackboneHeads, "past_actions": False},
    "independent heads": {"decoder": IndependentHeads, "text_dim": None},
}
pytestmark = pytest.mark.usefixtures("one_thread")


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path of everything in a config."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in entries:
        yield (*path, key)
        yield from places(below, (*path, key))


def spoilt(config: dict, path: tuple, value: Any) -> dict:
    config = copy.deepcopy(config)
    inner: Any = config
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return config


def plays(policy: BCPolicy) -> None:
    """A window forward, and three steps of an agent whose decisions are ones that a game can take."""
    size, width = policy.input_spec.frame_size, policy.input_spec.text_dim
    frames = np.zeros((3, size, size, 3), np.uint8)
    actions = tiny.random_actions(policy.action_space, 1, 3)
    logits = policy(torch.from_numpy(frames).permute(0, 3, 1, 2)[None], actions)
    assert all(values.isfinite().all() for values in logits.values())
    agent = policy.agent()
    for frame in frames:
        decision = agent.step(frame, text=None if width is None else np.ones(width, np.float32))
        policy.action_space.encode(**json.loads(json.dumps(decision.values)))


def peak_bytes() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory as Linux counts it")
@pytest.mark.parametrize("kind", POLICIES)
def test_a_value_is_refused_when_it_is_read_or_the_policy_plays(kind, tmp_path):
    policy = tiny.tiny_policy(action_space=SPACE.to_dict(), **POLICIES[kind])
    folder = policy.save_pretrained(tmp_path / "policy")
    content = json.loads((folder / "config.json").read_text())
    cases = [(path, value) for path in places(content["policy"], ("policy",)) for value in NASTY]
    if not SLOW:
        cases = random.Random(kind).sample(cases, 120)
    before, refused = peak_bytes(), 0
    for path, value in cases:
        (folder / "config.json").write_text(json.dumps(spoilt(content, path, value)))
        try:
            loaded = BCPolicy.from_pretrained(folder)
        except UserError as error:
            refused += 1
            assert str(folder) in str(error) and len(str(error)) < 1000, (path, value)
            assert "does not describe a policy" not in str(error), (path, value)  # what is left over for real surprises
            continue
        try:
            plays(loaded)
        except Exception as error:
            raise AssertionError(f"{path} = {value!r} is loaded and fails later") from error
    assert len(cases) / 2 < refused < len(cases)
    assert peak_bytes() - before < 2**30


def refusal(**arguments: Any) -> str:
    with pytest.raises(UserError) as refused:
        tiny.tiny_policy(**arguments)
    return str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"transformer": {"heads": -1}}, "PolicyTransformer.heads must be a whole number from 1 on, got -1"),
        (
            {"transformer": {"history": [1, True]}},
            "PolicyTransformer.history must be a whole number from 0 on, got True",
        ),
        ({"transformer": {"dropout": 1.5}}, "PolicyTransformer.dropout must be a number from 0 to below 1, got 1.5"),
        ({"transformer": {"sinks": 0.5}}, "PolicyTransformer.sinks must be a whole number from 0 on, got 0.5"),
        ({"decoder": partial(ActionDecoder, layers=0)}, "ActionDecoder.layers must be a whole number from 1 to 10,000"),
        ({"encoder": {"frozen": "no"}}, "ImageEncoder.frozen must be true or false, got 'no'"),
        ({"encoder": {"stage": 50}}, "timm's test_efficientnet cannot give feature map 50"),
        ({"z_loss": float("nan")}, "z_loss must be a number from 0 on, got nan"),
        ({"text_dim": 0}, "text_dim must be a whole number from 1 on, got 0"),
        ({"fps": 1e-300}, "fps must be a number from 0.1 to 1,000, got 1e-300"),
        ({"resize": ["box"]}, "resize must be one of hamming, bilinear, bicubic, lanczos, box, letterbox, got ['box']"),
        ({"text_encoder": "gemma"}, "text_encoder must be of class TextEncoder, or an object with class_path"),
        ({"decoder": {"class_path": "bczoo.Decoder"}}, "'bczoo.Decoder' is not a known Decoder"),
        ({"text_encoder": {"class_path": "bczoo.TextEncoder"}}, "'bczoo.TextEncoder' is not a known TextEncoder"),
        (
            {"decoder": {"class_path": "bczoo.ActionDecoder", "init_args": {"x": 1}}},
            "bczoo.ActionDecoder: got an unexp",
        ),
        (
            {"action_space": {"name": "keyboard_mouse", "extra_keys": "r"}},
            "extra_keys must be a list of names, got 'r'",
        ),
        (
            {"action_space": {"name": "keyboard_mouse", "max_key": 3}},
            "action space 'keyboard_mouse': got an unexpected",
        ),
    ],
)
def test_whoever_builds_a_policy_is_told_the_same(arguments, told):
    assert told in refusal(**arguments)


@pytest.mark.parametrize(
    ("group", "told"),
    [
        ({"kind": "held", "names": ["_", "a"], "tokens": True}, "tokens of action group 'g' must be a whole number"),
        (
            {"kind": "held", "names": "wasd", "tokens": 1},
            "names of action group 'g' must be a list of at least 2 names",
        ),
        ({"kind": "switch", "names": ["a", "a"]}, "names of action group 'g' have 'a' more than once"),
        ({"kind": "switch", "names": ["a\n"]}, "names of action group 'g' must be a text of 1 to 200 printable"),
        ({"kind": "binned", "edges": [0.0, "1"], "low": -1, "high": 1}, "edges of action group 'g' must be a number"),
        (
            {"kind": "binned", "edges": [1.0, 0.0], "low": -1, "high": 1},
            "edges of action group 'g' must be in ascending",
        ),
        (
            {"kind": "binned", "edges": [0.0], "low": -1, "high": 1, "std": -2},
            "std of action group 'g' must be a number",
        ),
        ({"kind": "binned", "edges": [0.0], "low": 1, "high": 2}, "bin 0 of action group 'g' holds no whole number"),
        (
            {"kind": "binned", "edges": [0.1, 0.2], "low": -1, "high": 1},
            "bin 1 of action group 'g' holds no whole number",
        ),
        ({"kind": "binned", "edges": [0.0], "low": -1, "hihg": 1}, "action group 'g': "),
    ],
)
def test_groups_that_mean_nothing_are_no_action_space(group, told):
    with pytest.raises(UserError) as refused:
        ActionSpace.of({"name": "s", "groups": [{"name": "g", **group}]})
    assert told in str(refused.value)


def test_a_window_may_be_long_but_not_beyond_all_proportion():
    assert tiny.tiny_policy(window=5000).input_spec.window == 5000
    told = refusal(window=1_000_000)
    assert (
        "the memory of a game would hold 1,672,001,672 numbers (window 1,000,000, 12 tokens a step, 2 layers)" in told
    )
    assert "thinking" not in told and "10,013 tokens a step" in refusal(thinking_tokens=10_002)
    with torch.device("meta"):
        for size in ("150m", "1.2b"):
            assert BCPolicy.from_config(size, pretrained=False, window=5000).input_spec.window == 5000


def test_what_a_checkpoint_says_of_its_policy_is_checked_too(tmp_path):
    """A checkpoint can hold more than JSON can: tuples and tensors."""
    policy = tiny.tiny_policy()
    for name, value in (("window", torch.tensor(5)), ("z_loss", (0.1,)), ("fps", True), ("resize", {"a"})):
        content = {"state_dict": policy.state_dict(), "hyper_parameters": policy.config | {name: value}}
        torch.save(content, tmp_path / "a.ckpt")
        with pytest.raises(UserError, match=rf"a\.ckpt: {name} must be .*, got"):
            BCPolicy.from_pretrained(tmp_path / "a.ckpt")
