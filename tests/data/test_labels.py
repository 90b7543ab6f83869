"""Steps whose label is not what was done: an expert's beside a policy's own (DAgger), and a model's guesses."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from synthetic import SIZE, numbered

from bczoo.core.actions import ActionSpace
from bczoo.core.spec import loss_mask, targets
from bczoo.data.check import check
from bczoo.data.dataset import WindowDataset
from bczoo.data.index import open_index
from bczoo.data.recording import (
    ANNOTATION_FILE,
    LABELLED,
    PSEUDO,
    SYSTEM,
    UNKNOWN,
    USER,
    RecordingWriter,
    known_action,
    parse_steps,
    read_annotation,
)
from bczoo.data.schema import annotation as pb

KEYBOARD = ActionSpace.keyboard_mouse()
W, A, D = ({"keys": [key], "mouse_dx": dx} for key, dx in (("w", 0), ("a", -5), ("d", 5)))
STEPS = [{"user": W}, {"system": A, "expert": D}, {"system": A, "expert": W}, {"system": A}, {"user": D}, {}]
KINDS = [UNKNOWN, USER, LABELLED, LABELLED, SYSTEM, USER, UNKNOWN]
DONE, WANTED = ["w", "a", "a", "a", "d"], ["w", "d", "w", "a", "d"]

pytestmark = pytest.mark.usefixtures("one_thread")


def write(folder, steps=STEPS, fps=20.0):
    with RecordingWriter(folder, fps=fps, size=SIZE) as writer:
        for i, who in enumerate(steps):
            writer.add(numbered(i), **who)
        writer.add(numbered(len(steps)))
    return folder


def guess(folder, confidence):
    """Replace what is known of a recording's actions by a model's guesses."""
    message = pb.VideoAnnotation.FromString((folder / ANNOTATION_FILE).read_bytes())
    for i, frame in enumerate(message.frame_annotations):
        if frame.user_action.is_known:
            frame.pseudo_action.CopyFrom(frame.user_action)
            frame.pseudo_confidence = confidence if np.isscalar(confidence) else confidence[i]
            frame.ClearField("user_action")
    (folder / ANNOTATION_FILE).write_bytes(message.SerializeToString())
    return folder


def keys(ids):
    """The key of every step, "" for none, from ids (n, A)."""
    parts = [{name: row[part].tolist() for name, part in KEYBOARD.slices.items()} for row in np.asarray(ids)]
    return ["".join(KEYBOARD.decode(part)["keys"]) for part in parts]


def steps_of(folder, fps=20.0):
    return parse_steps(read_annotation(folder), KEYBOARD, fps, None, folder)


def test_a_step_holds_what_was_done_and_what_is_learned(tmp_path):
    steps = steps_of(write(tmp_path / "rec"))
    assert steps.kind.tolist() == KINDS
    assert keys(steps.ids[1:6]) == DONE and keys(steps.labels[1:6]) == WANTED
    assert (steps.labels[0] == steps.ids[0]).all() and not len(steps.confidence)


def test_readers_of_the_paper_s_schema_see_a_policy_s_own_step(tmp_path):
    """They skip fields from 100 on; a system action is not learned from."""
    frame = read_annotation(write(tmp_path / "rec")).frame_annotations[2]
    frame.ClearField("expert_action")
    assert known_action(frame)[0] == SYSTEM and not frame.user_action.is_known


def test_where_all_is_what_was_done_no_labels_are_kept(tmp_path):
    folder = write(tmp_path / "data" / "rec", [{"user": W}, {"system": A}])
    assert not len(steps_of(folder).labels)
    index = open_index(tmp_path / "data", KEYBOARD, text_dim=None)
    assert not index.has_labels and "labels" not in WindowDataset(index, 2, SIZE)[0, 0]
    assert (index.labels(0) == index.steps(0)[0]).all()


@pytest.mark.parametrize("again", [False, True], ids=["built", "copied into a new build"])
def test_batches_tell_labels_from_actions(tmp_path, again):
    write(tmp_path / "b")
    write(tmp_path / "a", [{"user": W}] * 3)
    index = open_index(tmp_path, KEYBOARD, text_dim=None)
    if again:
        write(tmp_path / "aa", [{"user": A}] * 2)
        index = open_index(tmp_path, KEYBOARD, text_dim=None)
    number = index.names.tolist().index("b")
    batch = WindowDataset(index, 6, SIZE).__getitems__([(number, 0), (0, 0)])
    done, wanted = (
        np.concatenate([one[g.name].numpy() for g in KEYBOARD.groups], axis=-1)
        for one in (batch["actions"], targets(batch))
    )
    assert keys(done[0])[:5] == DONE and keys(wanted[0])[:5] == WANTED
    assert keys(done[1])[:3] == keys(wanted[1])[:3] == ["w"] * 3
    assert batch["user"][0].tolist() == [True, True, True, False, True, False]
    assert batch["system"][0].tolist() == [False, True, True, True, False, False]
    assert loss_mask(batch)[0].tolist() == [True, True, True, False, True, False]


def test_labels_are_resampled_as_actions_are(tmp_path):
    """Two annotations make a step; one of them that the policy did makes it the policy's."""
    own = {"system": A, "expert": D}
    steps = steps_of(write(tmp_path / "rec", [{"user": W}, {"user": W}, own, own, {"user": W}, own, own], 40.0))
    shown = steps.kind.tolist()
    assert set(shown) == {UNKNOWN, USER, LABELLED} and steps.recorded_fps == 40
    labelled = steps.kind == LABELLED
    assert set(keys(steps.ids[labelled])) <= {"a", "aw", "wa"} and "d" in keys(steps.labels[labelled])
    dx = KEYBOARD.slices["mouse_dx"]
    assert (steps.labels[labelled][:, dx] > steps.ids[labelled][:, dx]).all(), "motion is summed apart"


