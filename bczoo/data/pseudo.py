"""Learning from actions that a model has read off video (``bczoo data label``), beside people's.

Place in the pipeline: the data module makes a :class:`PseudoLabels` where ``pseudo`` is true and hands it to the plan
and the dataset of training, never to those of validation and test. A guess that is sure enough is a label like any
other, with a weight of its own in the loss; one that is not is shown without an action, as a step that nobody knows of.

Shape legend: n steps of a recording, W windows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bczoo.core import arguments
from bczoo.data.index import Index
from bczoo.data.recording import LEARNED, PSEUDO


@dataclass(frozen=True)
class PseudoLabels:
    """Which guesses are learned from, and how much they count.

    Args:
        min_confidence: the least confidence of a guess that is learned from.
        weight: of such a step in the loss; a person's is 1.
    """

    min_confidence: float = 0.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        arguments.number("pseudo_min_confidence", self.min_confidence, 0, 1)
        arguments.number("pseudo_weight", self.weight, 0)

    def accepted(self, index: Index, recording: int) -> np.ndarray:
        """Steps (n,) by annotation whose guess is learned from."""
        return (index.steps(recording)[1] == PSEUDO) & (index.confidence(recording) >= self.min_confidence)

    def half_kept(self, index: Index, recording: np.ndarray, start: np.ndarray, window: int) -> np.ndarray:
        """Which windows (W,) have at least half of their steps learned from, in recordings with guesses.

        The others' frames would cost as much as any and teach little. Recordings without guesses keep all windows.
        """
        keep = np.ones(len(start), bool)
        for number in np.unique(recording):
            if not index.has_guesses(int(number)):
                continue
            known = np.isin(index.steps(int(number))[1], LEARNED) | self.accepted(index, int(number))
            sums = np.concatenate([[0], np.cumsum(known)])
            of = np.flatnonzero(recording == number)
            first = start[of] + 1  # annotation of the window's first step
            last = np.minimum(first + window, len(known))
            keep[of] = 2 * (sums[last] - sums[first]) >= last - first
        return keep


def hours(index: Index, recordings: np.ndarray, pseudo: PseudoLabels | None) -> str | None:
    """How much of some recordings was labelled by whom, in a line; None where nobody guessed."""
    guessed = [int(r) for r in recordings if index.has_guesses(int(r))]
    if not guessed:
        return None
    known = sum(int(np.isin(index.steps(int(r))[1], LEARNED).sum()) for r in recordings)
    steps = sum(int((index.steps(r)[1] == PSEUDO).sum()) for r in guessed)
    per_hour = index.target.fps * 3600
    line = f"labels   {known / per_hour:.2f} h known, {steps / per_hour:.2f} h read off video, "
    if pseudo is None:
        return f"{line}which are not learned from (data.pseudo true learns from them)"
    accepted = sum(int(pseudo.accepted(index, r).sum()) for r in guessed)
    return (
        f"{line}of which {accepted / per_hour:.2f} h are sure enough (from {pseudo.min_confidence:g} on) and count "
        f"{pseudo.weight:g} each"
    )
