"""Pixels of decoded frames: planes hold what (H, W, 3) holds, whatever the kind of frame."""

from __future__ import annotations

import av
import numpy as np
import pytest

from bczoo.data import colour
from bczoo.data.colour import ToRGB

KINDS = ["yuv420p", "yuvj420p", "yuv422p", "yuv444p", "gbrp", "gray", "nv12", "yuv420p10le"]


@pytest.mark.parametrize("size", [(64, 48), (50, 38), (322, 182)])
@pytest.mark.parametrize("kind", KINDS)
def test_planes_are_the_pixels(kind, size):
    frame = av.VideoFrame(*size, kind)
    rng = np.random.default_rng(1)
    for plane in frame.planes:
        plane.update(rng.bytes(plane.buffer_size))
    expected = frame.to_ndarray(format="rgb24")  # as FFmpeg converts it, in several threads
    planes = np.empty((3, size[1], size[0]), np.uint8)
    ToRGB().planes(frame, planes)
    assert np.array_equal(planes.transpose(1, 2, 0), expected)
    assert np.array_equal(ToRGB().pixels(frame), expected)


def test_planes_that_do_not_agree_are_not_taken(monkeypatch):
    monkeypatch.setattr(colour, "_agree", lambda *kind: False)
    monkeypatch.setattr(colour, "GREEN_BLUE_RED", ())
    frame = av.VideoFrame.from_ndarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3), format="rgb24")
    planes = np.zeros((3, 4, 4), np.uint8)
    ToRGB().planes(frame, planes)
    assert np.array_equal(planes.transpose(1, 2, 0), frame.to_ndarray())


@pytest.mark.parametrize("kind", ["yuv420p", "gbrp"])  # of recordings
def test_recordings_are_converted_at_once(kind):
    assert colour._agree(kind, 192, 192, 2, 0)
