"""The one resize of the whole system: recording, training and play bring frames to the policy's size here.

In: a frame as the game or the video gives it. Out: the square frame that the policy sees. A policy that is
trained on one filter and played with another sees pictures it never saw (MODEL: "same resize filter in
training and in play"), so no other module resizes frames.

Shape legend: H, W height and width in pixels, C = 3 colours (RGB).
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from bczoo.core.errors import UserError

# All of Pillow's widen their support when shrinking (anti-aliased).
FILTERS = {name: Image.Resampling[name.upper()] for name in ("hamming", "bilinear", "bicubic", "lanczos", "box")}
LETTERBOX = "letterbox"  # the whole picture in its own proportions, by hamming, between black bars
RESIZES = (*FILTERS, LETTERBOX)


def check_filter(filter: str) -> None:
    """Raise a UserError if there is no filter of this name."""
    if filter not in RESIZES:
        raise UserError(f"resize filter {filter!r} is not one of {', '.join(RESIZES)}")


def resize(frame: np.ndarray, size: int, filter: str = "hamming") -> np.ndarray:
    """Bring a frame to ``size`` x ``size`` pixels: squashed into the square, or between black bars.

    Args:
        frame: (H, W, 3) uint8, RGB.
        size: height and width of the result in pixels.
        filter: name of a filter, one of FILTERS, which squashes; or ``letterbox``, which keeps the proportions.

    Returns:
        (size, size, 3) uint8; the frame itself if it already has this size.
    """
    check_filter(filter)
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        what = f"{frame.dtype} array of shape {frame.shape}" if isinstance(frame, np.ndarray) else type(frame)
        raise ValueError(f"a frame is a uint8 array (height, width, 3) in RGB, got {what}")
    if frame.shape[:2] == (size, size):
        return frame
    picture = Image.fromarray(frame)
    if filter != LETTERBOX:
        return np.asarray(picture.resize((size, size), FILTERS[filter]))
    larger = max(frame.shape[:2])
    height, width = (max(1, round(size * side / larger)) for side in frame.shape[:2])
    boxed = np.zeros((size, size, 3), np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    boxed[top : top + height, left : left + width] = np.asarray(picture.resize((width, height), FILTERS["hamming"]))
    return boxed
