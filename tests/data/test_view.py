"""``bczoo data view``: what cannot be drawn is told in one line before any work, all else is drawn."""

from __future__ import annotations

import av
import numpy as np
import pytest
from synthetic import SIZE, numbered, write_recording

from bczoo.cli import main
from bczoo.data.recording import RecordingWriter
from bczoo.data.schema import annotation as pb

VIDEO = f"{SIZE}x{SIZE}.mp4"


@pytest.fixture
def recording(tmp_path):
    return write_recording(tmp_path / "rec", 12)


def change(recording, **metadata):
    message = pb.VideoAnnotation.FromString((recording / "annotation.proto").read_bytes())
    for name, value in metadata.items():
        setattr(message.metadata, name, value)
    (recording / "annotation.proto").write_bytes(message.SerializeToString())
    return message


def refused(recording, capsys, out="clip.mp4"):
    """The one line that tells why; nothing is written."""
    target = recording.parent / out
    assert main(["data", "view", str(recording), "--out", str(target)]) == 1
    assert not target.is_file()
    (line,) = capsys.readouterr().err.splitlines()
    return line


def frames_of(path):
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_unknown_codec(recording, capsys):
    data = (recording / VIDEO).read_bytes()
    (recording / VIDEO).write_bytes(data.replace(b"avc1", b"zzzz"))
    assert "the video has a codec that is not known" in refused(recording, capsys)


@pytest.mark.parametrize("fps", [float("nan"), float("inf"), -20.0, 1e30, 1e-30])
def test_rates_that_no_video_can_show(recording, capsys, fps):
    change(recording, frames_per_second=fps)
    assert f"recorded at {fps:g} frames per second, which no video can show" in refused(recording, capsys)


def test_no_stated_rate_is_the_usual_one(recording, tmp_path):
    change(recording, frames_per_second=0.0)
    assert main(["data", "view", str(recording), "--out", str(tmp_path / "clip.mp4")]) == 0
    assert frames_of(tmp_path / "clip.mp4") == 12


@pytest.mark.parametrize(
    ("out", "reason"),
    [
        (".", "is a folder; name a file in it"),
        ("clip", "does not end like a video file: .mp4"),
        ("clip.exe", "does not end like a video file: .mp4"),
        ("nowhere/clip.mp4", "there is no folder"),
    ],
)
def test_places_where_no_video_can_be_written(recording, capsys, out, reason):
    assert reason in refused(recording, capsys, out)


def test_numbers_that_are_none(tmp_path, capsys):
    with RecordingWriter(tmp_path / "pad", size=SIZE) as writer:
        writer.add(numbered(0), user={"left_stick_y": float("nan")})
    assert "annotation 1: left_stick_y is nan" in refused(tmp_path / "pad", capsys)
    with RecordingWriter(tmp_path / "text", size=SIZE) as writer:
        writer.add(numbered(0), user={}, text="go")
    message = change(tmp_path / "text")
    message.frame_annotations[1].frame_text_annotation[0].duration = float("inf")
    (tmp_path / "text" / "annotation.proto").write_bytes(message.SerializeToString())
    assert "annotation 1: text duration of inf seconds" in refused(tmp_path / "text", capsys)


def test_whatever_is_held_or_said_is_drawn(tmp_path):
    """Hundreds of keys, long names, several lines, sticks beyond their reach."""
    keys = [f"key{i}\nof a very long name indeed" * 9 for i in range(300)]
    with RecordingWriter(tmp_path / "keys", size=SIZE) as writer:
        for count in (300, 40, 5, 1):
            writer.add(numbered(0), user={"keys": keys[:count]}, text="go\nthere " * 5000)
    with RecordingWriter(tmp_path / "pad", size=SIZE) as writer:
        writer.add(numbered(0), user={"left_stick_x": 1e30, "right_stick_y": float(np.finfo(np.float32).min)})
    for name, count in (("keys", 5), ("pad", 2)):
        assert main(["data", "view", str(tmp_path / name), "--out", str(tmp_path / "clip.mp4")]) == 0
        assert frames_of(tmp_path / "clip.mp4") == count
