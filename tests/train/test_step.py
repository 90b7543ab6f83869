"""What a training step must not do: wait for the device, leave the compiled graph, be compiled again and again."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bczoo.nn.attention import ROWS, WindowAttention, sdpa
from bczoo.train.flops import random_batch

pytestmark = pytest.mark.usefixtures("one_thread")
FAMILIES = {"reference": tiny.tiny_policy, "cnn": tiny.tiny_cnn}
WAITS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class NoWaiting(TorchDispatchMode):
    """Refuses operations whose result the host has to know, which on a GPU wait for all that was asked before."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not WAITS & set(func.tags), f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


def test_waiting_is_noticed():
    with NoWaiting():
        for wait in (torch.Tensor.item, torch.nonzero, lambda x: x[x > 0], bool):
            with pytest.raises(AssertionError, match="waits for the device"):
                wait(torch.ones(()))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_does_not_wait_for_the_device(family):
    model = FAMILIES[family]().train()
    batch = random_batch(model.input_spec, 2)
    batch["recording"] = torch.arange(2)
    optimizer = model.make_optimizer()

    def step():
        optimizer.zero_grad()
        model.loss(batch).total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    step()  # builds the mask and the state of the optimiser, once
    with NoWaiting():
        step()
        with torch.no_grad():
            model.eval().evaluate(batch, "val")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_is_one_graph_and_is_compiled_once_per_batch_size(family):
    torch._dynamo.reset()
    model = FAMILIES[family]().train()
    kinds = 2 if family == "reference" else 1  # the decoder's blocks have another shape
    compiled = []

    def note(graph, _):
        compiled.append(graph)
        return graph

    for block in model.blocks():
        block.compile(backend=note, dynamic=False, fullgraph=True)
    counts = []
    for size in (2, 2, 1, 2, 1):  # the last batch of an epoch is a smaller one
        model.loss(random_batch(model.input_spec, size)).total.backward()
        counts.append(len(compiled))
    assert counts == [kinds, kinds, 2 * kinds, 2 * kinds, 2 * kinds]


@pytest.mark.parametrize("history", [None, 100])
def test_attention_in_rows_is_attention_at_once(history):
    length, heads = 2 * ROWS + 40, 2
    age = torch.arange(length)[:, None] - torch.arange(length)
    mask = (age >= 0) & (age <= (history or length))
    inputs = [torch.randn(1, heads, length, 8, requires_grad=True) for _ in range(3)]
    attend = WindowAttention(mask, sdpa)
    seen = sum((keys.stop - keys.start) * (rows.stop - rows.start) for rows, keys in attend.parts)
    assert 0 < seen < 0.75 * length**2
    results = []
    for mixed in (attend(*inputs, None), sdpa(*inputs, mask)):
        results.append((mixed, *torch.autograd.grad(mixed.square().sum(), inputs)))
    for split, whole in zip(*results, strict=True):
        torch.testing.assert_close(split, whole)


@pytest.mark.parametrize(("chosen", "fused"), [({}, True), ({"foreach": True}, None), ({"fused": False}, False)])
def test_adam_is_fused_unless_told_otherwise(chosen, fused):
    model = tiny.tiny_policy(optimizer=lambda parameters: torch.optim.AdamW(parameters, **chosen))
    assert {group["fused"] for group in model.make_optimizer().param_groups} == {fused}


def test_other_optimisers_are_left_alone():
    model = tiny.tiny_policy(optimizer=lambda parameters: torch.optim.Adagrad(parameters))
    assert model.make_optimizer().param_groups[0]["fused"] is None


def test_a_frozen_encoder_keeps_no_graph():
    model = tiny.tiny_policy(encoder={"frozen": True}).train()
    kept = []
    hook = model.encoder.backbone.register_forward_hook(lambda _, args, out: kept.append(out[0].requires_grad))
    model.loss(random_batch(model.input_spec, 1)).total.backward()
    hook.remove()
    assert kept == [False] and all(p.grad is None for p in model.encoder.backbone.parameters())
