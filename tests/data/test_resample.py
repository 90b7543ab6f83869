"""Recordings of another rate than the policy's: frames, actions, who acted, texts, and what is said of it."""

from __future__ import annotations

import lightning as L
import numpy as np
import pytest
import tiny
from synthetic import SIZE, number_of, numbered, write_recording, write_recordings

from bczoo.core.actions import ActionSpace
from bczoo.data import schema
from bczoo.data.check import check
from bczoo.data.dataset import WindowDataset
from bczoo.data.errors import RecordingError
from bczoo.data.index import open_index
from bczoo.data.module import RecordingDataModule
from bczoo.data.recording import SYSTEM, UNKNOWN, USER, RecordingWriter, parse_steps, read_annotation
from bczoo.data.resample import Resampling

KEYBOARD = ActionSpace.keyboard_mouse()
RATES = [50.0, 30.0, 60.0, 25.0, 29.97, 144.0, 19.0, 15.0, 10.0, 7.0, 2.0]


def write(folder, fps, steps, texts=None):
    """A recording of numbered frames; every step is (who, values), and ``texts`` (instruction, embedding) by step."""
    with RecordingWriter(folder, fps=fps, size=SIZE) as writer:
        for i, (who, values) in enumerate(steps):
            text, embedding = (texts or {}).get(i, (None, None))
            writer.add(numbered(i), **({who: values} if who else {}), text=text, text_embedding=embedding)
        writer.add(numbered(len(steps)))
    return folder


def steps_of(folder, fps=20.0, space=KEYBOARD, text_dim=None):
    return parse_steps(read_annotation(folder), space, fps, text_dim, folder)


def values_of(steps, group):
    return [KEYBOARD.decode(split(ids))[group] for ids in steps.ids]


def split(ids):
    return {name: ids[part].tolist() for name, part in KEYBOARD.slices.items()}


@pytest.mark.parametrize("fps", RATES)
def test_every_step_shows_the_frame_nearest_to_its_time_and_no_frame_is_beyond_the_end(fps):
    resampling = Resampling(fps, 20.0)
    for n in (1, 2, 3, 7, 100, 1001):
        shown = resampling.frames(0, resampling.n_steps(n))
        assert shown[0] == 0 and shown[-1] <= n - 1 and (np.diff(shown) >= 0).all()
        assert np.abs(shown / fps - np.arange(len(shown)) / 20).max() <= 0.5 / fps + 1e-3
        assert np.array_equal(shown[3:9], resampling.frames(3, len(shown[3:9]))), "a window begins anywhere"
        assert n < 2 or len(shown) >= 2 or fps > 20
        assert abs((len(shown) - 1) / 20 - (n - 1) / fps) <= 1.5 * max(1 / fps, 1 / 20), "as long as it was"


def test_equal_rates_are_not_resampled_and_absurd_ones_refused():
    assert Resampling.between(20.0, 20.0) is None and Resampling.between(19.9995, 20.0) is None
    for fps in (float("nan"), float("inf"), -20.0, 1.9, 1001.0):
        with pytest.raises(ValueError, match=rf"recorded at {fps:g} frames per second, wanted are 20, .* 2 to 1000"):
            Resampling.between(fps, 20.0)


def test_the_fifty_of_the_docstring():
    assert Resampling(50.0, 20.0).frames(0, 5).tolist() == [0, 2, 5, 7, 10]
    assert Resampling(50.0, 20.0).n_steps(11) == 5


def test_keys_of_any_part_are_held_and_motion_is_summed(tmp_path):
    actions = [{"keys": [], "mouse_dx": i} for i in range(1, 11)]  # annotation i moves i pixels
    actions[2] = {"keys": ["Space"], "mouse_dx": 3}  # a press of one frame
    actions[3] = {"keys": ["w"], "mouse_dx": 4}
    steps = steps_of(write(tmp_path / "rec", 50.0, [("user", a) for a in actions]))
    assert values_of(steps, "keys") == [[], [], ["Space", "w"], [], []]
    summed = [0, 1 + 2, 3 + 4 + 5, 6 + 7, 8 + 9 + 10]
    expected = [KEYBOARD.decode(KEYBOARD.encode(mouse_dx=dx))["mouse_dx"] for dx in summed]
    assert values_of(steps, "mouse_dx") == expected
    assert steps.kind.tolist() == [UNKNOWN, USER, USER, USER, USER]
    assert (steps.n_recorded, steps.recorded_fps) == (11, 50.0)


def test_sticks_and_triggers_take_the_mean(tmp_path):
    pad = ActionSpace.gamepad()
    actions = [{"buttons": ["south"], "left_stick_x": 1.0}, {"buttons": [], "left_stick_x": -0.5}]
    steps = steps_of(write(tmp_path / "rec", 40.0, [("user", a) for a in actions]), space=pad)
    assert steps.ids[1].tolist() == [
        i for group in pad.encode(buttons=["south"], left_stick_x=0.25).values() for i in group
    ]


def test_a_slow_recording_keeps_keys_held_and_spreads_motion(tmp_path):
    actions = [{"keys": ["w"], "mouse_dx": 5}, {"keys": ["a"], "mouse_dx": -3}]
    steps = steps_of(write(tmp_path / "rec", 10.0, [("user", a) for a in actions]))
    assert values_of(steps, "keys") == [[], ["w"], ["w"], ["a"], ["a"]]
    spread = [[KEYBOARD.encode(mouse_dx=dx)["mouse_dx"] for dx in pair] for pair in ((2, 3), (-2, -1))]
    assert [split(ids)["mouse_dx"] for ids in steps.ids[1:]] == [*spread[0], *spread[1]]


