"""What every family can do, asked of all of them in the same way: bczoo's own, and the one of docs/extending.md."""

from __future__ import annotations

import json
import sys
from functools import partial

import lightning as L
import numpy as np
import pytest
import tiny
import torch
from pages import block
from recordings import write_telling

import bczoo
from bczoo import (
    BackboneHeads,
    BCPolicy,
    CausalityScore,
    CNNPolicy,
    ConvNeXtEncoder,
    FineTune,
    IndependentHeads,
    RecordingDataModule,
)
from bczoo.causality.metrics import evaluate
from bczoo.core.errors import UserError
from bczoo.models.session import WindowSession

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="session")
def lstm(tmp_path_factory):
    """The family of docs/extending.md, as a module of the user's."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "my_lstm.py").write_text(block("docs/extending.md", "family"))
    sys.path.insert(0, str(folder))
    yield __import__("my_lstm").LSTMPolicy
    sys.path.remove(str(folder))


FAMILIES = {
    "bc": tiny.tiny_policy,
    "bc without text": partial(tiny.tiny_policy, text_dim=None),
    "bc, backbone heads": partial(tiny.tiny_policy, decoder=BackboneHeads),
    "bc, independent heads": partial(tiny.tiny_policy, decoder=IndependentHeads, past_actions=False),
    "cnn": tiny.tiny_cnn,
    "cnn with past actions": partial(tiny.tiny_cnn, past_actions=True, action_space="gamepad"),
    "tokens": tiny.tiny_token_policy,
    "own": None,
}


@pytest.fixture(params=FAMILIES)
def make(request, lstm):
    """Makes a tiny policy of each family."""

    def seeded(**arguments):
        torch.manual_seed(arguments.pop("seed", 0))
        own = partial(lstm, partial(ConvNeXtEncoder, frame_size=tiny.SIZE, channels=[4, 8, 8], blocks=1), 16, window=5)
        return (FAMILIES[request.param] or own)(**arguments).eval()

    return seeded


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    return str(write_telling(tmp_path_factory.mktemp("recordings"), 3, 24))


def test_it_is_rebuilt_from_plain_json(make):
    policy = make()
    spec = json.loads(json.dumps(policy.spec))
    rebuilt = bczoo.Policy.from_config(spec)
    assert type(rebuilt) is type(policy) and rebuilt.spec == policy.spec
    assert rebuilt.state_dict().keys() == policy.state_dict().keys()


def test_logits_and_loss(make):
    policy = make()
    batch = tiny.tiny_batch(policy)
    logits = policy.logits(batch)
    for group in policy.action_space.groups:
        assert logits[group.name].shape == (2, 5, group.tokens, group.choices)
    encoded = policy.encode(batch["frames"])
    again = policy.logits_from(encoded, batch)
    assert all(torch.equal(logits[name], again[name]) for name in logits)
    loss = policy.loss(batch)
    assert loss.total.isfinite() and set(loss.parts) == {f"{g.name}_ce" for g in policy.action_space.groups}
    loss.total.backward()
    assert all(p.grad is not None for p in policy.parameters() if p.requires_grad)


def test_a_decision_never_sees_what_comes_after_it(make):
    policy = make()
    batch = tiny.tiny_batch(policy)
    later = {**batch, "frames": batch["frames"].clone(), "actions": {k: v.clone() for k, v in batch["actions"].items()}}
    later["frames"][:, 3:] = 255 - later["frames"][:, 3:]
    for ids in later["actions"].values():
        ids[:, 3:] = 0
    a, b = policy.logits(batch), policy.logits(later)
    assert all(torch.equal(a[name][:, :3], b[name][:, :3]) for name in a)
    assert any(not torch.equal(a[name][:, 3:], b[name][:, 3:]) for name in a)


@pytest.mark.parametrize("steps", [4, 9])
def test_its_session_decides_as_the_whole_window_does(make, steps):
    """Up to a full window; a family whose memory goes beyond it says so below."""
    policy = make()
    if steps > policy.input_spec.window and not isinstance(policy, CNNPolicy):
        pytest.skip("what rolls out of the window still carries its context in this family's memory")
    frames = np.random.default_rng(0).integers(0, 256, (steps, 2, 64, 64, 3), dtype=np.uint8)
    fast, slow = policy.agent(2, seed=1), policy.agent(2, seed=1)
    slow.session = WindowSession(policy, 2, slow.sampler)
    for t in range(steps):
        if t == 3:
            for agent in (fast, slow):
                agent.override_last_action(1, {"keys": ["w"], "buttons": ["south"]})
        games = [0, 1] if t != 2 else [1]
        ours = fast.step_many(games, [frames[t, g] for g in games])
        theirs = slow.step_many(games, [frames[t, g] for g in games])
        for a, b in zip(ours, theirs, strict=True):
            assert a.ids == b.ids
            for name, p in a.probabilities.items():
                np.testing.assert_allclose(p, b.probabilities[name], atol=2e-5)


def test_a_game_starts_anew(make):
    policy = make()
    frames = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    agent = policy.agent(2, seed=3)
    first = [agent.step_many([0], [frame])[0].ids for frame in frames]
    agent.step_many([1], [frames[0]])
    agent.reset(0, seed=[3, 0])
    assert [agent.step_many([0], [frame])[0].ids for frame in frames] == first


def test_two_steps_of_fit_validation_and_export(make, recordings, tmp_path):
    policy = make()
    spec = policy.input_spec
    if spec.action_space.name != "keyboard_mouse":
        policy = make(action_space="keyboard_mouse")
    data = RecordingDataModule(root=recordings, batch_size=2, val_fraction=0.4)
    trainer = L.Trainer(max_steps=2, val_check_interval=1, callbacks=[CausalityScore()], **tiny.QUIET)
    trainer.fit(policy, data)
    metrics = trainer.callback_metrics
    assert metrics["val/loss"].isfinite() and metrics["val/perplexity/keys"] >= 1
    assert metrics["val/causality"].isfinite()
    assert (metrics["val/action_reliance"] < 1e-9) == (not policy.past_actions)
    trainer.save_checkpoint(tmp_path / "policy.ckpt")
    folder = policy.save_pretrained(tmp_path / "out")
    card = (folder / "README.md").read_text()
    assert f"{policy.parameter_counts()['total']:,} parameters" in card
    batch = tiny.tiny_batch(policy)
    expected = policy.eval().logits(batch)
    for source in (folder, tmp_path / "policy.ckpt"):
        loaded = bczoo.from_pretrained(source)
        assert type(loaded) is type(policy) and loaded.spec == policy.spec
        for name, group in loaded.logits(batch).items():  # weights mapped from a file lie elsewhere in memory
            torch.testing.assert_close(group, expected[name], atol=1e-5, rtol=1e-5)
    content = json.loads((folder / "config.json").read_text())
    assert content["format_version"] == 2 and content["policy"]["class_path"] == policy.spec["class_path"]
    other = BCPolicy if isinstance(policy, CNNPolicy) else CNNPolicy
    with pytest.raises(UserError, match=f"holds a .*{type(policy).__name__} and no bczoo.{other.__name__}"):
        other.from_pretrained(folder)


@pytest.mark.parametrize("at_once", [1, 25, 4096])  # steps of a forward: one question, two, all of them
def test_all_counterfactuals_equal_one_forward_per_step(make, at_once, monkeypatch):
    monkeypatch.setattr("bczoo.models.policy.STEPS_PER_FORWARD", at_once)
    policy = make()
    batch = tiny.tiny_batch(policy, batch=2)
    encoded = policy.encode(batch["frames"])
    other = policy.encode(255 - batch["frames"])
    past = {k: v.roll(1, 0) for k, v in batch["actions"].items()}
    steps = encoded.shape[1]
    for m in (1, 2):
        plain, changed = policy.counterfactual_logits(encoded, other, batch, m)
        expected = policy.logits_from(encoded, batch)
        for t in range(steps):
            shown = encoded.clone()
            shown[:, max(0, t - m + 1) : t + 1] = other[:, max(0, t - m + 1) : t + 1]
            asked = policy.logits_from(shown, batch)
            for name in asked:
                torch.testing.assert_close(plain[name][:, t], expected[name][:, t], atol=1e-5, rtol=1e-4)
                torch.testing.assert_close(changed[name][:, t], asked[name][:, t], atol=1e-5, rtol=1e-4)
    swapped = policy.other_past_logits(encoded, batch, past)
    for t in range(1, steps):
        mixed = {k: torch.cat([past[k][:, :t], own[:, t:]], 1) for k, own in batch["actions"].items()}
        asked = policy.logits_from(encoded, {**batch, "actions": mixed})
        for name in asked:
            torch.testing.assert_close(swapped[name][:, t], asked[name][:, t], atol=1e-5, rtol=1e-4)
    scores = evaluate(policy, batch)
    assert float(scores.measures["causality"][0].max()) > 0


def test_it_is_fine_tuned_on_another_action_space(make, recordings, tmp_path):
    source = make()
    folder = source.save_pretrained(tmp_path / "source")
    part = next(iter(source.parts()))
    policy = FineTune(
        str(folder),
        action_space={"name": "keyboard_mouse", "extra_keys": ["r"]},
        freeze={part: True},
        learning_rate={list(source.parts())[-1]: 1e-4},
    )
    assert isinstance(policy, type(source)) and len(policy.action_space.groups[0].names) == 21
    before = {k: v.clone() for k, v in policy.state_dict().items()}
    trainer = L.Trainer(max_steps=2, **tiny.QUIET)
    trainer.fit(policy, RecordingDataModule(root=recordings, batch_size=2))
    frozen = {id(p) for module in policy.parts()[part] for p in module.parameters()}
    for name, parameter in policy.named_parameters():
        if id(parameter) in frozen:
            assert torch.equal(parameter, before[name]), name
    trainer.save_checkpoint(tmp_path / "tuned.ckpt")
    tuned = bczoo.from_pretrained(tmp_path / "tuned.ckpt")
    assert type(tuned) is type(source) and tuned.config["action_space"] == policy.action_space.to_dict()


def test_rows_of_known_actions_are_carried_over(make, tmp_path):
    source = make()
    if source.action_space.name != "keyboard_mouse":
        pytest.skip("another action space")
    tuned = FineTune(
        str(source.save_pretrained(tmp_path / "source")), action_space={"name": "keyboard_mouse", "extra_keys": ["r"]}
    )
    batch = tiny.tiny_batch(source)
    with torch.no_grad():
        ours, theirs = tuned.eval().logits(batch), source.logits(batch)
    torch.testing.assert_close(ours["keys"][..., :20], theirs["keys"], atol=1e-5, rtol=1e-5)
    assert torch.equal(ours["mouse_dx"], theirs["mouse_dx"]) or torch.allclose(ours["mouse_dx"], theirs["mouse_dx"])


class Unsaved(CNNPolicy):
    """Its width is known only from outside its arguments."""

    def __init__(self, width: int = 16, **options) -> None:
        super().__init__(partial(ConvNeXtEncoder, frame_size=64, channels=[4, 8, 8], blocks=1), width, 1, 2, **options)
        self.extra = torch.nn.Linear(width, int(torch.randint(8, 4000, ())))


def test_what_cannot_be_rebuilt_is_refused_before_training(recordings):
    with pytest.raises(UserError, match="cannot be rebuilt from its arguments"):
        L.Trainer(max_steps=1, **tiny.QUIET).fit(Unsaved(window=5), RecordingDataModule(root=recordings, batch_size=2))
