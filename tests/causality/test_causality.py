"""Causality score: the one-pass computation against one forward per step, and what it must say of known policies."""

import golden_case
import lightning as L
import pytest
import tiny
import torch

from bczoo import ActionDecoder, AttentionMaskCheck, BackboneHeads, CausalityScore, IndependentHeads
from bczoo.causality.donors import Donors
from bczoo.causality.metrics import CausalityMetrics, divergence, evaluate
from bczoo.causality.perturb import perturbations
from bczoo.causality.scores import action_reliance, causality, kl
from bczoo.core.errors import UserError
from bczoo.models.bc.counterfactual import stream_length, streams_mask
from bczoo.models.bc.layout import StepLayout
from bczoo.models.bc.masks import as_text, dense_mask


def step_by_step(policy, batch, other_images, m):
    """The score as it is defined: one forward per step, with the last m pictures replaced."""
    encode = policy.encode
    images = encode(batch["frames"])
    text = batch.get("text")
    out = {}
    try:
        plain = policy(batch["frames"], batch["actions"], text)
        for t in range(images.shape[1]):
            shown = images.clone()
            shown[:, max(0, t - m + 1) : t + 1] = other_images[:, max(0, t - m + 1) : t + 1]
            policy.encode = lambda frames, shown=shown: shown
            nats = kl(plain, policy(batch["frames"], batch["actions"], text))
            for name, values in nats.items():
                out.setdefault(name, []).append(values[:, t])
    finally:
        del policy.encode
    return {name: torch.stack(values, dim=1) for name, values in out.items()}


KINDS = ["swap", "freeze", "blank", "noise"]


def replace(kind, policy, batch, images):
    return perturbations([kind])[kind](policy, batch, images, Donors.of_batch(batch, images))


