"""Inverse dynamics: which frame is which, padding, the measures, saving."""

from __future__ import annotations

import warnings
from functools import partial

import lightning as L
import numpy as np
import pytest
import tiny
import torch

from bczoo import ActionSpace, ConvNeXtEncoder, InverseDynamics, Model, MotionEncoder, Policy, RecordingDataModule
from bczoo.core.errors import UserError
from bczoo.core.spec import window_batch
from bczoo.data.recording import RecordingWriter
from bczoo.models.idm.metrics import InverseDynamicsMetrics, events, held, matched

pytestmark = pytest.mark.usefixtures("one_thread")
SPACE = {"name": "arrows", "groups": [{"kind": "held", "name": "keys", "names": ["_", "a", "d"], "tokens": 2}]}


def tiny_idm(seed=0, **arguments) -> InverseDynamics:
    torch.manual_seed(seed)
    encoder = partial(MotionEncoder, frame_size=32, channels=[8, 8], blocks=1)
    return InverseDynamics(**{"encoder": encoder, "width": 32, "layers": 1, "heads": 2, "window": 8} | arguments)


def sliding(rng: np.random.Generator, steps: int, size: int = 32):
    """A striped picture that moves by what was pressed one step before: keys of each step, and what is seen in it.

    Where it stands says nothing of the next key, so only the frame after a step tells what was pressed in it.
    """
    keys = rng.integers(0, 3, steps)
    place = np.concatenate([[0], np.cumsum(np.array([0, -2, 2])[keys])]) + rng.integers(16)
    row = np.where(np.arange(size) % 16 < 8, 220, 30).astype(np.uint8)
    frames = np.stack([np.broadcast_to(np.roll(row, p)[None, :, None], (size, size, 3)) for p in place[:steps]])
    return keys, frames


def sliding_batch(seed: int, windows: int = 12, steps: int = 8, moved: int = 0):
    """Windows of the sliding picture; the labels are moved by some steps."""
    rng = np.random.default_rng(seed)
    played = [sliding(rng, steps + 4) for _ in range(windows)]
    frames = torch.from_numpy(np.stack([f[2 : 2 + steps] for _, f in played])).permute(0, 1, 4, 2, 3).contiguous()
    ids = torch.from_numpy(np.stack([k[2 - moved : 2 - moved + steps] for k, _ in played]))
    return window_batch(frames, {"keys": torch.stack([ids, torch.zeros_like(ids)], dim=-1)})


