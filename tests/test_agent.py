"""Streaming play: equal to the window it stands for, in every variant of the architecture."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from bczoo import ActionDecoder, BackboneHeads, IndependentHeads, sampling
from bczoo.model.blocks import ROPE_BASE, Rotation

VARIANTS = {
    "published": {},
    "no-decoder": {"decoder": BackboneHeads},
    "independent-heads": {"decoder": IndependentHeads},
    "many-tokens": {"encoder": {"tokens": 3}, "thinking_tokens": 2},
    "no-thinking-no-text": {"thinking_tokens": 0, "text_dim": None},
    "grouped-queries-and-sinks": {"transformer": {"kv_heads": 2, "sinks": 2}},
    "history-per-layer": {"transformer": {"history": [1, 3]}},
    "no-past-actions": {"past_actions": False},
    "no-past-actions-no-decoder": {"past_actions": False, "decoder": BackboneHeads},
    "gamepad": {"action_space": "gamepad", "decoder": ActionDecoder},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_streaming_equals_one_long_window(variant):
    """Twelve steps past a window of five: the same as all steps at once with the window as history."""
    options = dict(VARIANTS[variant])
    policy = tiny.tiny_policy(**options).eval()
    batch = tiny.tiny_batch(policy, batch=1, steps=12)
    agent = policy.agent(seed=3)
    texts = batch["text"][0] if "text" in batch else [None] * 12
    decisions = [agent.step(f.numpy(), text=t) for f, t in zip(batch["frames"][0], texts, strict=True)]
    actions = {g.name: torch.tensor([[d.ids[g.name] for d in decisions]]) for g in policy.action_space.groups}
    policy.transformer.histories = [min(h, policy.input_spec.window - 1) for h in policy.transformer.histories]
    with torch.no_grad():
        logits = policy(batch["frames"], actions, batch.get("text"))
    for name, expected in logits.items():
        streamed = torch.tensor(np.stack([d.probabilities[name] for d in decisions]))
        torch.testing.assert_close(streamed, expected[0].softmax(-1), atol=1e-5, rtol=0)


def test_games_side_by_side_do_not_touch_each_other():
    policy = tiny.tiny_policy().eval()
    frames = tiny.tiny_batch(policy, batch=3, steps=8)["frames"].numpy()
    alone = []
    for row in range(3):
        agent = policy.agent(3, seed=1)
        alone.append([agent.step_many([row], [frames[row, t]])[0] for t in range(8)])
    together = policy.agent(3, seed=1)
    for t in range(8):
        rows = [0, 2] if t == 4 else [0, 1, 2]  # game 1 pauses once
        for row, decision in zip(
            rows,
            together.step_many(rows, [frames[r, t if r != 1 or t < 4 else t - 1] for r in rows]),
            strict=True,
        ):
            expected = alone[row][t if row != 1 or t < 4 else t - 1]
            assert decision.ids == expected.ids and decision.values == expected.values


def test_reset_forgets():
    policy = tiny.tiny_policy().eval()
    frames = tiny.tiny_batch(policy, steps=7)["frames"][0].numpy()
    agent = policy.agent(greedy=True)
    first = [agent.step(f).ids for f in frames]
    agent.reset()
    assert [agent.step(f).ids for f in frames] == first


def test_a_seeded_reset_draws_the_same_again():
    policy = tiny.tiny_policy().eval()
    frames = tiny.tiny_batch(policy, steps=5)["frames"][0].numpy()
    agent = policy.agent(2)
    agent.reset(1, seed=7)
    first = [agent.step_many([1], [f])[0].ids for f in frames]
    agent.step_many([0], frames[:1])
    agent.reset(0, seed=7)
    assert [agent.step_many([0], [f])[0].ids for f in frames] == first


def test_frames_of_any_size_and_order():
    agent = tiny.tiny_policy().agent(greedy=True)
    frame = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    ids = agent.step(frame).ids
    agent.reset()
    assert agent.step(frame.transpose(2, 0, 1)).ids == ids
    with pytest.raises(ValueError, match="uint8"):
        agent.step(frame.astype(float))


def test_decisions_speak():
    decision = tiny.tiny_policy().agent().step(np.zeros((64, 64, 3), np.uint8))
    assert decision.keys == decision.values["keys"] and isinstance(decision.mouse_dx, int)
    assert {k: v.shape for k, v in decision.probabilities.items()} == {
        "keys": (4, 20), "mouse_buttons": (2, 4), "mouse_dx": (1, 23), "mouse_dy": (1, 17)
    }  # fmt: skip
    assert np.allclose(decision.probabilities["keys"].sum(-1), 1, atol=1e-5)


def test_published_draws():
    cases = json.loads((Path(__file__).parent / "golden" / "sampler_public.json").read_text())["cases"]
    for case in cases:
        logits = (2 * np.random.RandomState(case["seed"]).standard_normal(case["n"])).astype(np.float32)
        p = sampling.probabilities(torch.from_numpy(logits)[None], case["temperature"], case["top_p"])
        assert sampling.draw(p, torch.tensor([case["u"]], dtype=torch.float64)).item() == case["index"], case


def test_angles_stay_exact_after_ten_hours():
    positions = torch.tensor([0, 1, 2399, 720_000 * 12, 720_000 * 12 + 11])
    rotation = Rotation.at(positions, 64)
    exact = positions.numpy()[:, None] * ROPE_BASE ** -(np.arange(0, 64, 2) / 64)
    assert np.abs(rotation.cos.numpy() - np.cos(exact)).max() < 1e-6
    assert np.abs(rotation.sin.numpy() - np.sin(exact)).max() < 1e-6