VARIANTS = [
    "reference",
    "independent heads",
    "backbone heads",
    "sinks, histories",
    "many tokens",
    "no text",
    "no past actions",
]


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("backend", ["sdpa", "flex"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_one_pass_equals_one_forward_per_step(variant, backend):
    options = {"decoder": ActionDecoder, **tiny.VARIANTS[variant]}
    options["transformer"] = {**options.get("transformer", {}), "attention": backend}
    policy = tiny.tiny_policy(**options).eval()
    with torch.no_grad():
        for parameter in policy.parameters():  # a policy that has opinions
            parameter.mul_(1.5)
        batch = tiny.tiny_batch(policy, batch=3)
        images = policy.encode(batch["frames"])
        plain = policy(batch["frames"], batch["actions"], batch.get("text"))
        for m in (1, 2, 4):
            for kind in KINDS if m == 1 else ["swap"]:
                other = replace(kind, policy, batch, images).encoded
                fast, logits = causality(policy, images, other, batch, m)
                slow = step_by_step(policy, batch, other, m)
                for name in fast:
                    torch.testing.assert_close(fast[name], slow[name], atol=1e-5, rtol=1e-4)
                    torch.testing.assert_close(logits[name], plain[name], atol=1e-5, rtol=1e-5)
                assert sum(v.sum() for v in fast.values()) > 0


def test_one_pass_equals_one_forward_per_step_on_the_golden_policy():
    policy, given = golden_case.golden_policy(), golden_case.inputs()
    batch = {
        "frames": given["frames"],
        "actions": given["actions"],
        "text": given["text"],
        "user": given["mask"],
        "valid": torch.ones_like(given["mask"]),
        "recording": torch.arange(2),
        "start": torch.zeros(2, dtype=torch.long),
    }
    with torch.no_grad():
        images = policy.encode(batch["frames"])
        for kind in KINDS:
            other = replace(kind, policy, batch, images).encoded
            fast, logits = causality(policy, images, other, batch)
            slow = step_by_step(policy, batch, other, 1)
            for name in fast:
                torch.testing.assert_close(fast[name], slow[name], atol=1e-4, rtol=0)
                torch.testing.assert_close(logits[name], golden_case.by_group("f32.logits")[name], atol=2e-5, rtol=0)


def test_the_mask_of_a_stream_is_the_mask_of_the_steps_it_replaces():
    """Streams of one step beside a window of three: the recorded part is as always, each stream a row block of it."""
    layout = StepLayout(text=1, image=1, thinking=0, actions=2)
    steps, size, stream = 3, layout.length, stream_length(layout, 1)
    length = steps * (size + stream)
    q, kv = torch.arange(length)[:, None], torch.arange(length)[None]
    mask = streams_mask(layout, steps, steps, 1)(0, 0, q, kv)
    window = dense_mask(layout, steps, steps)
    recorded = steps * size
    assert torch.equal(mask[:recorded, :recorded], window) and not mask[:recorded, recorded:].any()
    for t in range(steps):
        rows = slice(recorded + t * stream, recorded + (t + 1) * stream)
        same = window[t * size : t * size + stream]
        assert torch.equal(mask[rows, : t * size], same[:, : t * size]), as_text(mask)
        assert not mask[rows, t * size : recorded].any()
        others = mask[rows, recorded:].clone()
        assert torch.equal(others[:, t * stream : (t + 1) * stream], same[:, t * size : t * size + stream])
        others[:, t * stream : (t + 1) * stream] = False
        assert not others.any()


def test_a_policy_that_does_not_look_scores_zero():
    policy = tiny.tiny_policy().eval()
    with torch.no_grad():
        policy.encoder.norm.weight.zero_()  # every picture gives the same token
    scores = evaluate(policy, tiny.tiny_batch(policy, batch=3), KINDS)
    for name, (nats, _) in scores.measures.items():
        if name.startswith("causality"):
            assert nats.abs().max() < 1e-6, name
    assert scores.measures["action_reliance"][0].sum() > 0


@pytest.mark.parametrize("decoder", [ActionDecoder, BackboneHeads])
@pytest.mark.parametrize("options", [{"transformer": {"history": 0}}, {"past_actions": False}], ids=str)
def test_a_policy_that_does_not_see_its_past_actions_does_not_rely_on_them(options, decoder):
    policy = tiny.tiny_policy(decoder=decoder, **options).eval()
    batch = tiny.tiny_batch(policy, batch=3)
    scores = evaluate(policy, batch)
    assert scores.measures["action_reliance"][0].abs().max() < 1e-6
    assert scores.measures["causality"][0].sum() > 0


def test_the_score_of_two_states_is_the_divergence_of_two_coins():
    p, q = torch.tensor(0.9), torch.tensor(0.2)
    logits = {"keys": torch.stack([p, 1 - p]).log().view(1, 1, 1, 2)}
    other = {"keys": torch.stack([q, 1 - q]).log().view(1, 1, 1, 2)}
    expected = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    torch.testing.assert_close(kl(logits, other)["keys"], expected.view(1, 1))


@pytest.mark.parametrize("decoder", [ActionDecoder, IndependentHeads, BackboneHeads])
def test_action_reliance_equals_forwards_with_another_past_and_the_step_as_recorded(decoder):
    policy = tiny.tiny_policy(decoder=decoder).eval()
    batch = tiny.tiny_batch(policy, batch=2)
    other = {k: v.flip(0) for k, v in batch["actions"].items()}
    with torch.no_grad():
        images = policy.encode(batch["frames"])
        plain = policy(batch["frames"], batch["actions"], batch["text"])
        nats = action_reliance(policy, images, plain, batch, other)
        for t in range(batch["user"].shape[1]):
            past = {k: torch.cat([other[k][:, :t], v[:, t:]], dim=1) for k, v in batch["actions"].items()}
            expected = kl(plain, policy(batch["frames"], past, batch["text"]))
            for name, values in nats.items():
                torch.testing.assert_close(values[:, t], expected[name][:, t], atol=1e-6, rtol=1e-4)
    assert sum(v.sum() for v in nats.values()) > 0


def test_means_are_over_counted_steps_whatever_batches_they_came_in():
    policy = tiny.tiny_policy().eval()
    batch = tiny.tiny_batch(policy, batch=3)
    batch["user"][0, 2:] = False
    batch["valid"][1, 3:] = False
    scores = evaluate(policy, batch, ["swap", "freeze"])
    metrics = CausalityMetrics(policy.action_space, ["swap", "freeze"])
    metrics.update(scores.measures)
    out = metrics.compute()
    nats, where = scores.measures["causality"]
    assert where.sum() == (batch["user"] & batch["valid"]).sum()
    torch.testing.assert_close(out["causality"], nats[where].mean())
    torch.testing.assert_close(out["causality/keys"], scores.measures["causality/keys"][0][where].mean())
    torch.testing.assert_close(nats, sum(scores.measures[f"causality/{g.name}"][0] for g in policy.action_space.groups))
    reliance, counted = scores.measures["action_reliance"]
    torch.testing.assert_close(out["action_reliance"], reliance[counted].mean())
    share = out["causality"] / (out["causality"] + out["action_reliance"])
    torch.testing.assert_close(out["visual_share"], share)
    assert "causality_freeze/mouse_dx" in out


def test_replacements_are_pictures_from_elsewhere():
    policy = tiny.tiny_policy().eval()
    batch = tiny.tiny_batch(policy, batch=2)
    batch["valid"][1, 4:] = False
    with torch.no_grad():
        images = policy.encode(batch["frames"])
        shown = {kind: replace(kind, policy, batch, images) for kind in KINDS}
    assert not shown["swap"].where[1, 4] and shown["swap"].where.sum() == 9
    for b, t in shown["swap"].where.nonzero().tolist():
        assert not torch.equal(shown["swap"].encoded[b, t], images[b, t])
    assert not shown["freeze"].where[:, :2].any()  # half a second is longer than this window, so half of it
    assert torch.equal(shown["freeze"].encoded[0, 4], images[0, 2]) and shown["freeze"].where[0, 2:].all()
    assert torch.equal(shown["freeze"].encoded[:, :2], images[:, :2])
    assert torch.equal(shown["blank"].encoded[0, 0], shown["blank"].encoded[0, 4])
    again = replace("noise", policy, {k: v[1:] if not isinstance(v, dict) else v for k, v in batch.items()}, images[1:])
    torch.testing.assert_close(again.encoded[0], shown["noise"].encoded[1])


def test_validation_logs_the_score_and_leaves_the_policy_alone():
    policy = tiny.tiny_policy()
    batches = [tiny.tiny_batch(policy, batch=n, seed=n) for n in (3, 2)]
    batches[1]["user"][:] = False  # nothing to count in the last batch
    before = {k: v.clone() for k, v in policy.state_dict().items()}
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(callbacks=[CausalityScore(["swap", "blank"])], enable_checkpointing=False, **quiet)
    for run in (trainer.validate, trainer.test):
        (logged,) = run(policy, dataloaders=torch.utils.data.DataLoader(batches, batch_size=None), verbose=False)
        metrics = CausalityMetrics(policy.action_space, ["swap", "blank"])
        metrics.update(evaluate(policy.eval(), batches[0], ["swap", "blank"]).measures)
        part = "val" if run == trainer.validate else "test"
        expected = {f"{part}/{k}": v.item() for k, v in metrics.compute().items()}
        assert expected.keys() <= logged.keys()
        assert all(logged[k] == pytest.approx(v, rel=1e-4) for k, v in expected.items())
    assert all(torch.equal(v, before[k]) for k, v in policy.state_dict().items())


def test_what_the_callback_cannot_do_is_told():
    with pytest.raises(UserError, match=r"'swpa'.*swap, freeze, blank, noise"):
        CausalityScore(["swpa"])
    with pytest.raises(UserError, match="from 1 on"):
        CausalityScore(replaced=0)


def test_no_score_depends_on_what_comes_later():
    """Freezing several steps shows frames of the past alone, and counts where all of them were replaced."""
    policy = tiny.tiny_policy().eval()
    batch = tiny.tiny_batch(policy, batch=2, steps=8)
    other = {**batch, "frames": batch["frames"].clone()}
    other["frames"][:, 5:] = 255 - other["frames"][:, 5:]
    kinds = perturbations(["freeze"], freeze_steps=2)
    nats, changed = (evaluate(policy, b, kinds, replaced=3).measures["causality"] for b in (batch, other))
    torch.testing.assert_close(nats[0][:, :5], changed[0][:, :5], atol=1e-6, rtol=0)
    assert nats[1].tolist() == [[t >= 4 for t in range(8)]] * 2  # all of t - 2, t - 1 and t have a frame two steps ago


def test_windows_that_only_fill_up_a_batch_change_nothing():
    """Neither pictures nor actions are swapped with an empty window, whatever their number."""
    policy = tiny.tiny_policy().eval()
    batch = tiny.tiny_batch(policy, batch=3)

    def filled(value):
        return torch.cat([value, torch.zeros_like(value), torch.zeros_like(value[:2])])

    more = {k: {g: filled(v) for g, v in x.items()} if isinstance(x, dict) else filled(x) for k, x in batch.items()}
    few, many = (evaluate(policy, b, ["swap", "freeze"]).measures for b in (batch, more))
    for name, (nats, where) in few.items():
        assert torch.equal(many[name][1][:3], where) and not many[name][1][3:].any(), name
        torch.testing.assert_close(many[name][0][:3][where], nats[where], atol=1e-6, rtol=1e-5)
    assert few["action_reliance"][1].sum() == 3 * 4


def test_metrics_of_a_bfloat16_module_are_kept_in_full_precision():
    holder = torch.nn.ModuleList([CausalityMetrics(tiny.tiny_policy().action_space, ["swap"])]).to(torch.bfloat16)
    nats, where = {"keys": torch.full((4, 100), 0.1)}, torch.ones(4, 100, dtype=torch.bool)
    for _ in range(50):
        holder[0].update(divergence("causality", nats, where))
    assert holder[0].compute()["causality"].item() == pytest.approx(0.1, rel=1e-4)
    holder[0].reset()
    holder[0].update(divergence("causality", nats, where))
    assert holder[0].compute()["causality"].item() == pytest.approx(0.1, rel=1e-4)


def test_training_goes_on_after_a_validation_of_its_own():
    """Metrics that saw tensors of inference mode are updated outside of it."""
    policy = tiny.tiny_policy()
    loader = torch.utils.data.DataLoader([tiny.tiny_batch(policy)], batch_size=None)
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    callbacks = [CausalityScore(), AttentionMaskCheck()]
    trainer = L.Trainer(max_steps=1, callbacks=callbacks, enable_checkpointing=False, **quiet)
    trainer.validate(policy, loader, verbose=False)
    trainer.fit(policy, loader, loader)
    assert trainer.global_step == 1 and trainer.callback_metrics["val/causality"] >= 0


def test_bfloat16_training_checks_and_scores():
    policy = tiny.tiny_policy()
    loader = torch.utils.data.DataLoader([tiny.tiny_batch(policy)], batch_size=None)
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    callbacks = [CausalityScore(), AttentionMaskCheck()]
    trainer = L.Trainer(max_steps=1, precision="bf16-true", callbacks=callbacks, enable_checkpointing=False, **quiet)
    trainer.fit(policy, loader, loader)
    assert trainer.callback_metrics["val/causality"] >= 0
