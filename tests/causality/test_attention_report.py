"""``bczoo attention``: shares of the real forward, known by hand where queries are zero."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from drawing import check_legible, figures, texts
from matplotlib.colors import to_rgb

from bczoo.causality.attention import (
    KINDS,
    AttentionShares,
    attention_report,
    attention_shares,
    attention_weights,
    plot_attention,
    read_window,
    shares_table,
    watching,
)
from bczoo.core.errors import UserError
from bczoo.data.errors import NoRecordingsError

sys.path.append(str(Path(__file__).parents[1] / "data"))
from synthetic import write_recordings

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without")
VARIANTS = ["reference", "backbone heads", "sinks, histories, grouped queries", "no text, many tokens"]


def policy_of(variant="reference", backend="sdpa", **options):
    options = tiny.VARIANTS[variant] | options
    options["transformer"] = {**options.get("transformer", {}), "attention": backend}
    return tiny.tiny_policy(**options).eval()


@pytest.mark.parametrize("backend", ["sdpa", "flex"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_times_values_are_the_output_of_the_forward(variant, backend):
    policy = policy_of(variant, backend)
    given = tiny.tiny_batch(policy, batch=1)
    outputs, mixed = {}, {}

    def show(layer, q, keys, values, mask):
        values = values.repeat_interleave(q.shape[1] // values.shape[1], dim=1)
        mixed[layer] = attention_weights(q[0], keys[0], mask) @ values[0]  # (N, L, H)

    for i, block in enumerate(policy.transformer.blocks):
        block.attention.out.register_forward_pre_hook(lambda module, x, i=i: outputs.update({i: x[0]}))
    with torch.no_grad():
        plain = policy(given["frames"], given["actions"], given.get("text"))
        with watching(policy, show):
            watched = policy(given["frames"], given["actions"], given.get("text"))
        after = policy(given["frames"], given["actions"], given.get("text"))
    assert sorted(mixed) == [0, 1]
    for layer, values in mixed.items():
        torch.testing.assert_close(values.transpose(0, 1).flatten(-2), outputs[layer][0], atol=1e-5, rtol=1e-5)
    for name, logits in plain.items():
        assert torch.equal(logits, watched[name]) and torch.equal(logits, after[name])


@pytest.mark.parametrize("all_queries", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_shares_sum_to_one(variant, all_queries):
    policy = policy_of(variant)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.5)  # heads that prefer something
    shares = attention_shares(policy, tiny.tiny_batch(policy, batch=1), all_queries)
    ones = torch.ones(2, 4)
    torch.testing.assert_close(shares.kinds.sum(-1), ones)
    torch.testing.assert_close(shares.ages.sum(-1) + shares.kinds[..., KINDS.index("sinks")], ones)
    assert shares.kinds.std(dim=1).max() > 1e-3


def indifferent(policy):
    """Queries of zero give every key that is seen the same weight."""
    with torch.no_grad():
        for block in policy.transformer.blocks:
            block.attention.q_norm.scale.zero_()
    return policy


@pytest.mark.parametrize("backend", ["sdpa", "flex"])
def test_indifferent_heads_share_evenly_among_what_they_may_see(backend):
    """Sinks 2, layer 0 looks 3 steps back and layer 1 one; steps 2, 3 and 4 of 5 decide."""
    policy = indifferent(policy_of("sinks, histories, grouped queries", backend))
    shares = attention_shares(policy, tiny.tiny_batch(policy, batch=1))
    for layer, history in enumerate((3, 1)):
        kinds, ages = torch.zeros(len(KINDS)), torch.zeros(5)
        for step in (2, 3, 4):
            past = min(history, step)
            seen = 2 + past * (3 + 8) + 4  # sinks; text, image, thinking, 8 actions; text, image, thinking, itself
            counts = {"sinks": 2, "text": past + 1, "image": past + 1, "thinking": past + 1}
            counts |= {"actions": 8 * past, "itself": 1}
            kinds += torch.tensor([counts[kind] / seen for kind in KINDS]) / 3
            ages += torch.tensor([4.0, *(11.0 * (age <= past) for age in range(1, 5))]) / seen / 3
        torch.testing.assert_close(shares.kinds[layer], kinds.expand(4, -1))
        torch.testing.assert_close(shares.ages[layer], ages.expand(4, -1))


def test_all_queries_are_those_of_every_token():
    """History 0, so each step is alone: 3 observation tokens see 3, action_out 4, each of 8 actions 11 tokens."""
    policy = indifferent(policy_of(transformer={"history": 0}))
    shares = attention_shares(policy, tiny.tiny_batch(policy, batch=1), all_queries=True)
    image = (3 / 3 + 1 / 4 + 8 / 11) / 12
    expected = {"sinks": 0, "text": image, "image": image, "thinking": image}
    expected |= {"actions": 8 * (8 / 11) / 12, "itself": (1 / 4) / 12}
    torch.testing.assert_close(shares.kinds[0, 0], torch.tensor([expected[kind] for kind in KINDS]))
    assert torch.equal(shares.ages[..., 1:], torch.zeros(2, 4, 4))


def test_the_report_is_written(tmp_path, capsys):
    policy = policy_of(window=12)
    policy.save_pretrained(tmp_path / "policy")
    root = write_recordings(tmp_path / "recordings", count=2)
    with figures() as drawn:
        shares = attention_report(
            str(tmp_path / "policy"), str(root), recording="rec-1", start=3, out=str(tmp_path / "out" / "deep")
        )
    told = json.loads((tmp_path / "out" / "deep" / "attention.json").read_text())
    assert (told["recording"], told["start"], told["steps"], told["queries"]) == ("rec-1", 3, 12, "action_out")
    assert len(told["layers"]) == 2 and len(told["layers"][0]["heads"]) == 4
    assert sum(told["layers"][1]["shares"].values()) == pytest.approx(1, abs=1e-4)
    assert sum(told["layers"][1]["by_age"]) == pytest.approx(1, abs=1e-4)
    assert (tmp_path / "out" / "deep" / "attention.png").read_bytes().startswith(b"\x89PNG")
    assert shares_table(shares) in capsys.readouterr().out
    check_legible(drawn[0])
    said = texts(drawn[0])
    assert {"hidden", "in view of the decision", "keys × 4", "token that looks", "% of its attention"} <= set(said)
    mask = drawn[0].axes[0].images[0].get_array()
    assert mask.shape == (2 * policy.layout.length,) * 2 and set(np.unique(mask)) == {0, 1, 2}
    fields = {area.get_title("left"): area for area in drawn[0].axes[2:] if area.images}
    assert list(fields) == ["text", "image", "thinking", "past actions", "itself"]
    for name, field in fields.items():
        percent = 100 * shares.kinds[..., KINDS.index({"past actions": "actions"}.get(name, name))]  # layers by heads
        np.testing.assert_allclose(field.images[0].get_array(), percent)
        assert [text.get_text() for text in field.texts] == [f"{value:.0f}" for value in percent.flatten()]
    heads = [label.get_text() for label in fields["itself"].get_xticklabels()]
    assert [head for head in heads if head in "0123"] == list("0123") and fields["itself"].get_xlabel() == "head"


def test_a_deep_policy_has_a_scale_of_layers_and_no_number_in_every_cell(tmp_path):
    kinds = torch.rand(22, 16, len(KINDS))
    shares = AttentionShares(kinds / kinds.sum(-1, keepdim=True), torch.full((22, 16, 200), 1 / 200))
    with figures() as drawn:
        plot_attention(policy_of(), shares, tmp_path / "a.png")
    check_legible(drawn[0])
    said = texts(drawn[0])
    assert "layer 0" not in said and said.count("layer") == 1 + 2 and {"1", "10", "100"} <= set(said)
    assert not any(area.texts for area in drawn[0].axes[2:])
    lightness = [sum(to_rgb(line.get_color())) for line in drawn[0].axes[1].get_lines()]
    assert len(lightness) == 22 and lightness == sorted(lightness)


def test_windows_end_where_the_recording_does(tmp_path):
    policy = policy_of(window=12)
    root = write_recordings(tmp_path / "recordings", count=1)  # 30 frames, so 29 steps
    batch, _ = read_window(policy, str(root / "rec-0"), start=25)
    assert batch["frames"].shape[1] == batch["actions"]["keys"].shape[1] == 4 and batch["valid"].all()
    assert attention_shares(policy, batch).ages.shape == (2, 4, 4)
    write_recordings(tmp_path / "more", count=3)  # of 30, 31 and 32 frames
    for steps, first in ((29, "rec-0"), (30, "rec-1"), (99, "rec-2")):
        assert read_window(policy, str(tmp_path / "more"), steps=steps)[1] == first
    assert read_window(policy, str(root), steps=3)[0]["frames"].shape[1] == 3
    for options, told in (
        ({"start": 29}, "from 0 to 28, got 29"),
        ({"steps": 0}, "from 1 on"),
        ({"recording": "rec-7"}, "no usable recording 'rec-7'.*rec-0"),
    ):
        with pytest.raises(UserError, match=told):
            read_window(policy, str(root), **options)
    with pytest.raises(NoRecordingsError, match="bczoo record"):
        read_window(policy, str(tmp_path / "nothing"))
