"""Tokens that are fed as they come give what a forward pass over their context gives, at the same cost at any time."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch

from bczoo.models.token.dream import Dream
from bczoo.models.token.memory import TokenMemory

pytestmark = pytest.mark.usefixtures("one_thread")


def full_forward(model, tokens, upto, window):
    """Output (D,) behind token ``upto`` - 1 of a sequence (L,), and where its context begins, by the definition."""
    step = model.layout.length
    half = window // 2 * step
    begin = max(upto // half - 1, 0) * half
    assert upto - begin < window * step or upto <= half
    with torch.no_grad():
        table = model.transformer.table(tokens[None, begin:upto])
        return model.transformer.gpt(table)[0, -1], begin


@pytest.mark.parametrize("window", [2, 5, 6])
def test_outputs_equal_a_forward_pass_over_the_context(window):
    world = tiny.tiny_world(window=window).eval()
    tokens = torch.randint(0, world.layout.vocabulary, (2, 14 * 12))
    memory = TokenMemory(world.transformer, 2, window)
    memory.reset()
    costs = set()
    for t in range(14):
        before = memory.positions
        for part in (slice(0, 4), slice(4, 12)):  # a picture, an action
            chunk = tokens[:, 12 * t + part.start : 12 * t + part.stop]
            with torch.no_grad():
                if part.start == 0:  # drafts are written over
                    memory.draft([0, 1], torch.zeros(2, 2, dtype=torch.long), ahead=0)
                output = memory.feed([0, 1], chunk)[:, -1]
            for game in (0, 1):
                expected, begin = full_forward(world, tokens[game], 12 * t + part.stop, window)
                assert memory.context(game) == begin
                torch.testing.assert_close(output[game], expected, atol=2e-5, rtol=1e-4)
        costs.add(memory.positions - before)
    assert len(costs) == 1  # as many positions at the beginning as past the context's end


def test_sequences_need_not_go_together():
    world = tiny.tiny_world(window=4).eval()
    tokens = torch.randint(0, world.layout.vocabulary, (3, 9 * 12))
    memory = TokenMemory(world.transformer, 3, 4)
    fed = [0, 0, 0]
    rng = np.random.default_rng(0)
    for _ in range(20):
        games = sorted(rng.choice(3, rng.integers(1, 4), replace=False).tolist())
        games = [g for g in games if fed[g] < 9]
        if not games:
            continue
        chunk = torch.stack([tokens[g, 12 * fed[g] : 12 * (fed[g] + 1)] for g in games])
        with torch.no_grad():
            output = memory.feed(games, chunk)[:, -1]
        for i, g in enumerate(games):
            fed[g] += 1
            torch.testing.assert_close(
                output[i], full_forward(world, tokens[g], 12 * fed[g], 4)[0], atol=2e-5, rtol=1e-4
            )
    memory.reset(1)
    with torch.no_grad():
        output = memory.feed([1], tokens[1:2, :12])[0, -1]
    torch.testing.assert_close(output, full_forward(world, tokens[1], 12, 4)[0], atol=2e-5, rtol=1e-4)


def sharpened(model):
    """A model whose outputs depend on all of the context, and so much that no rounding decides what is likeliest."""
    with torch.no_grad():
        for parameter in model.transformer.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    return model.eval()


def test_greedy_dreams_equal_a_forward_pass_a_token():
    torch.manual_seed(1)
    world = sharpened(tiny.tiny_world(window=4))
    pictures, actions = torch.randint(0, 16, (2, 2, 4)), torch.randint(0, 4, (2, 10, 8))
    dream = Dream(world, 2, temperature=0)
    dream.see(pictures, actions[:, :1])
    sequence = world.layout.steps(pictures, actions[:, :2]).flatten(1)[:, :-8]
    costs = set()
    for t in range(1, 10):
        before = dream.memory.positions
        ids, _ = dream.step(actions[:, t])
        costs.add(dream.memory.positions - before)
        sequence = torch.cat([sequence, world.layout.action_tokens(actions[:, t])], 1)
        context = max(sequence.shape[1] // 24 - 1, 0) * 24
        for i in range(4):
            with torch.no_grad():
                output = world.transformer.gpt(world.transformer.table(sequence[:, context:]))[:, -1]
            token = world.transformer.choices(output, i).argmax(-1)
            assert token.tolist() == ids[:, i].tolist()
            sequence = torch.cat([sequence, token[:, None]], 1)
    assert costs == {2 * (2 * (8 + 4) + 3)}  # two dreams; actions and picture in two windows, three drafts


def test_a_dream_replayed_gives_the_probabilities_it_was_sampled_with():
    torch.manual_seed(2)
    world = sharpened(tiny.tiny_world(window=8))
    pictures, actions = torch.randint(0, 16, (2, 2, 4)), torch.randint(0, 4, (2, 8, 8))
    dream = Dream(world, 2, seed=3)
    dream.see(pictures, actions[:, :1])
    steps = [dream.step(actions[:, t]) for t in range(1, 7)]
    shown = torch.cat([pictures, torch.stack([one.ids for one in steps], 1)], 1)  # (2, 8, 4), the whole window
    with torch.no_grad():
        outputs = world.transformer(world.layout.steps(shown, actions))
        logits = world.transformer.choices(world.transformer.before_pictures(outputs), 0)
        p = logits.softmax(-1).gather(-1, shown[:, 1:, :, None])[..., 0]  # (2, 7, 4)
    for t, step in enumerate(steps):
        torch.testing.assert_close(step.probability, p[:, 1 + t], atol=1e-4, rtol=1e-3)
    again = Dream(world, 2, seed=3)
    again.see(pictures, actions[:, :1])
    assert torch.equal(again.step(actions[:, 1]).ids, steps[0].ids)  # the seed decides
    other = Dream(world, 2, seed=4)
    other.see(pictures, actions[:, :1])
    assert any(not torch.equal(other.step(actions[:, t]).ids, steps[t - 1].ids) for t in range(1, 7))


def test_top_k_and_swapped_actions():
    torch.manual_seed(3)
    world = sharpened(tiny.tiny_world())
    pictures, actions = torch.randint(0, 16, (1, 2, 4)), torch.randint(0, 4, (1, 7, 8))

    def video(actions, **options):
        dream = Dream(world, **options)
        dream.see(pictures, actions[:, :1])
        return torch.stack([dream.step(actions[:, t]).ids for t in range(1, 7)])

    assert torch.equal(video(actions, top_k=1), video(actions, temperature=0))
    assert not torch.equal(video(actions, temperature=0), video((actions + 1) % 4, temperature=0))


def test_a_session_decides_as_a_forward_pass_over_its_context():
    torch.manual_seed(4)
    policy = sharpened(tiny.tiny_token_policy(window=4))
    agent = policy.agent(1, greedy=True)
    frames = np.random.default_rng(0).integers(0, 256, (11, 64, 64, 3), dtype=np.uint8)
    sequence, costs = torch.zeros(1, 0, dtype=torch.long), set()
    for t, frame in enumerate(frames):
        before = agent.session.memory.positions
        decision = agent.step(frame)
        costs.add(agent.session.memory.positions - before)
        ids = policy.encode(agent.pixels([frame])[:, None])[:, 0]
        sequence = torch.cat([sequence, ids], 1)
        for i, choice in enumerate([i for group in decision.ids.values() for i in group]):
            context = max(sequence.shape[1] // 24 - 1, 0) * 24
            with torch.no_grad():
                output = policy.transformer.gpt(policy.transformer.table(sequence[:, context:]))[:, -1]
            logits = policy.transformer.choices(output, 4 + i)
            assert int(logits.argmax(-1)) == choice
            sequence = torch.cat([sequence, torch.tensor([[choice + policy.layout.offsets[i]]])], 1)
        if t == 5:  # somebody else acted
            agent.override_last_action(0, {"keys": ["w", "d"], "mouse_dx": 40})
            sequence[:, -8:] = policy.layout.action_tokens(agent.session.last_ids)
    assert costs == {2 * 4 + 7, 2 * (8 + 4) + 7}  # the first step has no action before it
