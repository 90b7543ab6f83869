"""What a training step takes, reckoned on tensors without contents."""

from __future__ import annotations

import pytest
import tiny
import torch

from bczoo.core.errors import UserError
from bczoo.models.bc.masks import window_attention
from bczoo.models.model import Model
from bczoo.train.flops import random_batch
from bczoo.train.memory import _Live, memory, step_memory

pytestmark = pytest.mark.usefixtures("one_thread")


def really_taken(policy, batch, steps):
    """Bytes that were alive at once in the second step of a real training."""
    with _Live() as live:
        for tensor in [*policy.parameters(), *policy.buffers()]:
            live.add(tensor)
        data, optimizer = random_batch(policy.input_spec, batch, "cpu", steps), policy.make_optimizer()
        for _ in range(2):
            optimizer.zero_grad()
            live.most = live.now
            loss = policy.loss(data).total
            loss.backward()
            del loss
            optimizer.step()
        return live.most


def test_it_is_what_a_real_step_takes():
    policy = tiny.tiny_policy()
    window_attention.cache_clear()
    reckoned = step_memory(policy, 3, 6, "float32").most
    # fake tensors hold no scratch of the kernels, and the real step's masks are alive too
    assert reckoned == pytest.approx(really_taken(tiny.tiny_policy(), 3, 6), rel=0.03)


def test_its_parts_follow_the_parameters():
    policy = tiny.tiny_policy()
    found = step_memory(policy, 2, 5, "float32")
    learned = sum(4 * p.numel() for p in policy.parameters() if p.requires_grad)
    assert found.gradients == learned and found.weights >= learned
    assert found.optimizer == pytest.approx(2 * learned, rel=0.01)  # two moments, and the number of steps
    assert found.most == found.weights + found.gradients + found.optimizer + found.activations


def test_activations_grow_with_the_batch_and_shrink_with_checkpointing():
    policy = tiny.tiny_policy()
    few, many = step_memory(policy, 2, 20), step_memory(policy, 8, 20)
    assert 3 < many.activations / few.activations < 4.2
    assert step_memory(policy, 8, 20, checkpointing=True).activations < many.activations
    assert not policy.transformer.checkpointing


def test_a_training_after_it_uses_masks_with_contents():
    policy = tiny.tiny_policy().eval()
    batch = random_batch(policy.input_spec, 1, "cpu")
    with torch.no_grad():
        before = policy.loss(batch).total
        step_memory(policy, 1, policy.input_spec.window)
        assert torch.equal(policy.loss(batch).total, before)


def test_the_largest_batch_that_fits(capsys):
    found = memory("tiny", steps=4, dtype="float32", gb=0.1)
    assert f"the largest batch that 0.1 GB hold: {found.largest_batch} windows" in capsys.readouterr().out
    model = Model.from_config("tiny", pretrained=False)
    assert step_memory(model, found.largest_batch, 4, "float32").most <= 1e8
    assert step_memory(model, found.largest_batch + 1, 4, "float32").most > 1e8


def test_what_it_refuses():
    with pytest.raises(UserError, match="batch must be a whole number"):
        memory("tiny", batch=0)
