"""The one resize of the whole system: recording, training and play bring frames to the policy's size here.

In: a frame as the game or the video gives it. Out: the frame that the model sees, mostly a square. A policy that is
trained on one filter and played with another sees pictures it never saw (MODEL: "same resize filter in
training and in play"), so no other module resizes frames.

Shape legend: H, W height and width in pixels, C = 3 colours (RGB).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from bczoo.core.errors import UserError

# All of Pillow's widen their support when shrinking (anti-aliased).
FILTERS = {name: Image.Resampling[name.upper()] for name in ("hamming", "bilinear", "bicubic", "lanczos", "box")}
LETTERBOX = "letterbox"  # the whole picture in its own proportions, by hamming, between black bars
RESIZES = (*FILTERS, LETTERBOX)


def height_width(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width in pixels of frames of a size: that of a square, or both."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width


def named_size(size: int | Sequence[int], by: str = " x ") -> str:
    """The size of frames in words, width first; with ``x`` between them as videos are named."""
    height, width = height_width(size)
    return f"{width}{by}{height}"


def check_filter(filter: str) -> None:
    """Raise a UserError if there is no filter of this name."""
    if filter not in RESIZES:
        raise UserError(f"resize filter {filter!r} is not one of {', '.join(RESIZES)}")


def resize(frame: np.ndarray, size: int | Sequence[int], filter: str = "hamming") -> np.ndarray:
    """Bring a frame to a size: squashed or stretched to it, or between black bars.

    Args:
        frame: (H, W, 3) uint8, RGB.
        size: height and width of the result in pixels, one number for a square.
        filter: name of a filter, one of FILTERS, which squashes; or ``letterbox``, which keeps the proportions.

    Returns:
        (height, width, 3) uint8; the frame itself if it already has this size.
    """
    check_filter(filter)
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        what = f"{frame.dtype} array of shape {frame.shape}" if isinstance(frame, np.ndarray) else type(frame)
        raise ValueError(f"a frame is a uint8 array (height, width, 3) in RGB, got {what}")
    wanted = height_width(size)
    if frame.shape[:2] == wanted:
        return frame
    picture = Image.fromarray(frame)
    if filter != LETTERBOX:
        return np.asarray(picture.resize(wanted[::-1], FILTERS[filter]))
    # the side that fills the result goes first: its scale is the smaller one
    whole, side = min(zip(wanted, frame.shape[:2], strict=True), key=lambda pair: pair[0] / pair[1])
    height, width = (max(1, round(whole * length / side)) for length in frame.shape[:2])
    boxed = np.zeros((*wanted, 3), np.uint8)
    top, left = (wanted[0] - height) // 2, (wanted[1] - width) // 2
    boxed[top : top + height, left : left + width] = np.asarray(picture.resize((width, height), FILTERS["hamming"]))
    return boxed
