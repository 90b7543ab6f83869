"""Where a video is cut, and which windows label which of its steps.

Place in the pipeline: ``bczoo data label`` shows an inverse dynamics model these windows, one after the other. A model
is surest of what lies amid its window, so windows overlap by half and only the middle of each is kept (2206.11795)::

    frames    0 1 2 3 4 5 6 7 8 9 10 11 12      a clip of 13, windows of 8, every 4
    windows   k k k k k k . .                   the first keeps its start
                      . . k k k k .  .          frames 4 .. 11
                        . . . . . k  k  .       the last ends with the clip and keeps its end
    steps     0 1 2 3 4 5 6 7 8 9 10 11         each labelled once; frame 12 has no frame after it, so no action

Shape legend: n frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from bczoo.core.frames import resize

GREY_SIZE = 64  # pixels of the frames that are compared
DEVIATIONS = 8.0  # robust ones, above the median change, from which on a change is a cut
LEAST_CUT = 25.0  # levels of 256; pictures that stand still have hardly a deviation, and a quick turn is no cut
TO_DEVIATIONS = 1.4826  # of a normal distribution, in median absolute deviations


class Window(NamedTuple):
    """Frames ``start .. stop - 1`` are shown, steps ``first .. last - 1`` are labelled."""

    start: int
    stop: int
    first: int
    last: int


def changes(frames: Iterable[np.ndarray]) -> np.ndarray:
    """Mean absolute difference (n,) of each frame (H, W, 3) from the one before, in grey levels; 0 for the first."""
    out, before = [], None
    for frame in frames:
        grey = resize(frame, GREY_SIZE, "box").astype(np.float32).mean(-1)
        out.append(0.0 if before is None else float(np.abs(grey - before).mean()))
        before = grey
    return np.array(out)


def cuts(changes: np.ndarray) -> list[int]:
    """First frames of new scenes: those that differ from the one before by far more than is usual in their clip.

    Args:
        changes: (n,), from :func:`changes`.
    """
    if len(changes) < 2:
        return []
    usual = np.median(changes[1:])
    deviation = TO_DEVIATIONS * np.median(np.abs(changes[1:] - usual))
    return np.flatnonzero(changes > max(usual + DEVIATIONS * deviation, LEAST_CUT)).tolist()


def plan(n_frames: int, window: int, cuts: Sequence[int] = ()) -> list[Window]:
    """Windows that label each step of a recording once: all but the last one before each cut, and that of the end.

    Args:
        n_frames: n.
        window: frames of a window, at least 4; shorter clips have one shorter window.
        cuts: first frames of new scenes, ascending; no window goes across one.
    """
    out = []
    for begin, end in zip([0, *cuts], [*cuts, n_frames], strict=True):
        first = begin
        for start in range(begin, max(end - window, begin) + window // 2, window // 2):
            start = max(min(start, end - window), begin)
            stop = min(start + window, end)
            last = end - 1 if stop == end else start + window // 4 + window // 2
            if last > first:
                out.append(Window(start, stop, first, last))
            first = max(first, last)
    return out
