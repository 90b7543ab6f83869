"""Recordings of another rate, brought to the policy's steps.

Place in the pipeline: :func:`bczoo.data.recording.parse_steps` combines actions here, so that the index holds steps at
the policy's rate whatever was recorded; `dataset.py` asks the index which frame of the video belongs to a step.

Step j is shown the frame that was recorded nearest to its time, the earlier of two. Its action is all that was done
after that frame was seen and before the next step's frame, so no step is shown what its own action led to:

    recorded at 50     frames       0  1  2  3  4  5  6  7  8  9 10
    policy at 20       steps        0     1        2     3        4       shown frames 0, 2, 5, 7, 10
                       annotations   1..2    3..5   6..7    8..10         action of steps 0, 1, 2, 3

* Whose action it is: the user's if all parts are; the policy's own if any part is; unknown if any part is unknown.
* Keys, buttons and switches are held if any part holds them, as if recorded at this rate: a short press stays a press.
* Motion (mouse, wheel) is summed; sticks and triggers take the mean.
* Where the recording is slower than the policy, a frame is shown in several steps; keys stay held in all of them, and
  motion is spread over them, in whole pixels that add up.

Shape legend: N steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from bczoo.core.actions import ActionGroup, BinnedGroup

SAME = 1e-3  # frames per second by which equal rates differ, since recordings hold float32
SLOWER = 10  # times that a recording may be slower than the policy
FASTEST = 1000.0  # frames per second of a recording
MOTION = ("mouse_dx", "mouse_dy", "scroll_dx", "scroll_dy")  # groups of distances; other numbers are positions
DENOMINATOR = 10_000  # of the ratio of two rates, which tells 29.97 from 30

Parts = Sequence[tuple[Any, ...]]  # values of every group, of annotations in a row


@dataclass(frozen=True)
class Resampling:
    """From a recording's frames to a policy's steps.

    Args:
        recorded: frames per second of the recording.
        wanted: steps per second of the policy.
    """

    recorded: float
    wanted: float

    @classmethod
    def between(cls, recorded: float, wanted: float) -> Resampling | None:
        """None where both rates are the same.

        Raises:
            ValueError: the recorded rate is none, or too far from the wanted one; says why.
        """
        if abs(recorded - wanted) <= SAME:
            return None
        slowest = wanted / SLOWER
        if not slowest <= recorded <= FASTEST:  # nor is NaN a rate
            raise ValueError(
                f"recorded at {recorded:g} frames per second, wanted are {wanted:g}, to which only {slowest:g} to "
                f"{FASTEST:g} can be resampled"
            )
        return cls(recorded, wanted)

    @property
    def ratio(self) -> Fraction:
        """Recorded frames per step."""
        return Fraction(self.recorded / self.wanted).limit_denominator(DENOMINATOR)

    def frames(self, first: int, count: int) -> np.ndarray:
        """The recorded frames that steps ``first .. first + count - 1`` show, (count,) int64, ascending."""
        p, q = self.ratio.as_integer_ratio()
        steps = np.arange(first, first + count, dtype=np.int64)
        return -((q - 2 * p * steps) // (2 * q))  # ceil(step * p / q - 1 / 2)

    def n_steps(self, n_frames: int) -> int:
        """Steps that a recording of so many frames gives, the last of which has no action, as the last frame has none.

        A frame that is shown in several steps is shown once at the end.
        """
        p, q = self.ratio.as_integer_ratio()
        if p >= q:
            return q * (2 * n_frames - 1) // (2 * p) + 1
        return 1 if n_frames < 2 else q * (2 * n_frames - 3) // (2 * p) + 2

    def spans(self, start: np.ndarray, length: np.ndarray, n_steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Where instructions hold: (E,) first annotation and (E,) number of annotations, before and after resampling.

        One that holds beyond the end of the recording still does.
        """
        shown = self.frames(0, n_steps)
        # annotation a of the steps ends with annotation last[a] of the recording
        last = np.maximum(shown, np.concatenate(([0], shown[:-1] + 1)))
        first = np.searchsorted(last, start)
        end = np.searchsorted(last, start + length)
        beyond = np.maximum(n_steps - first, (length / self.recorded * self.wanted).astype(np.int64))
        steps = np.where(start + length > last[-1], beyond, end - first)
        return first, np.where(length > 0, np.maximum(steps, 1), 0)


def combine(groups: Sequence[ActionGroup], parts: Parts) -> tuple[Any, ...]:
    """One step's values from those of several annotations in a row."""
    if len(parts) == 1:
        return parts[0]
    return tuple(_combine(group, column) for group, column in zip(groups, zip(*parts, strict=True), strict=True))


def _combine(group: ActionGroup, column: tuple[Any, ...]) -> Any:
    if not isinstance(group, BinnedGroup):
        return tuple(dict.fromkeys(name for held in column for name in held))
    return sum(column) if group.name in MOTION else sum(column) / len(column)


def share(groups: Sequence[ActionGroup], values: tuple[Any, ...], part: int, of: int) -> tuple[Any, ...]:
    """What one of several steps takes of an annotation's values."""
    if of == 1:
        return values
    return tuple(
        round(v * (part + 1) / of) - round(v * part / of) if group.name in MOTION else v
        for group, v in zip(groups, values, strict=True)
    )
