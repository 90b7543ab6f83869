"""Labelling recordings: every step once, never across a cut, resumable, nothing lost; and comparing with the truth."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_idm import sliding, tiny_idm

from bczoo.cli import main
from bczoo.core.errors import UserError
from bczoo.data.index import open_index
from bczoo.data.recording import ANNOTATION_FILE, PSEUDO, UNKNOWN, USER, RecordingWriter, known_action, read_annotation
from bczoo.models.idm.check import idm_check
from bczoo.models.idm.label import label, read_off
from bczoo.models.idm.windows import changes, cuts, plan

pytestmark = pytest.mark.usefixtures("one_thread")


def write(folder: Path, steps: int, known: bool = False, seed: int = 0, fps: float = 20.0, size: int = 32) -> Path:
    keys, frames = sliding(np.random.default_rng(seed), steps, size)
    with RecordingWriter(folder, fps=fps, size=size) as writer:
        for key, frame in zip(keys[:-1], frames[:-1], strict=True):
            writer.add(frame, user={"keys": [["a", "d"][key - 1]] if key else []} if known else None)
        writer.add(frames[-1])
    return folder


@pytest.fixture(scope="module")
def idm(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("idm") / "idm"
    tiny_idm().save_pretrained(folder)
    return str(folder)


def guesses(folder: Path) -> list[tuple[list[str], float] | None]:
    frames = read_annotation(folder).frame_annotations
    return [
        (list(f.pseudo_action.keyboard.keys), f.pseudo_confidence) if f.pseudo_action.is_known else None for f in frames
    ]


@pytest.mark.parametrize("window", [4, 5, 7, 8, 16])
@pytest.mark.parametrize("scenes", [(), (5,), (5, 6, 20)])
def test_each_step_is_labelled_once(window, scenes):
    """Of every length; the last step before a cut and that of the end have no frame after them that tells."""
    for n in range(1, 60):
        begins = [c for c in scenes if c < n]
        times = np.zeros(n, int)
        for w in plan(n, window, begins):
            assert w.stop - w.start <= window and w.start <= w.first < w.last < w.stop
            assert not any(w.start < c < w.stop for c in begins), "no window goes across a cut"
            times[w.first : w.last] += 1
        wanted = np.ones(n, int)
        wanted[[c - 1 for c in begins] + [n - 1]] = 0
        assert times.tolist() == wanted.tolist()


def test_the_middle_of_a_window_is_kept():
    windows = plan(100, 16)
    assert windows[0][:] == (0, 16, 0, 12) and windows[1][:] == (8, 24, 12, 20)
    assert windows[-1].stop == 100 and windows[-1].last == 99
    assert all(w.first - w.start >= 4 for w in windows[1:])


def test_cuts_are_found_and_quick_turns_are_none():
    rng = np.random.default_rng(0)
    scenes = rng.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    moving = [np.roll(scenes[int(i >= 30)], i, axis=1) for i in range(60)]
    assert cuts(changes(moving)) == [30]
    still = [np.full((64, 64, 3), 100 + (i == 20) * 20, np.uint8) for i in range(40)]
    assert cuts(changes(still)) == [] == cuts(changes(still[:1]))


def test_labels_are_what_the_model_says_of_the_same_frames(tmp_path, idm):
    folder = write(tmp_path / "in" / "rec", 40)
    assert main(["data", "label", idm, str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 0
    found = guesses(tmp_path / "out" / "rec")
    assert found[0] is None and all(one is not None for one in found[1:])
    model = tiny_idm().eval()
    ids, sure = read_off(model, folder / "32x32.mp4", 40, plan(40, 8), 3, 1.0)
    assert [one[1] for one in found[1:]] == pytest.approx(sure[:-1].tolist(), abs=1e-6)
    space = model.action_space
    keys = [space.decode({k: row[s].tolist() for k, s in space.slices.items()})["keys"] for row in ids[:-1]]
    assert [one[0] for one in found[1:]] == keys
    index = open_index(tmp_path / "out", space, text_dim=None)
    kind = index.steps(0)[1]
    assert kind.tolist() == [UNKNOWN] + [PSEUDO] * 39 and (index.confidence(0)[1:] < 1).all()


def test_a_short_recording_is_one_padded_window(tmp_path, idm):
    write(tmp_path / "in" / "short", 5)
    write(tmp_path / "in" / "shortest", 2)
    result = label(idm, str(tmp_path / "in"), str(tmp_path / "out"))
    assert [sum(g is not None for g in guesses(tmp_path / "out" / n)) for n in ("short", "shortest")] == [4, 1]
    assert (result.steps, result.labelled) == (5, 5)


def test_known_actions_and_everything_else_stay(tmp_path, idm):
    folder = write(tmp_path / "in" / "rec", 20, known=True)
    label(idm, str(folder), str(tmp_path / "out"))
    before, after = (read_annotation(f) for f in (folder, tmp_path / "out" / "rec"))
    assert [known_action(f)[0] for f in after.frame_annotations[1:]] == [USER] * 19
    for a, b in zip(before.frame_annotations, after.frame_annotations, strict=True):
        assert a.user_action == b.user_action
    about = after.metadata.pseudo_labels
    assert about.idm == idm and len(about.weights) == 16 and about.timestamp > 0 and about.temperature == 1
    video = tmp_path / "out" / "rec" / "32x32.mp4"
    assert video.stat().st_ino == (folder / "32x32.mp4").stat().st_ino, "linked, not copied"


def test_a_resumed_labelling_is_an_uninterrupted_one(tmp_path, idm, monkeypatch):
    from bczoo.models.idm import label as module

    for i in range(3):
        write(tmp_path / "in" / f"rec-{i}", 20, seed=i)
    label(idm, str(tmp_path / "in"), str(tmp_path / "whole"))
    real = module.read_off

    def interrupted(model, video, *rest):
        if "rec-1" in str(video):
            raise KeyboardInterrupt
        return real(model, video, *rest)

    monkeypatch.setattr(module, "read_off", interrupted)
    with pytest.raises(KeyboardInterrupt):
        label(idm, str(tmp_path / "in"), str(tmp_path / "out"))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["rec-0"]
    monkeypatch.setattr(module, "read_off", real)
    result = label(idm, str(tmp_path / "in"), str(tmp_path / "out"))
    assert (result.recordings, result.kept) == (2, 1) and "1 were already" in str(result)
    for i in range(3):
        assert guesses(tmp_path / "out" / f"rec-{i}") == guesses(tmp_path / "whole" / f"rec-{i}")


def test_another_model_s_labels_replace_the_first_one_s(tmp_path, idm):
    write(tmp_path / "in" / "rec", 20)
    label(idm, str(tmp_path / "in"), str(tmp_path / "out"))
    first = guesses(tmp_path / "out" / "rec")
    tiny_idm(seed=1).save_pretrained(tmp_path / "other")
    result = label(str(tmp_path / "other"), str(tmp_path / "in"), str(tmp_path / "out"))
    assert result.recordings == 1 and guesses(tmp_path / "out" / "rec") != first


def test_recordings_of_another_form_are_refused_in_words(tmp_path, idm):
    write(tmp_path / "fast" / "rec", 20, fps=40.0)
    with pytest.raises(UserError, match=r"1 recording at 40 instead of 20 fps.*20 frames a second first"):
        label(idm, str(tmp_path / "fast"), str(tmp_path / "out"))
    write(tmp_path / "small" / "rec", 20, size=16)
    with pytest.raises(UserError, match=r"is 16 x 16, and this model reads motion off 32 x 32"):
        label(idm, str(tmp_path / "small"), str(tmp_path / "out"))
    with pytest.raises(UserError, match="lies in the recordings"):
        label(idm, str(tmp_path / "small"), str(tmp_path / "small" / "out"))
    assert not (tmp_path / "out").exists()


def test_a_broken_video_costs_its_recording_alone(tmp_path, idm):
    write(tmp_path / "in" / "a", 20)
    video = write(tmp_path / "in" / "b", 20) / "32x32.mp4"
    data = bytearray(video.read_bytes())
    begin, end = data.index(b"mdat") + 8, data.index(b"moov")
    data[begin + (end - begin) // 3 : end - 8] = b"\xff" * (end - 8 - begin - (end - begin) // 3)
    video.write_bytes(bytes(data))
    result = label(idm, str(tmp_path / "in"), str(tmp_path / "out"))
    assert result.status == 1 and list(result.broken) == ["b"] and result.recordings == 1
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a"]


def test_play_says_that_it_does_not_act(idm, capsys):
    assert main(["play", idm, "--env", "doom/basic"]) == 1
    assert "which does not act" in capsys.readouterr().err


def test_comparing_with_the_truth(tmp_path, idm, capsys):
    write(tmp_path / "in" / "rec", 60, known=True)
    write(tmp_path / "in" / "unknown", 20)
    out = str(tmp_path / "out")
    label(idm, str(tmp_path / "in"), out)
    assert main(["data", "idm-check", out, "--json", str(tmp_path / "check.json")]) == 0
    told = capsys.readouterr().out
    assert "1 recordings, 59 steps with a guess and a known action" in told
    assert "event F1 within 0" in told and "expected calibration error" in told and "mouse_dx" in told
    kept = json.loads((tmp_path / "check.json").read_text())
    assert [c["share"] for c in kept["coverage"]] == [1, 0.8, 0.6, 0.4, 0.2]
    assert kept["measures"]["joint"] == pytest.approx(kept["coverage"][0]["joint"])
    with pytest.raises(UserError, match="no step has both"):
        idm_check(str(tmp_path / "in"))


def test_guesses_that_are_the_truth_agree_with_it(tmp_path, idm):
    write(tmp_path / "in" / "rec", 60, known=True)
    label(idm, str(tmp_path / "in"), str(tmp_path / "out"))
    from bczoo.data.schema import annotation as pb

    file = tmp_path / "out" / "rec" / ANNOTATION_FILE
    message = pb.VideoAnnotation.FromString(file.read_bytes())
    for frame in message.frame_annotations[1:]:
        frame.pseudo_action.CopyFrom(frame.user_action)
        frame.pseudo_confidence = 1
    file.write_bytes(message.SerializeToString())
    measures = idm_check(str(tmp_path / "out")).measures
    assert measures["joint"] == measures["event_f1_0/keys"] == 1 and measures["calibration"] == 0


def test_calibration_makes_a_model_as_sure_as_it_is_right(tmp_path, idm, capsys):
    """Untrained, it is right by chance: it may hardly be surer than that."""
    for i in range(3):
        write(tmp_path / "known" / f"rec-{i}", 60, known=True, seed=i)
    model = tiny_idm()
    with torch.no_grad():
        for _, layer in model.heads.groups.items():
            layer.weight *= 30
    model.save_pretrained(tmp_path / "sure")
    sure, data, out = str(tmp_path / "sure"), str(tmp_path / "known"), str(tmp_path / "out")
    label(sure, data, out)
    before = idm_check(out).measures
    result = label(sure, data, out, calibrate=data)
    assert result.recordings == 3, "labelled anew, with another temperature"
    after = idm_check(out).measures
    assert after["calibration"] < before["calibration"] and after["joint"] == before["joint"]
    assert "80 % of them have a confidence of at least" in capsys.readouterr().out
    about = read_annotation(Path(out) / "rec-0").metadata.pseudo_labels
    assert about.temperature > 1 and 0 < about.threshold < 1
    write(tmp_path / "unknown" / "rec", 20)
    with pytest.raises(UserError, match="no step there has a known action"):
        label(sure, data, out, calibrate=str(tmp_path / "unknown"))
