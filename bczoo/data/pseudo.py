"""Learning from actions that a model has read off video (``bczoo data label``), beside people's.

Place in the pipeline: the data module makes a :class:`PseudoLabels` where ``pseudo`` is true and hands it to the plan
and the dataset of training, never to those of validation and test. A guess that is sure enough is a label like any
other, with a weight of its own in the loss; one that is not is shown without an action, as a step that nobody knows of.

Shape legend: n steps of a recording, W windows.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from bczoo.core import arguments
from bczoo.data.index import Index
from bczoo.data.recording import LEARNED, PSEUDO

IDLE_S = 2.0  # of a run in which nothing is done, from which on it is a menu, a cutscene, or nobody there
MOST_TIMES = 4  # that a window may come while another comes once, before it is told


@dataclass(frozen=True)
class PseudoLabels:
    """Which guesses are learned from, and how much they count.

    Args:
        min_confidence: the least confidence of a guess that is learned from.
        weight: of such a step in the loss; a person's is 1.
        share: of the windows drawn, that are of recordings with guesses; None draws all windows alike.
        idle_share: of the guesses of a recording that are learned from, at most so many are in runs of more than two
            seconds in which nothing was done; None keeps all of them.
    """

    min_confidence: float = 0.0
    weight: float = 1.0
    share: float | None = 0.5
    idle_share: float | None = 0.1

    def __post_init__(self) -> None:
        arguments.number("pseudo_min_confidence", self.min_confidence, 0, 1)
        arguments.number("pseudo_weight", self.weight, 0)
        if self.share is not None:
            arguments.number("pseudo_share", self.share, 0, 1)
        if self.idle_share is not None:
            arguments.share("pseudo_idle_share", self.idle_share)

    def accepted(self, index: Index, recording: int) -> np.ndarray:
        """Steps (n,) by annotation whose guess is learned from."""
        ids, kind = index.steps(recording)
        sure = (kind == PSEUDO) & (index.confidence(recording) >= self.min_confidence)
        if self.idle_share is not None and index.target.space is not None:
            neutral = [i for group in index.target.space.neutral.values() for i in group]
            idle = sure & (ids == neutral).all(axis=1)
            sure &= ~_too_idle(idle, sure.sum(), IDLE_S * index.target.fps, self.idle_share)
        return sure

    def shared(self, guessed: np.ndarray, order: np.ndarray, wanted: int) -> np.ndarray:
        """Which windows (wanted,) are drawn, evenly of both kinds, so that every batch has its share.

        Windows of a kind come again where there are too few, and a part of them does not come where there are too many.

        Args:
            guessed: (W,) bool, windows of recordings with guesses.
            order: (W,) a random order of all windows.
            wanted: how many are drawn.
        """
        kinds = order[guessed[order]], order[~guessed[order]]
        if self.share is None or not all(map(len, kinds)):
            return np.resize(order, wanted)
        turns = np.floor(np.arange(wanted + 1) * self.share + 1e-9)  # sums of fractions may fall just short
        of_guess = turns[1:] > turns[:-1]
        drawn = np.empty(wanted, order.dtype)
        for mine, kind in zip((of_guess, ~of_guess), kinds, strict=True):
            drawn[mine] = np.resize(kind, mine.sum())
        return drawn

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


def _too_idle(idle: np.ndarray, n_sure: int, longest: float, share: float) -> np.ndarray:
    """The ends (n,) of long idle runs that are over their share; every run loses as much of its length.

    Args:
        idle: (n,) bool, steps in which nothing was done.
        n_sure: steps that would be learned from.
        longest: steps of a run that is not long.
        share: of the steps that are left, that may be in long runs.
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[False], idle, [False]])))
    runs = edges.reshape(-1, 2)
    runs = runs[runs[:, 1] - runs[:, 0] > longest]
    of_long = int((runs[:, 1] - runs[:, 0]).sum())
    allowed = (n_sure - of_long) * share / (1 - share)
    over = np.zeros_like(idle)
    if of_long > allowed:
        for begin, end in runs:
            over[begin + int((end - begin) * allowed / of_long) : end] = True
    return over


def of_guesses(index: Index, recording: np.ndarray) -> np.ndarray:
    """Which windows (W,) are of recordings with guesses, by the number of their recording."""
    return np.isin(recording, [number for number in np.unique(recording) if index.has_guesses(int(number))])


def draws(guessed: np.ndarray, share: float | None) -> str | None:
    """How often windows of both kinds come in an epoch, in a line; None where all come once.

    Warns where those with known actions come so often that they may be learned by heart.

    Args:
        guessed: (W,) bool, windows of recordings with guesses.
        share: of these among the windows drawn.
    """
    n, count = len(guessed), int(guessed.sum())
    if share is None or count in (0, n):
        return None
    of_known, of_guess = (1 - share) * n / (n - count), share * n / count
    if of_known > MOST_TIMES:
        warnings.warn(
            f"with data.pseudo_share {share:g} each of the {n - count:,} windows with known actions comes "
            f"{of_known:.1f} times an epoch, and may be learned by heart; record more, raise data.pseudo_share, or set "
            "it to null",
            stacklevel=2,
        )
    return (
        f"windows  {share:.0%} of a batch from recordings that were read off: in an epoch each of them comes "
        f"{of_guess:.1f} times, each of the others {of_known:.1f} times"
    )


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
