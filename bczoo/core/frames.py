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


def resize(frame: np.ndarray, size: int, filter: str = "hamming") -> np.ndarray:
    """Bring a frame to ``size`` x ``size`` pixels; the aspect ratio is not kept.

    Args:
        frame: (H, W, 3) uint8, RGB.
        size: height and width of the result in pixels.
        filter: name of the resize filter, one of FILTERS.

    Returns:
        (size, size, 3) uint8; the frame itself if it already has this size.
    """
    if filter not in FILTERS:
        raise UserError(f"resize filter {filter!r} is not one of {', '.join(FILTERS)}")
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        what = f"{frame.dtype} array of shape {frame.shape}" if isinstance(frame, np.ndarray) else type(frame)
        raise ValueError(f"a frame is a uint8 array (height, width, 3) in RGB, got {what}")
    if frame.shape[:2] == (size, size):
        return frame
    return np.asarray(Image.fromarray(frame).resize((size, size), FILTERS[filter]))