@pytest.mark.parametrize(
    ("parts", "kind"),
    [
        (["user", "user", "user"], USER),
        (["user", "system", "user"], SYSTEM),
        (["system", "system", "user"], SYSTEM),
        (["system", "system", "system"], SYSTEM),
        (["user", None, "user"], UNKNOWN),
        (["system", None, "user"], UNKNOWN),
    ],
)
def test_a_step_is_the_users_only_if_all_its_parts_are(tmp_path, parts, kind):
    actions = [(who, {"keys": ["w"]} if who else None) for who in parts]
    steps = steps_of(write(tmp_path / "rec", 60.0, [*actions, ("user", {"keys": []})]))
    assert steps.kind.tolist() == [UNKNOWN, kind]
    assert values_of(steps, "keys")[1] == ([] if kind == UNKNOWN else ["w"]), "of what is unknown nothing is shown"


@pytest.mark.parametrize("fps", [10.0, 30.0, 50.0, 60.0])
def test_instructions_hold_for_as_long_as_they_did(tmp_path, fps):
    first, second = ("left", np.ones(4)), ("right", np.full(4, 2.0))
    n = int(fps * 3)
    texts = {i: first if i < fps else second for i in range(n) if i < 2 * fps}  # one second each, then none
    folder = write(tmp_path / "rec", fps, [("user", {})] * n, texts)
    steps = steps_of(folder, text_dim=4)
    holds = np.zeros(len(steps.kind), int)
    for begin, length, text in zip(steps.text_start, steps.text_steps, steps.text, strict=True):
        holds[begin : begin + length] = int(text[0])
    wanted = np.array([0] + [1] * 20 + [2] * 20 + [0] * (len(holds) - 41))
    assert (holds != wanted).sum() <= 1, holds
    assert not ((holds == 0)[1:40]).any(), "no gap between two that follow each other"


def test_a_text_of_one_frame_is_not_lost(tmp_path):
    folder = write(tmp_path / "rec", 60.0, [("user", {})] * 12, {4: ("now", np.ones(4))})
    steps = steps_of(folder, text_dim=4)
    assert (steps.text_start.tolist(), steps.text_steps.tolist()) == ([2], [1])


@pytest.mark.parametrize("fps", [50.0, 30.0, 10.0])
def test_windows_show_the_frames_that_their_actions_follow(tmp_path, fps):
    """Step i of the recording holds the key i % 4 + 1; a window's step must hold that of the frame it shows."""
    write_recording(tmp_path / "rec", 60, fps=fps)
    index = open_index(tmp_path, KEYBOARD, text_dim=None)
    resampling = Resampling(fps, 20.0)
    n = int(index.n_frames[0])
    assert (n, index.n_recorded[0]) == (resampling.n_steps(60), 60)
    windows = WindowDataset(index, 8, SIZE)
    for start in (0, 5, n - 9, n - 4):
        batch = windows[0, start]
        valid = int(batch["valid"].sum())
        assert valid == min(8, n - 1 - start) and batch["user"][0, :valid].all()
        shown = [number_of(frame) for frame in batch["frames"][0].permute(0, 2, 3, 1).numpy()]
        assert shown[:valid] == resampling.frames(start, valid).tolist()
        assert shown[valid:] == [resampling.frames(n - 1, 1)[0]] * (8 - valid), "padded with the last one"
        for step, frame in enumerate(shown[:valid]):
            held = {KEYBOARD.groups[0].names[i] for i in batch["actions"]["keys"][0, step].tolist()}
            assert str(frame % 4 + 1) in held


def test_a_rate_that_only_the_video_states(tmp_path):
    folder = write_recording(tmp_path / "rec", 20, fps=50.0)
    message = schema.annotation.VideoAnnotation.FromString((folder / "annotation.proto").read_bytes())
    message.metadata.frames_per_second = 0.0
    (folder / "annotation.proto").write_bytes(message.SerializeToString())
    index = open_index(tmp_path, KEYBOARD)
    assert index.recorded_fps.tolist() == [50.0] and index.n_frames.tolist() == [8]


def test_rates_are_told_by_check_and_at_the_start_of_a_training(tmp_path, capsys):
    write_recordings(tmp_path / "data", 3, n=40)
    write_recordings(tmp_path / "data" / "fast", 2, n=60, fps=50.0)
    report = check(str(tmp_path / "data"), processes=1)
    assert report.status == 0 and "nothing is broken" in str(report)
    assert "2 recordings resampled from 50 to 20 fps" in capsys.readouterr().out
    assert report.frames == 40 + 41 + 42 + 24 + 25 and report.hours == report.frames / 20 / 3600

    policy = tiny.tiny_policy(text_dim=None)
    trainer = L.Trainer(max_steps=1, **tiny.QUIET)
    trainer.fit(policy, RecordingDataModule(str(tmp_path / "data"), batch_size=2, val_fraction=0.0))
    assert "rate     2 recordings resampled from 50 to 20 fps" in capsys.readouterr().out


def test_a_number_that_is_none_is_told_with_its_annotation(tmp_path):
    pad = ActionSpace.gamepad()
    actions = [("user", {"left_stick_x": 0.5}), ("user", {"left_stick_x": float("nan")}), ("user", {})]
    with pytest.raises(RecordingError, match="annotation 1: left_stick_x must be a finite number"):
        steps_of(write(tmp_path / "rec", 40.0, actions), space=pad)