def trained(steps=100, moved=0, **arguments) -> InverseDynamics:
    model = tiny_idm(action_space=SPACE, **arguments)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        loss = model.loss(sliding_batch(step, moved=moved)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def scores(model, moved=0):
    model.scores["val"].reset()
    with torch.no_grad():
        for seed in range(4):
            model.evaluate(sliding_batch(1000 + seed, windows=32, moved=moved), "val")
    return model.scores["val"]


def any_batch(model, batch=2, steps=8, seed=0):
    torch.manual_seed(seed)
    size = model.input_spec.frame_size
    frames = torch.randint(0, 256, (batch, steps, 3, size, size), dtype=torch.uint8)
    return window_batch(frames, tiny.random_actions(model.action_space, batch, steps))


@pytest.fixture(scope="module")
def learned():
    return trained()


def test_an_action_is_read_off_the_frame_after_it(learned):
    """The twin that sees no later frame cannot tell what the next frame will show."""
    assert scores(learned).compute()["event_f1_0/keys"] > 0.95
    assert scores(trained(causal=True)).compute()["event_f1_0/keys"] < 0.6


def test_labels_that_were_moved_are_told(learned):
    """The model reads each action off its own frames, so it fits labels that were moved by one step at that shift."""
    assert scores(learned).misaligned() is None
    late = scores(learned, moved=1)
    assert late.compute()["shift_1"] > 0.95 and "1 step later better" in late.misaligned()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        validate(learned, moved=1)
        validate(learned, moved=1)
    assert sum("1 step later better" in str(w.message) for w in caught) == 1


def validate(model, moved=0):
    model.scores["val"].reset()
    batches = torch.utils.data.DataLoader([sliding_batch(i, moved=moved) for i in range(4)], batch_size=None)
    (values,) = L.Trainer(**tiny.QUIET).validate(model, batches, verbose=False)
    return values


def test_validation_logs_what_holding_keys_cannot_fool(learned):
    values = validate(learned)
    assert values["val/event_f1/keys"] > 0.95 and values["val/joint"] > 0.9 > values["val/joint_copy"]
    assert {"val/loss", "val/accuracy/keys", "val/repeat_accuracy/keys", "val/calibration"} <= set(values)


def test_the_last_step_of_a_window_does_not_count():
    model = tiny_idm()
    batch = any_batch(model)
    batch["valid"][1, 5:] = False
    counted = model.counted(batch)
    assert counted[0].tolist() == [True] * 7 + [False] and counted[1].tolist() == [True] * 4 + [False] * 4
    moved = {name: ids.clone() for name, ids in batch["actions"].items()}
    for ids in moved.values():
        ids[0, 7], ids[1, 4:] = 0, 0
    assert torch.equal(model.loss(batch).total, model.loss({**batch, "actions": moved}).total)


def test_it_learns_what_was_done_and_not_what_an_expert_would_have_done():
    model = tiny_idm()
    batch = any_batch(model)
    policy_s = {**batch, "user": ~batch["user"], "system": batch["user"]}
    other = {name: torch.zeros_like(ids) for name, ids in batch["actions"].items()}
    assert torch.equal(model.loss(policy_s).total, model.loss({**batch, "labels": other}).total)


@pytest.mark.parametrize("causal", [False, True])
def test_padding_changes_nothing(causal):
    model = tiny_idm(causal=causal).eval()
    batch = any_batch(model)
    shown = batch["valid"].clone()
    shown[:, 5:] = False
    padded = model.logits(batch["frames"], shown)
    alone = model.logits(batch["frames"][:, :5], shown[:, :5])
    for name, logits in alone.items():
        torch.testing.assert_close(padded[name][:, :5], logits, atol=1e-5, rtol=1e-5)
    none = model.logits(batch["frames"], torch.zeros_like(shown))  # a window that only fills up a batch
    assert all(group.isfinite().all() for group in none.values())


def test_a_causal_twin_sees_no_later_frame_and_the_other_sees_all():
    batch = any_batch(tiny_idm())
    other = batch["frames"].clone()
    other[:, 6:] = 255 - other[:, 6:]
    for causal in (True, False):
        model = tiny_idm(causal=causal).eval()
        a, b = (model.logits(frames, batch["valid"]) for frames in (batch["frames"], other))
        assert all(torch.equal(a[name][:, :6], b[name][:, :6]) == causal for name in a)


def test_another_encoder_sees_each_frame_alone():
    encoder = partial(ConvNeXtEncoder, frame_size=32, channels=[4, 8, 8], blocks=1, embedding=16)
    model = tiny_idm(encoder=encoder)
    assert model.loss(any_batch(model)).total.isfinite()
    motion = tiny_idm().encoder
    assert motion(any_batch(model)["frames"][0]).shape == (8, 1, 32), "as a policy's encoder it sees single frames"


@pytest.mark.parametrize("space", ["keyboard_mouse", "gamepad"])
def test_export_and_back(space, tmp_path, capsys):
    model = tiny_idm(action_space=space).eval()
    model.save_pretrained(tmp_path / "idm")
    assert 'bczoo.Model.from_pretrained("idm")' in (tmp_path / "idm" / "README.md").read_text()
    again = Model.from_pretrained(tmp_path / "idm")
    assert type(again) is InverseDynamics and again.spec == model.spec
    batch = any_batch(model)
    a, b = (one.logits(batch["frames"], batch["valid"]) for one in (model, again))
    assert all(torch.equal(a[name], b[name]) for name in a)
    with pytest.raises(UserError, match=r"holds a bczoo\.InverseDynamics, which does not act"):
        Policy.from_pretrained(tmp_path / "idm")


@pytest.mark.parametrize("wrong", [{"window": 3}, {"causal": 1}, {"heads": 3}])
def test_arguments_that_make_no_sense(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        tiny_idm(**wrong)


def test_fit_on_recordings(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(3):
        keys, frames = sliding(rng, 20)
        with RecordingWriter(tmp_path / f"rec-{i}", size=32) as writer:
            for key, frame in zip(keys, frames, strict=True):
                writer.add(frame, user={"keys": [["a", "d"][key - 1]] if key else [], "mouse_dx": int(key)})
    model = tiny_idm(action_space="keyboard_mouse")
    trainer = L.Trainer(max_steps=2, val_check_interval=1, **tiny.QUIET)
    trainer.fit(model, RecordingDataModule(root=str(tmp_path), batch_size=2, val_fraction=0.4))
    assert trainer.callback_metrics["val/loss"].isfinite()
    assert "val/r2/mouse_dx" in trainer.callback_metrics


def state(*presses, length=10, keys=1):
    """(1, T, K): the keys are held in these spans."""
    out = np.zeros((1, length, keys), bool)
    for key, start, stop in presses:
        out[0, start:stop, key] = True
    return out


def found(true, guessed, within, mask=None):
    mask = np.ones(true.shape[:2], bool) if mask is None else mask
    return int(matched(events(true, mask), events(guessed, mask), within).sum())


def test_events_are_matched_one_to_one():
    true = state((0, 2, 5))  # pressed at 2, released at 5
    assert [found(true, state((0, 3, 5)), d) for d in (0, 1, 2)] == [1, 2, 2]
    assert [found(true, state((0, 4, 7)), d) for d in (0, 1, 2)] == [0, 0, 2]
    assert found(true, state((0, 2, 3), (0, 4, 5)), 2) == 2, "a second press has no event left"
    assert found(true, state((0, 5, 8)), 2) == 0, "a press is no release"
    both = state((0, 2, 5), (1, 2, 5), keys=2)
    assert found(both, state((1, 2, 5), keys=2), 2) == 2, "keys are apart"
    windows = np.concatenate([state((0, 8, 10)), state()])
    assert found(windows, np.concatenate([state(), state((0, 1, 3))]), 2) == 0, "windows are apart"
    hidden = np.ones((1, 10), bool)
    hidden[:, 1] = False
    assert found(true, true, 0, hidden) == 1, "a press behind a step that nobody knows is none"


def test_a_copy_of_the_last_action_scores_nothing_where_it_counts():
    space = ActionSpace.keyboard_mouse()
    w = space.encode(keys=["w"])["keys"][0]
    keys = torch.zeros(1, 40, 4, dtype=torch.long)
    keys[0, 5:15, 0] = keys[0, 25:35, 0] = w
    actions = {g.name: torch.tensor(g.neutral).expand(1, 40, g.tokens).clone() for g in space.groups} | {"keys": keys}
    late = {name: torch.roll(ids, 3, 1) for name, ids in actions.items()}
    metric = InverseDynamicsMetrics(space)
    metric.update(late, actions, torch.ones(1, 40, dtype=torch.bool), torch.ones(1, 40))
    values = metric.compute()
    assert values["event_f1_2/keys"] == 0 and values["joint"] == 0.7 and values["joint_copy"] == 35 / 39
    assert values["event_f1_macro/keys"].isnan() and values["r2/mouse_dx"].isnan()
    assert values["calibration"].isclose(torch.tensor(0.3))


def test_motion_is_measured_at_the_centres_of_bins():
    space = ActionSpace.keyboard_mouse()
    pixels = [-20, -2, 0, 0, 2, 20, 40, 0]
    ids = torch.tensor([space.encode(mouse_dx=p)["mouse_dx"] for p in pixels])[None]
    actions = {g.name: torch.tensor(g.neutral).expand(1, 8, g.tokens) for g in space.groups} | {"mouse_dx": ids}
    guess = {**actions, "mouse_dx": ids.flip(1)}
    metric = InverseDynamicsMetrics(space)
    metric.update(guess, actions, torch.ones(1, 8, dtype=torch.bool), torch.ones(1, 8))
    group = next(g for g in space.groups if g.name == "mouse_dx")
    centres = np.array([sum(group.support(i)) / 2 for i in ids[0, :, 0].tolist()])
    error = centres[::-1] - centres
    values = metric.compute()
    assert values["mae/mouse_dx"].item() == pytest.approx(np.abs(error).mean())
    assert values["r2/mouse_dx"].item() == pytest.approx(1 - (error**2).mean() / centres.var())
    assert values["sign/mouse_dx"].item() == 0


def test_held_names_know_no_order():
    space = ActionSpace.keyboard_mouse()
    group = space.groups[0]
    assert (held(group, np.array([[[3, 0, 5, 0]]])) == held(group, np.array([[[5, 3, 3, 0]]]))).all()
    assert held(group, np.array([[[0, 0, 0, 0]]])).sum() == 0
