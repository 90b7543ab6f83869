"""Training on actions that a model has read off video: which steps and windows count, how much, and where never."""

from __future__ import annotations

import lightning as L
import numpy as np
import pytest
import tiny
import torch
from synthetic import SIZE, numbered
from torch.nn.functional import cross_entropy

from bczoo import ActionSpace, RecordingDataModule, bc_loss
from bczoo.core.errors import UserError
from bczoo.core.spec import loss_mask
from bczoo.data.check import check
from bczoo.data.dataset import WindowDataset
from bczoo.data.index import open_index
from bczoo.data.pseudo import PseudoLabels, draws, hours
from bczoo.data.recording import ANNOTATION_FILE, RecordingWriter, write_action
from bczoo.data.schema import annotation as pb
from bczoo.data.windows import Plan, list_windows, split

KEYBOARD = ActionSpace.keyboard_mouse()


def write(folder, sure=(), steps=None, size=SIZE):
    """A recording whose steps are guesses of these confidences, None for a step that nobody knows; or a person's."""
    n = len(sure) if steps is None else steps
    with RecordingWriter(folder, size=size) as writer:
        for i in range(n):
            writer.add(numbered(i, size), user={"keys": ["w"], "mouse_dx": i})
        writer.add(numbered(n, size))
    if sure:
        message = pb.VideoAnnotation.FromString((folder / ANNOTATION_FILE).read_bytes())
        for frame, confidence in zip(message.frame_annotations[1:], sure, strict=False):
            frame.ClearField("user_action")
            if confidence is not None:
                write_action({"keys": ["d"], "mouse_dx": 5}, frame.pseudo_action)
                frame.pseudo_confidence = confidence
        (folder / ANNOTATION_FILE).write_bytes(message.SerializeToString())
    return folder


def index_of(root):
    return open_index(root, KEYBOARD, text_dim=None)


def test_only_sure_guesses_are_labels_and_weigh_what_they_should(tmp_path):
    write(tmp_path / "rec", [0.9, 0.2, None, 0.5])
    dataset = WindowDataset(index_of(tmp_path), 4, SIZE, pseudo=PseudoLabels(0.5, 0.25))
    batch = dataset[0, 0]
    assert batch["user"][0].tolist() == [True, False, False, True]
    assert batch["weight"][0].tolist() == [0.25, 1, 1, 0.25]
    neutral, d = 0, KEYBOARD.encode(keys=["d"])["keys"][0]
    assert batch["actions"]["keys"][0, :, 0].tolist() == [d, neutral, neutral, d]
    motion = KEYBOARD.encode(mouse_dx=0)["mouse_dx"]
    assert batch["actions"]["mouse_dx"][0, 1].tolist() == motion


def test_without_the_option_no_batch_shows_a_guess(tmp_path):
    write(tmp_path / "rec", [0.9, 1.0])
    batch = WindowDataset(index_of(tmp_path), 2, SIZE)[0, 0]
    assert not loss_mask(batch, "any").any() and "weight" not in batch
    assert not batch["actions"]["keys"].any()


def test_windows_with_less_than_half_their_steps_are_left_out(tmp_path):
    write(tmp_path / "a", [0.9, 0.9, 0.1, 0.1, 0.9, 0.1, 0.1, 0.1, 0.9])
    write(tmp_path / "b", steps=5)
    index = index_of(tmp_path)
    every = [(0, 0), (0, 4), (0, 8), (1, 0), (1, 4)]
    windows = list(zip(*(x.tolist() for x in list_windows(index, index.usable, 4)), strict=True))
    assert windows == every
    kept = list(zip(*(x.tolist() for x in list_windows(index, index.usable, 4, pseudo=PseudoLabels(0.5))), strict=True))
    assert kept == [(0, 0), (0, 8), (1, 0), (1, 4)]
    assert Plan(index, index.usable, 4, 1, False, pseudo=PseudoLabels(0.95)).n_windows() == 2


