"""What only a GPU can show: compiled FlexAttention, forward and backward, bfloat16, and steps from CUDA graphs."""

import pytest
import tiny
import torch

from bczoo import BackboneHeads
from bczoo.play.latency import StageTimes
from bczoo.train.loss import bc_loss

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def on_gpu(batch):
    return {k: {n: t.cuda() for n, t in v.items()} if isinstance(v, dict) else v.cuda() for k, v in batch.items()}


@pytest.mark.parametrize("transformer", [{}, {"kv_heads": 2, "sinks": 2, "history": [1, 3]}], ids=["plain", "all"])
def test_compiled_flex_attention_agrees_with_sdpa(transformer):
    results = {}
    for attention in ("sdpa", "flex"):
        options = {"width": 64, "attention": attention, **transformer}
        policy = tiny.tiny_policy(transformer=options).eval().cuda()
        batch = on_gpu(tiny.tiny_batch(policy, steps=20))
        logits = policy(batch["frames"], batch["actions"], batch["text"])
        bc_loss(logits, batch["actions"], batch["user"]).total.backward()
        results[attention] = logits, policy.transformer.blocks[0].attention.qkv.weight.grad
    for name, logits in results["sdpa"][0].items():
        torch.testing.assert_close(logits, results["flex"][0][name], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(results["sdpa"][1], results["flex"][1], atol=1e-3, rtol=1e-2)


def test_a_bfloat16_step_is_near_the_float32_one():
    policy = tiny.tiny_policy().eval().cuda()
    batch = on_gpu(tiny.tiny_batch(policy))
    exact = policy(batch["frames"], batch["actions"], batch["text"])
    with torch.autocast("cuda", torch.bfloat16):
        rough = policy(batch["frames"], batch["actions"], batch["text"])
        loss = bc_loss(rough, batch["actions"], batch["user"]).total
    loss.backward()
    for name, logits in exact.items():
        torch.testing.assert_close(rough[name].float(), logits, atol=0.3, rtol=0.1)
    assert all(p.grad.isfinite().all() for p in policy.parameters())


def test_streaming_on_the_gpu_decides_as_on_the_cpu():
    frames = tiny.tiny_batch(tiny.tiny_policy(), batch=1, steps=8)["frames"][0].numpy()
    on_cpu = tiny.tiny_policy().agent(seed=1)
    on_cuda = tiny.tiny_policy().cuda().agent(seed=1)
    for frame in frames:
        a, b = on_cpu.step(frame), on_cuda.step(frame)
        assert abs(a.probabilities["keys"] - b.probabilities["keys"]).max() < 1e-2


@pytest.mark.parametrize("options", [{}, {"decoder": BackboneHeads}, {"transformer": {"kv_heads": 2, "sinks": 2}}])
def test_cuda_graphs_decide_as_plain_steps(options):
    policy = tiny.tiny_policy(**options).cuda()
    frames = tiny.tiny_batch(policy, batch=3, steps=12)["frames"].cpu().numpy()
    graphed, plain = policy.agent(3, seed=1), policy.agent(3, seed=1, cuda_graphs=False)
    for t in range(12):
        rows = [0, 1, 2] if t % 3 else [0, 2]
        for a, b in zip(*(x.step_many(rows, [frames[r, t] for r in rows]) for x in (graphed, plain)), strict=True):
            assert a.ids == b.ids
            assert abs(a.probabilities["keys"] - b.probabilities["keys"]).max() < 1e-4


def test_cuda_graphs_take_no_memory_after_the_first_step():
    policy = tiny.tiny_policy().cuda()
    frame = tiny.tiny_batch(policy, batch=1, steps=1)["frames"][0, 0].cpu().numpy()
    agent = policy.agent()
    agent.times = StageTimes()
    agent.step(frame)
    torch.cuda.synchronize()
    taken = torch.cuda.memory_allocated()
    for _ in range(50):
        agent.step(frame)
    assert torch.cuda.memory_allocated() == taken
    assert list(agent.times.summary()) == ["resize", "encode", "backbone", "decode", "sample"]


def test_bfloat16_play_is_near_float32_play():
    frame = tiny.tiny_batch(tiny.tiny_policy(), batch=1, steps=1)["frames"][0, 0].numpy()
    exact = tiny.tiny_policy().cuda().agent(greedy=True).step(frame)
    rough = tiny.tiny_policy().cuda().bfloat16().agent(greedy=True).step(frame)
    assert abs(exact.probabilities["keys"][0] - rough.probabilities["keys"][0]).max() < 0.05
