"""What is recorded is what is read."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from synthetic import SIZE, number_of, numbered, write_recording

from bczoo.core.actions import ActionSpace
from bczoo.core.errors import UserError
from bczoo.data.errors import RecordingError
from bczoo.data.recording import (
    SYSTEM,
    UNKNOWN,
    USER,
    RecordingExistsError,
    RecordingWriter,
    parse_steps,
    read_annotation,
)
from bczoo.data.video import probe, read_frames

KEYBOARD = ActionSpace.keyboard_mouse()


def steps_of(folder, space=KEYBOARD, fps=20.0, text_dim=4):
    return parse_steps(read_annotation(folder), space, fps, text_dim, folder)


def test_action_goes_to_the_annotation_after_its_frame(tmp_path):
    with RecordingWriter(tmp_path / "rec", size=SIZE, env="doom", env_subtype="corridor", user="me") as writer:
        writer.add(numbered(0), user={"keys": ["w"], "mouse_buttons": ["0"], "mouse_dx": 3, "mouse_dy": -2})
        writer.add(numbered(1), system={"keys": ["s"]})
        writer.add(numbered(2), user={"keys": ["a"]}, system={"keys": ["d"]})
        writer.add(numbered(3))
    steps = steps_of(tmp_path / "rec")
    assert steps.kind.tolist() == [UNKNOWN, USER, SYSTEM, SYSTEM]
    expected = [
        {},
        {"keys": ["w"], "mouse_buttons": ["0"], "mouse_dx": 3, "mouse_dy": -2},
        {"keys": ["s"]},
        {"keys": ["d"]},  # both known: the policy's counts
    ]
    for row, values in zip(steps.ids.tolist(), expected, strict=True):
        assert row == [i for ids in KEYBOARD.encode(**values).values() for i in ids]
    video = tmp_path / "rec" / f"{SIZE}x{SIZE}.mp4"
    assert probe(video) == (4, SIZE, SIZE, 20.0)
    assert [number_of(f) for f in read_frames(video, 0, 4, SIZE)] == [0, 1, 2, 3]
    metadata = read_annotation(tmp_path / "rec").metadata
    assert (metadata.id, metadata.frames_per_second, metadata.user) == ("rec", 20.0, "me")
    assert (metadata.env.env, metadata.env.env_subtype) == ("doom", "corridor")
    assert metadata.timestamp > 1_600_000_000


def test_last_action_is_kept_by_repeating_the_last_frame(tmp_path):
    with RecordingWriter(tmp_path / "rec", size=SIZE) as writer:
        for i in range(5):
            writer.add(numbered(i), user={"keys": [str(i % 4 + 1)]})
    assert steps_of(tmp_path / "rec").ids[:, 0].tolist() == [0, 2, 3, 4, 5, 2]  # ids of no key, 1, 2, 3, 4, 1
    frames = read_frames(tmp_path / "rec" / f"{SIZE}x{SIZE}.mp4", 0, 6, SIZE)
    assert [number_of(f) for f in frames] == [0, 1, 2, 3, 4, 4]


def test_frames_of_any_size_are_stored_at_one(tmp_path):
    with RecordingWriter(tmp_path / "rec", size=SIZE) as writer:
        writer.add(numbered(5, 96))
        writer.add(numbered(6, 64))
    assert os.listdir(tmp_path) == ["rec"]
    assert sorted(os.listdir(tmp_path / "rec")) == [f"{SIZE}x{SIZE}.mp4", "annotation.proto"]
    frames = read_frames(tmp_path / "rec" / f"{SIZE}x{SIZE}.mp4", 0, 2, SIZE)
    assert [number_of(f) for f in frames] == [5, 6]


def test_nothing_remains_of_a_recording_that_failed(tmp_path):
    with (
        pytest.raises(RuntimeError, match="game crashed"),
        RecordingWriter(tmp_path / "rec", size=SIZE) as writer,
    ):
        writer.add(numbered(0), user={"keys": []})
        assert not (tmp_path / "rec").exists()  # nor is it there before it is whole
        raise RuntimeError("game crashed")
    with (
        pytest.raises(UserError, match="'joystick'"),
        RecordingWriter(tmp_path / "rec", size=SIZE) as writer,
    ):
        writer.add(numbered(0), user={"joystick": 1})
    with pytest.raises(UserError, match="nothing was recorded"), RecordingWriter(tmp_path / "rec"):
        pass
    assert os.listdir(tmp_path) == []


def test_recordings_are_not_overwritten(tmp_path):
    write_recording(tmp_path / "rec", 3)
    before = (tmp_path / "rec" / "annotation.proto").read_bytes()
    with pytest.raises(FileExistsError, match="never overwritten"):
        RecordingWriter(tmp_path / "rec")
    assert (tmp_path / "rec" / "annotation.proto").read_bytes() == before


def test_the_faster_of_two_writers_wins(tmp_path):
    writers = [RecordingWriter(tmp_path / "rec", size=SIZE, user=user) for user in ("slow", "fast")]
    for writer in writers:
        writer.add(numbered(0), user={"keys": []})
    writers[1].close()
    with pytest.raises(RecordingExistsError, match="never overwritten"):
        writers[0].close()
    assert os.listdir(tmp_path) == ["rec"]
    assert read_annotation(tmp_path / "rec").metadata.user == "fast"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits the size of files")
@pytest.mark.parametrize("frames", [1, 60])
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, frames):
    """The first bytes leave the encoder with the last frame, or in the middle."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    rng = np.random.default_rng(0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))  # which fails as a full disk does
    try:
        with (
            pytest.raises(UserError, match=r"rec cannot be written \(file too large\); make room"),
            RecordingWriter(tmp_path / "rec", size=256) as writer,
        ):
            for _ in range(frames):
                writer.add(rng.integers(0, 256, (256, 256, 3), np.uint8), user={"keys": []})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == []
    if Path("/proc/self/fd").exists():
        assert not [fd for fd in Path("/proc/self/fd").iterdir() if str(tmp_path) in str(fd.resolve())]