def test_long_runs_of_nothing_are_a_small_share_of_what_is_learned(tmp_path):
    write(tmp_path / "rec", [0.9] * 200)
    message = pb.VideoAnnotation.FromString((tmp_path / "rec" / ANNOTATION_FILE).read_bytes())
    for first, last in ((20, 60), (80, 130), (150, 180)):  # of 40 steps, two seconds, of 50 and of 30
        for frame in message.frame_annotations[first + 1 : last + 1]:
            frame.pseudo_action.Clear()
            write_action({}, frame.pseudo_action)
    (tmp_path / "rec" / ANNOTATION_FILE).write_bytes(message.SerializeToString())
    index = index_of(tmp_path)
    kept = PseudoLabels(idle_share=0.1).accepted(index, 0)[1:]
    assert np.flatnonzero(~kept).tolist() == list(range(80 + 16, 130))  # 16 of 166 that are left
    assert PseudoLabels(idle_share=None).accepted(index, 0)[1:].all()
    assert np.flatnonzero(~PseudoLabels(idle_share=0.0).accepted(index, 0)[1:]).tolist() == list(range(80, 130))


@pytest.mark.parametrize("share", [0.5, 0.25, 1.0, 0.0])
def test_batches_have_their_share_of_guesses(tmp_path, share):
    write(tmp_path / "a", [0.9] * 36)
    write(tmp_path / "b", steps=8)
    index = index_of(tmp_path)
    plan = Plan(index, index.usable, 4, 4, shuffle=True, pseudo=PseudoLabels(share=share))
    recording, start = plan.epoch(0)
    assert plan.n_windows() in (10, 11) and len(recording) == 2
    assert (recording == 0).mean(axis=1).tolist() == [share] * 2
    drawn = [(r, s) for r, s in zip(recording.flat, start.flat, strict=True) if r == 0]
    assert len(set(drawn)) == len(drawn), "as long as there are enough, none comes twice"
    other = Plan(index, index.usable, 4, 4, shuffle=True, pseudo=PseudoLabels(share=share))
    assert (other.epoch(0)[1] == start).all() and (other.epoch(1)[1] != start).any()


def test_one_kind_alone_is_drawn_whole_whatever_the_share(tmp_path):
    write(tmp_path / "a", [0.9] * 12)
    index = index_of(tmp_path)
    start = Plan(index, index.usable, 4, 1, shuffle=True, pseudo=PseudoLabels()).epoch(0)[1]
    assert len(set(start.flat)) == len(start) == 3


def test_known_windows_that_come_too_often_are_told():
    guessed = np.arange(22) > 1
    with pytest.warns(UserWarning, match=r"each of the 2 windows with known actions comes 5.5 times an epoch"):
        assert "each of them comes 0.6 times, each of the others 5.5 times" in draws(guessed, 0.5)
    assert draws(guessed, None) is None and draws(guessed[2:], 0.5) is None


def test_guesses_are_never_validated_on(tmp_path):
    for i in range(8):
        write(tmp_path / f"guessed-{i}", [0.9] * 4)
    for i in range(2):
        write(tmp_path / f"known-{i}", steps=4)
    index = index_of(tmp_path)
    training, validation = split(index, 0.5)
    assert len(validation) == 1 and str(index.names[validation[0]]).startswith("known")
    assert sorted([*training, *validation]) == list(range(10))


def module(root, **options):
    data = RecordingDataModule(root=str(root), window=5, frame_size=tiny.SIZE, batch_size=2, **options)
    policy = tiny.tiny_policy(text_dim=None)
    trainer = L.Trainer(max_steps=1, limit_val_batches=1, val_check_interval=1, num_sanity_val_steps=0, **tiny.QUIET)
    return data, policy, trainer