def test_guesses_are_kept_apart_with_how_sure_they_are(tmp_path):
    folder = guess(write(tmp_path / "data" / "rec", [{"user": W}, {"user": A}, {}, {"user": D}]), [0, 0.25, 0.5, 0, 1])
    steps = steps_of(folder)
    assert steps.kind.tolist() == [UNKNOWN, PSEUDO, PSEUDO, UNKNOWN, PSEUDO]
    assert steps.confidence[[1, 2, 4]].tolist() == [0.25, 0.5, 1]
    index = open_index(tmp_path / "data", KEYBOARD, text_dim=None)
    assert index.confidence(0)[[1, 2, 4]].tolist() == [0.25, 0.5, 1] and not index.has_labels
    batch = WindowDataset(index, 4, SIZE)[0, 0]
    assert not batch["user"].any() and not batch["system"].any(), "nothing takes them for a person's"
    report = check(str(tmp_path / "data"), text_dim=None, processes=1)
    assert (report.pseudo_steps, report.user_steps) == (3, 0) and "pseudo-labelled 3" in str(report)


@pytest.mark.parametrize("confidence", [1.5, -0.1, float("nan")])
def test_a_confidence_that_is_none_is_told(tmp_path, confidence):
    guess(write(tmp_path / "rec", [{"user": W}]), confidence)
    index = open_index(tmp_path, KEYBOARD, text_dim=None)
    assert index.problems[0].startswith("annotation 1: a confidence of ")


def test_the_report_counts_labelled_steps(tmp_path):
    write(tmp_path / "rec")
    report = check(str(tmp_path), text_dim=None, processes=1)
    assert (report.user_steps, report.labelled_steps, report.system_steps) == (2, 2, 1)
    assert report.actions["keys"]["d"] == 2 and report.actions["keys"]["a"] == 0
    assert "system with an expert's label 2" in str(report)


@pytest.mark.parametrize("make", [tiny.tiny_policy, tiny.tiny_cnn])
def test_a_policy_sees_what_was_done_and_learns_the_label(make):
    policy = make(**({"text_dim": None} if make is tiny.tiny_policy else {"past_actions": True})).eval()
    batch = tiny.tiny_batch(policy)
    plain = policy.logits(batch)
    same = policy.logits(batch | {"labels": batch["actions"]})
    assert all(torch.allclose(plain[name], same[name]) for name in plain)
    other = {name: ids.clone() for name, ids in batch["actions"].items()}
    other["mouse_dx"][:, 2] = 1 - other["mouse_dx"][:, 2].clamp(max=1)
    labelled = batch | {"labels": other}
    assert policy.loss(labelled).total != policy.loss(batch).total
    later = policy.logits(labelled)
    assert all(torch.allclose(plain[name][:, 3:], later[name][:, 3:]) for name in plain), "the past is what was done"
    done = policy.logits(batch | {"actions": other, "labels": batch["actions"]})
    assert any(not torch.allclose(plain[name][:, 3:], done[name][:, 3:]) for name in plain)
    assert all(torch.allclose(plain[name][:, :3], done[name][:, :3], atol=1e-6) for name in plain)


def test_a_chain_in_the_backbone_leaves_out_steps_that_were_labelled_otherwise():
    policy = tiny.tiny_policy(text_dim=None, decoder=tiny.BackboneHeads).eval()
    batch = tiny.tiny_batch(policy)
    plain = policy.loss(batch).total
    assert torch.equal(policy.loss(batch | {"labels": batch["actions"]}).total, plain)
    labels = {name: ids.clone() for name, ids in batch["actions"].items()}
    labels["mouse_dx"][:, 2] = 1 - labels["mouse_dx"][:, 2].clamp(max=1)
    user = batch["user"].clone()
    user[:, 2] = False
    without = policy.loss(batch | {"user": user}).total
    torch.testing.assert_close(policy.loss(batch | {"labels": labels}).total, without)
    assert without != plain