def test_gamepad(tmp_path):
    values = {
        "buttons": ["south", "left_bumper"],
        "left_stick_x": -1.0,
        "left_stick_y": 0.5,
        "right_stick_x": 0.25,
        "left_stick_pressed": True,
        "right_trigger": 0.75,
    }
    with RecordingWriter(tmp_path / "rec", size=SIZE) as writer:
        writer.add(numbered(0), user=values)
    space = ActionSpace.gamepad()
    known = {k: v for k, v in values.items() if k in {g.name for g in space.groups}}
    steps = steps_of(tmp_path / "rec", space)
    assert steps.ids[1].tolist() == [i for ids in space.encode(**known).values() for i in ids]
    pad = read_annotation(tmp_path / "rec").frame_annotations[1].user_action.game_pad
    assert pad.left_stick.pressed
    assert pad.right_trigger == 0.75


def test_action_groups_that_no_recording_holds_are_named(tmp_path):
    write_recording(tmp_path / "rec", 3)
    groups = [{"kind": "switch", "name": "joystick", "names": ["fire"]}]
    space = ActionSpace.from_dict({"name": "odd", "groups": groups})
    with pytest.raises(UserError, match=r"'odd' has groups that recordings do not hold: .'joystick'"):
        steps_of(tmp_path / "rec", space)


def test_unknown_names_are_counted_by_name(tmp_path):
    with RecordingWriter(tmp_path / "rec", size=SIZE) as writer:
        for i in range(4):
            writer.add(numbered(i), user={"keys": ["w", "F12"] if i < 3 else ["w"], "mouse_buttons": ["7"]})
    steps = steps_of(tmp_path / "rec")
    assert steps.unknown == {"keys:F12": 3, "mouse_buttons:7": 4}
    assert steps.ids[1, :2].tolist() == [11, 0]
    more = steps_of(tmp_path / "rec", ActionSpace.keyboard_mouse(extra_keys=["F12"]))
    assert more.unknown == {"mouse_buttons:7": 4}
    assert more.ids[1, :2].tolist() == [11, 20]


def test_texts_hold_for_the_steps_they_were_given_in(tmp_path):
    said = [None, "go", "go", "go", "stop", None, None, "go"]
    with RecordingWriter(tmp_path / "rec", size=SIZE, fps=20) as writer:
        for i, text in enumerate(said):
            embedding = None if text is None else np.full(4, len(text), np.float32)
            writer.add(numbered(i), user={}, text=text, text_embedding=embedding)
    steps = steps_of(tmp_path / "rec")
    assert steps.text_start.tolist() == [2, 5, 8]  # annotation i + 1 for frame i
    assert steps.text_steps.tolist() == [3, 1, 1]
    assert steps.text[:, 0].tolist() == [2, 4, 2]
    assert steps_of(tmp_path / "rec", text_dim=None).text.shape == (0, 0)
    with pytest.raises(RecordingError, match="text embedding of 4 values, wanted are 8"):
        steps_of(tmp_path / "rec", text_dim=8)


def test_text_durations_survive_rounding(tmp_path):
    """Readers take int(duration * fps) of a float32, which makes 6 steps of 7 / 20 seconds."""
    lengths = list(range(1, 16))
    with RecordingWriter(tmp_path / "rec", size=SIZE) as writer:
        for length in lengths:
            for _ in range(length):
                writer.add(numbered(0), user={}, text=f"go {length}", text_embedding=np.ones(4))
    assert steps_of(tmp_path / "rec").text_steps.tolist() == lengths


def test_text_without_embedding_is_counted(tmp_path):
    with RecordingWriter(tmp_path / "rec", size=SIZE) as writer:
        writer.add(numbered(0), user={}, text="go")
    steps = steps_of(tmp_path / "rec")
    assert (len(steps.text), steps.without_embedding) == (0, 1)


def test_a_rate_too_far_away_is_refused(tmp_path):
    write_recording(tmp_path / "rec", 3, fps=1.9)
    with pytest.raises(RecordingError, match=r"recorded at 1\.9 frames per second, wanted are 20, .* only 2 to 1000"):
        steps_of(tmp_path / "rec")
    assert len(steps_of(tmp_path / "rec", fps=1.9).kind) == 3


def test_a_stick_that_is_no_number_is_an_error_with_its_place(tmp_path):
    with RecordingWriter(tmp_path / "rec", size=SIZE) as writer:
        writer.add(numbered(0), user={"left_stick_x": float("nan")})
    with pytest.raises(RecordingError, match="annotation 1: left_stick_x must be a finite number"):
        steps_of(tmp_path / "rec", ActionSpace.gamepad())


def test_annotation_that_is_cut_off_empty_or_missing(tmp_path):
    folder = write_recording(tmp_path / "rec", 10)
    file = folder / "annotation.proto"
    data = file.read_bytes()
    for content, reason in ((data[:-3], "cut off"), (b"", "no frame annotations"), (None, "cannot be read")):
        file.unlink() if content is None else file.write_bytes(content)
        with pytest.raises(RecordingError, match=reason):
            read_annotation(folder)


def test_a_folder_whose_name_is_no_text(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/game-\xff"))
    with RecordingWriter(folder, size=SIZE) as writer:
        writer.add(numbered(1), user={"keys": ["w"]})
    assert read_annotation(folder).metadata.id == "game-\\xff"