def test_training_on_a_mixture(tmp_path, capsys):
    for i in range(3):
        write(tmp_path / f"guessed-{i}", [0.9] * 6 + [0.1] * 4, size=tiny.SIZE)
        write(tmp_path / f"known-{i}", steps=10, size=tiny.SIZE)
    data, policy, trainer = module(tmp_path, pseudo=True, pseudo_min_confidence=0.5, pseudo_weight=0.5)
    trainer.fit(policy, data)
    told = capsys.readouterr().out
    assert "h read off video" in told and "sure enough (from 0.5 on) and count 0.5 each" in told
    assert "windows  50% of a batch from recordings that were read off: in an epoch each of them comes" in told
    assert data.describe()["pseudo"] == {"min_confidence": 0.5, "weight": 0.5, "share": 0.5, "idle_share": 0.1}
    weights = torch.cat([b["weight"][b["user"]] for b in data.train_dataloader()])
    assert set(weights.tolist()) == {0.5, 1.0}
    assert all("weight" not in batch for batch in data.val_dataloader())
    assert trainer.callback_metrics["val/loss"].isfinite()


def test_guesses_alone_are_learned_from_only_if_that_is_wanted(tmp_path):
    write(tmp_path / "guessed", [0.9] * 10, size=tiny.SIZE)
    data, policy, trainer = module(tmp_path, val_fraction=0)
    with pytest.raises(UserError, match=r"--data\.pseudo true learns from"):
        trainer.fit(policy, data)
    data, policy, trainer = module(tmp_path, val_fraction=0, pseudo=True)
    trainer.fit(policy, data)
    assert trainer.global_step == 1


def test_the_loss_of_a_mixture_is_the_weighted_mean():
    torch.manual_seed(0)
    logits, ids = {"keys": torch.randn(2, 3, 1, 4)}, {"keys": torch.randint(0, 4, (2, 3, 1))}
    mask = torch.tensor([[True, True, False], [True, False, True]])
    weight = torch.tensor([[1.0, 0.5, 1.0], [0.5, 1.0, 1.0]])
    each = cross_entropy(logits["keys"].flatten(0, 2), ids["keys"].flatten(), reduction="none").view(2, 3)
    by_hand = (each[0, 0] + each[0, 1] / 2 + each[1, 0] / 2 + each[1, 2]) / 3
    torch.testing.assert_close(bc_loss(logits, ids, mask, 0.0, weight=weight).cross_entropy["keys"], by_hand)
    ones = torch.ones_like(weight)
    torch.testing.assert_close(bc_loss(logits, ids, mask, weight=ones).total, bc_loss(logits, ids, mask).total)


def test_a_policy_s_loss_divides_by_the_weights(one_thread):
    """As if each step of half the weight were there half as often."""
    policy = tiny.tiny_policy(text_dim=None, z_loss=0.0).eval()
    batch = tiny.tiny_batch(policy, batch=2)
    light = batch | {"weight": torch.stack([torch.ones(5), torch.full((5,), 0.5)])}
    one, other = (
        policy.loss({**batch, "user": batch["user"] & torch.tensor([[a], [b]])})
        for a, b in ((True, False), (False, True))
    )
    torch.testing.assert_close(policy.loss(light).total, (2 * one.total + other.total) / 3)


def test_hours_are_told(tmp_path):
    write(tmp_path / "guessed", [0.9, 0.1])
    index = index_of(tmp_path)
    assert "not learned from" in hours(index, index.usable, None)
    report = check(str(tmp_path), text_dim=None, processes=1)
    assert "pseudo-labelled 2" in str(report) and "= 0.00 h" in str(report)
    write(tmp_path / "other" / "known", steps=3)
    known = index_of(tmp_path / "other")
    assert hours(known, known.usable, None) is None


@pytest.mark.parametrize(
    "options", [{"pseudo_min_confidence": 1.5}, {"pseudo_weight": -1}, {"pseudo_share": 1.1}, {"pseudo_idle_share": 1}]
)
def test_options_that_make_no_sense(options):
    with pytest.raises(UserError, match=next(iter(options))):
        RecordingDataModule(root="data", **options)
    assert np.isfinite(PseudoLabels().weight)
