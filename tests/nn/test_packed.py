"""Policies that are packed for play: the same decisions, and nothing else can be done with them."""

import copy

import numpy as np
import pytest
import tiny
import torch
from torch import nn

from bczoo import BackboneHeads, BCPolicy, PolicyTransformer
from bczoo.nn import packed
from bczoo.nn.encoders import Encoder
from bczoo.nn.packed import PackedLinear, can_pack
from bczoo.play import bench

pytestmark = pytest.mark.skipif(not can_pack(torch.float32), reason="this machine's torch cannot pack linear layers")


@pytest.fixture(autouse=True)
def pack_even_tiny_layers(monkeypatch):
    monkeypatch.setattr(packed, "SMALLEST", 1)


@pytest.mark.parametrize("options", [{}, {"decoder": BackboneHeads}, {"transformer": {"kv_heads": 2, "sinks": 2}}])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_packed_policies_decide_alike(options, kind):
    if not can_pack(kind):
        pytest.skip(f"this processor packs no {kind}")
    policy = tiny.tiny_policy(**options).to(kind)
    frames = tiny.tiny_batch(policy, batch=3, steps=7)["frames"].numpy()
    plain, quick = policy.agent(3, greedy=True), policy.for_play().agent(3, greedy=True)
    tolerance = 1e-5 if kind == torch.float32 else 2e-2
    for t in range(7):
        rows = [0, 1, 2] if t % 2 else [1]
        for a, b in zip(*(x.step_many(rows, [frames[r, t] for r in rows]) for x in (plain, quick)), strict=True):
            np.testing.assert_allclose(a.probabilities["keys"][0], b.probabilities["keys"][0], atol=tolerance)
            if kind == torch.float32:
                assert a.ids == b.ids


def test_the_original_stays_as_it_is():
    policy = tiny.tiny_policy()
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    quick = policy.for_play()
    assert any(isinstance(m, PackedLinear) for m in quick.modules())
    ours = (quick.transformer, quick.decoder, quick.tokens)
    assert not any(isinstance(m, nn.Linear) for part in ours for m in part.modules())
    assert not any(isinstance(m, PackedLinear) for m in policy.modules())
    assert all(torch.equal(policy.state_dict()[name], tensor) for name, tensor in before.items())
    policy.train()
    tiny_loss = policy.training_step(tiny.tiny_batch(policy), 0)
    tiny_loss.backward()
    assert policy.transformer.blocks[0].attention.qkv.weight.grad is not None


class LooksInside(Encoder):
    """An encoder whose layers are another package's, which reads their weights itself."""

    def __init__(self, width):
        super().__init__()
        self.tokens, self.frame_size = 1, tiny.SIZE
        self.layer = nn.TransformerEncoderLayer(3 * tiny.SIZE, 4, 64, batch_first=True)
        self.norm = nn.Linear(3 * tiny.SIZE, width)

    def forward(self, frames):
        rows = (frames.float() / 255).flatten(1, 2).transpose(1, 2)  # (N, W, 3 H)
        return self.norm(self.layer(rows).mean(1))[:, None]


def test_what_is_not_ours_is_left_alone():
    torch.manual_seed(0)
    policy = BCPolicy(PolicyTransformer(width=32, layers=2, heads=4, dropout=0.0), LooksInside, window=5, text_dim=None)
    frame = np.zeros((tiny.SIZE, tiny.SIZE, 3), np.uint8)
    quick = policy.eval().for_play()
    assert quick.encoder.layer is policy.encoder.layer and isinstance(quick.decoder.project, PackedLinear)
    plain = policy.agent(greedy=True).step(frame)
    assert quick.agent(greedy=True).step(frame).ids == plain.ids


def test_all_weights_are_counted():
    policy = tiny.tiny_policy()
    assert policy.for_play().parameter_counts() == policy.parameter_counts()
    assert bench.weight_bytes(policy.for_play()) == bench.weight_bytes(policy)


@pytest.mark.parametrize(
    ("attempt", "said"),
    [
        (lambda p, folder: p.train(), "trained"),
        (lambda p, folder: p.to(torch.bfloat16), "number type"),
        (lambda p, folder: p.transformer.to(torch.bfloat16), "number type"),
        (lambda p, folder: copy.deepcopy(p), "copied"),
        (
            lambda p, folder: p.transformer(torch.randn(1, 2 * p.layout.length, 32, requires_grad=True), p.layout),
            "no_grad",
        ),
        (lambda p, folder: p.save_pretrained(folder), "saved"),
    ],
)
def test_a_packed_policy_only_plays(attempt, said, tmp_path):
    policy = tiny.tiny_policy()
    with pytest.raises(ValueError, match=said):
        attempt(policy.for_play(), tmp_path / "policy")
    assert all(p.dtype == torch.float32 for p in policy.parameters()), "the original is untouched"


def test_small_layers_are_left_alone(monkeypatch):
    monkeypatch.setattr(packed, "SMALLEST", 1 << 18)
    policy = tiny.tiny_policy()
    assert policy.for_play() is policy


def test_a_machine_that_cannot_pack_plays_unpacked(monkeypatch):
    def broken(*arguments):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(packed, "_pack", broken)
    policy = tiny.tiny_policy()
    assert policy.for_play() is policy


def test_wrong_results_are_not_taken(monkeypatch):
    pack = packed._pack
    monkeypatch.setattr(packed, "_pack", lambda weight, tokens: pack(weight * 1.01, tokens))
    assert not can_pack(torch.float32)
