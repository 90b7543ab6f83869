"""The attention mask: as drawn, the same in both backends, and with the consequences it must have."""

import re

import pytest
import tiny
import torch

from bczoo import BackboneHeads
from bczoo.models.bc import masks
from bczoo.models.bc.layout import StepLayout

DRAWN = StepLayout(text=1, image=1, thinking=1, actions=2)


def test_the_drawing_in_the_docstring_is_the_mask():
    rows = re.findall(r"^    ((?:[x.] ){12})", masks.__doc__ + "\n", flags=re.M)
    assert len(rows) == 12
    assert "\n".join(r.strip() for r in rows) == masks.as_text(masks.dense_mask(DRAWN, 2, history=1))


def test_causal_actions():
    layout = StepLayout(text=0, image=1, thinking=0, actions=3, causal_actions=True)
    assert masks.as_text(masks.dense_mask(layout, 1, history=0)) == "\n".join(
        ["x . . . .", "x x . . .", "x . x . .", "x . x x .", "x . x x x"]
    )


@pytest.mark.parametrize("history", [0, 1, 3])
def test_history_limits_how_far_back_a_query_looks(history):
    mask = masks.dense_mask(DRAWN, 5, history)
    size = DRAWN.length
    for q in range(5):
        for kv in range(5):
            seen = mask[q * size : (q + 1) * size, kv * size : (kv + 1) * size].any()
            assert seen == (0 <= q - kv <= history)


def test_without_past_actions_later_steps_see_all_else():
    layout = StepLayout(text=1, image=1, thinking=1, actions=2, past_actions=False)
    hidden, published = masks.dense_mask(layout, 4, 2), masks.dense_mask(DRAWN, 4, 2)
    step, slot = torch.arange(24) // 6, torch.arange(24) % 6
    past_action = (step[None] < step[:, None]) & (slot > layout.action_out)[None]
    assert torch.equal(hidden, published & ~past_action) and (published & past_action).any()


def test_sinks_are_visible_to_all():
    mask = masks.dense_mask(DRAWN, 2, 1, sinks=3)
    assert mask[:, :3].all()
    assert torch.equal(mask[:, 3:], masks.dense_mask(DRAWN, 2, 1))


@pytest.mark.parametrize(
    "transformer",
    [{}, {"kv_heads": 2, "sinks": 2}, {"history": [1, 3]}],
    ids=["plain", "grouped-queries-and-sinks", "history-per-layer"],
)
@pytest.mark.parametrize("decoder", [None, BackboneHeads], ids=["decoder", "no-decoder"])
def test_both_backends_agree(transformer, decoder):
    options = {"decoder": decoder} if decoder else {}
    ours = {}
    for attention in ("sdpa", "flex"):
        policy = tiny.tiny_policy(transformer={**transformer, "attention": attention}, **options).eval()
        batch = tiny.tiny_batch(policy)
        with torch.no_grad():
            ours[attention] = policy(batch["frames"], batch["actions"], batch["text"])
    for name, logits in ours["sdpa"].items():
        torch.testing.assert_close(logits, ours["flex"][name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("decoder", [None, BackboneHeads], ids=["decoder", "no-decoder"])
def test_no_token_is_predicted_from_itself_or_from_the_future(decoder):
    policy = tiny.tiny_policy(**({"decoder": decoder} if decoder else {})).eval()
    batch = tiny.tiny_batch(policy)
    frames, actions, text = batch["frames"], batch["actions"], batch["text"]

    def logits(frames, actions):
        with torch.no_grad():
            out = policy(frames, actions, text)
        return torch.cat([out[g.name].sum(-1) for g in policy.action_space.groups], dim=-1)  # (B, T, A)

    before = logits(frames, actions)
    t, token = 2, 5  # the second mouse button of step 2
    changed = {k: v.clone() for k, v in actions.items()}
    changed["mouse_buttons"][:, t, 1] = (changed["mouse_buttons"][:, t, 1] + 1) % 4
    moved = (logits(frames, changed) - before).abs().amax(0) > 1e-6  # (T, A)
    assert not moved[:t].any() and not moved[t, : token + 1].any()
    assert moved[t, token + 1 :].all() and moved[t + 1 :].all()
    later = frames.clone()
    later[:, t + 1 :] = 255 - later[:, t + 1 :]
    moved = (logits(later, actions) - before).abs().amax(0) > 1e-6
    assert not moved[: t + 1].any() and moved[t + 1 :].all()
