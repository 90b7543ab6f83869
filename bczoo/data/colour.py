"""Decoded video frames as RGB pixels, in the order of memory that the reader wants.

Place in the pipeline: `video.py` decodes frames and turns those that are wanted into pixels here. A policy takes planes
(3, H, W). FFmpeg can write planes at once, which takes a third of the time of writing (H, W, 3) and taking the colours
apart, but it promises nowhere that both ways give the same values. So every kind of frame is tried once on noise, and
planes are written at once only where they agree to the bit. They do for yuv420p and RGB, which recordings hold.

Shape legend: H, W height and width in pixels; frames are uint8, RGB.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

GREEN_BLUE_RED = (1, 2, 0)  # the colour of every plane of FFmpeg's gbrp


class ToRGB:
    """Converts the frames of one video; FFmpeg sets up its conversion once, and runs it in this thread.

    Left to itself, it starts a thread per processor core for every video, which takes longer than a small frame.
    """

    def __init__(self) -> None:
        self._pixels, self._planes = VideoReformatter(), VideoReformatter()

    def pixels(self, frame: av.VideoFrame) -> np.ndarray:
        """A frame as (H, W, 3)."""
        return self._pixels.reformat(frame, format="rgb24", threads=1).to_ndarray()

    def planes(self, frame: av.VideoFrame, out: np.ndarray) -> None:
        """Write a frame to ``out``, (3, H, W)."""
        if not _agree(frame.format.name, frame.width, frame.height, frame.colorspace, frame.color_range):
            out[:] = self.pixels(frame).transpose(2, 0, 1)
            return
        for colour, plane in zip(
            GREEN_BLUE_RED, self._planes.reformat(frame, format="gbrp", threads=1).planes, strict=True
        ):
            data: Any = plane  # a buffer, which its type does not say
            lines = np.frombuffer(data, np.uint8).reshape(-1, plane.line_size)  # lines are padded
            out[colour] = lines[: frame.height, : frame.width]


@lru_cache
def _agree(pix_fmt: str, width: int, height: int, colorspace: int, color_range: int) -> bool:
    """Whether frames of a kind have the same values written as planes and as (H, W, 3)."""
    rng = np.random.default_rng(0)
    noise = av.VideoFrame(width, height, pix_fmt)
    for plane in noise.planes:
        plane.update(rng.bytes(plane.buffer_size))
    noise.colorspace, noise.color_range = colorspace, color_range
    return np.array_equal(noise.to_ndarray(format="rgb24"), noise.to_ndarray(format="gbrp"))
