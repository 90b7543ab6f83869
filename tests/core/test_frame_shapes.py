"""Frames that are no squares: sizes, resizing, recordings and windows of them."""

from __future__ import annotations

import numpy as np
import pytest

from bczoo.core.errors import UserError
from bczoo.core.frames import height_width, named_size, resize
from bczoo.core.spec import InputSpec
from bczoo.data.dataset import WindowDataset
from bczoo.data.index import open_index
from bczoo.data.recording import RecordingWriter
from bczoo.data.video import choose_video, read_frames

HEIGHT, WIDTH = 18, 30


def halves(height: int, width: int) -> np.ndarray:
    """The upper half is red, the right half green."""
    frame = np.zeros((height, width, 3), np.uint8)
    frame[: height // 2, :, 0], frame[:, width // 2 :, 1] = 200, 200
    return frame


def test_a_size_is_one_number_or_height_and_width():
    assert height_width(64) == (64, 64) and height_width([18, 30]) == (18, 30)
    assert named_size((18, 30)) == "30 x 18" and named_size(64, "x") == "64x64"
    spec = InputSpec(None, [180, 300])  # type: ignore[arg-type]
    assert spec.shape == (180, 300) and spec.frame_size == (180, 300)
    assert InputSpec(None, (64, 64)) == InputSpec(None, 64) and InputSpec(None, 64).shape == (64, 64)
    for wrong in ([1, 2, 3], [0, 5], "64", [64.0, 64]):
        with pytest.raises(UserError, match="frame_size"):
            InputSpec(None, wrong)  # type: ignore[arg-type]


def test_pictures_are_brought_to_height_and_width():
    small = resize(halves(36, 60), (HEIGHT, WIDTH))
    assert small.shape == (HEIGHT, WIDTH, 3)
    assert small[2, 2].tolist() == [200, 0, 0] and small[-2, -2].tolist() == [0, 200, 0]
    assert resize(small, (HEIGHT, WIDTH)) is small
    boxed = resize(np.full((40, 40, 3), 255, np.uint8), (HEIGHT, WIDTH), "letterbox")
    assert (boxed[:, 6:24] == 255).all() and not boxed[:, :6].any() and not boxed[:, 24:].any()
    wide = resize(np.full((10, 60, 3), 255, np.uint8), (HEIGHT, WIDTH), "letterbox")
    assert wide[:, :, 0].any(axis=1).sum() == 5 and wide[9].all()


def test_the_video_of_the_shape_is_read():
    assert choose_video(["30x18.mp4", "18x30.mp4", "64x64.mp4"], (18, 30)) == "30x18.mp4"
    assert choose_video(["20x64.mp4", "64x64.mp4"], (18, 30)) == "64x64.mp4"  # 20 columns are too few
    assert choose_video(["64x64.mp4", "96x96.mp4"], 80) == "96x96.mp4"


def test_recordings_and_windows_of_frames_that_are_no_squares(tmp_path):
    for name, size in (("own", (HEIGHT, WIDTH)), ("square", 64)):
        with RecordingWriter(tmp_path / name, size=size, pix_fmt="yuv444p", crf=1) as writer:
            for _ in range(6):
                writer.add(halves(72, 120), user={"keys": []})
    assert (tmp_path / "own" / "30x18.mp4").is_file()
    assert read_frames(tmp_path / "own" / "30x18.mp4", 0, 2, (HEIGHT, WIDTH)).shape == (2, HEIGHT, WIDTH, 3)
    batch = WindowDataset(open_index(tmp_path, None, 20.0, None), 4, (HEIGHT, WIDTH)).__getitems__([(0, 0), (1, 0)])
    assert batch["frames"].shape == (2, 4, 3, HEIGHT, WIDTH)
    for frames in batch["frames"].float():
        assert (frames[0, :, 2, 2] - np.array([200, 0, 0])).abs().max() < 12
        assert (frames[0, :, -2, -2] - np.array([0, 200, 0])).abs().max() < 12
