"""Training curves as they enter a fit: cleaned, smoothed, resampled.

Place in the pipeline: :mod:`bczoo.scaling.points` reads curves of runs or of a table, all methods of
:mod:`bczoo.scaling` take them through :func:`prepare`. What is taken out is counted and told.

Shape legend: P points.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from bczoo.core.errors import UserError
from bczoo.scaling.law import FLOPS_PER_PARAMETER

POINTS = 100  # of a resampled curve
WINDOW = 0.05  # of the tokens, to each side, that a smoothed point is the mean over
NEIGHBOURS = 11  # points of a local median
SPREAD = 101  # points that say how far from it is usual
DEVIATIONS = 5.0  # robust, of an outlier from its local median
LEAST_OUTLIER = 0.01  # of the loss; nearer points are none, however smooth the curve
DIVERGED = 1.1  # times the least loss so far, above which a curve ends for good


class Curve(NamedTuple):
    """Losses of one training.

    Attributes:
        params: N of the model.
        tokens: (P,) inputs seen.
        loss: (P,) in nats, or another measure.
        flops: (P,) operations; 6 N D if left out.
        name: of the run.
    """

    params: float
    tokens: np.ndarray
    loss: np.ndarray
    flops: np.ndarray | None = None
    name: str = ""

    @property
    def compute(self) -> np.ndarray:
        """(P,) C, as it was given or 6 N D."""
        return FLOPS_PER_PARAMETER * self.params * self.tokens if self.flops is None else self.flops

    def only(self, chosen: np.ndarray) -> Curve:
        """The points that an index or a mask chooses."""
        flops = None if self.flops is None else self.flops[chosen]
        return self._replace(tokens=self.tokens[chosen], loss=self.loss[chosen], flops=flops)


def as_curve(run: Sequence[Any], number: int = 0) -> Curve:
    """A curve from ``(params, tokens, loss)``, maybe with flops and a name behind; params may be an array of one value.

    Raises:
        UserError: the arrays do not belong together.
    """
    given = Curve(*run)
    name = given.name or f"run {number}"
    sizes = np.unique(np.asarray(given.params, dtype=float))
    tokens, loss = (np.asarray(x, dtype=float).ravel() for x in (given.tokens, given.loss))
    flops = None if given.flops is None else np.asarray(given.flops, dtype=float).ravel()
    if len(sizes) != 1 or not sizes[0] > 0:
        raise UserError(f"{name} has the sizes {', '.join(f'{s:.4g}' for s in sizes[:5])}; a run has one, above 0")
    if len(tokens) != len(loss) or (flops is not None and len(flops) != len(loss)):
        raise UserError(f"{name}: tokens, loss and flops have different lengths")
    if (tokens <= 0).any() or (flops is not None and (flops <= 0).any()):
        raise UserError(f"{name}: tokens and flops must be above 0; leave out what was logged before the first step")
    return Curve(float(sizes[0]), tokens, loss, flops, name)


def prepare(run: Curve, skip: float = 0.0) -> tuple[Curve, list[str]]:
    """A curve in the order of its tokens, without what is no number, outliers and a diverged end, smoothed, of at most
    :data:`POINTS` points even in ln D; and what was taken out.

    A smoothed loss is the mean over [0.95, 1.05] times its tokens, at the mean tokens of that window; an exponential
    average would lag and move curves to the right.

    Args:
        run: with at least one point that is a number.
        skip: share of the tokens at the beginning (warm-up) that never enters a fit.
    """
    dropped = []

    def take(curve: Curve, kept: np.ndarray, why: str) -> Curve:
        if lost := int((~kept).sum()):
            dropped.append(f"{run.name}: {lost} points {why}")
        return curve.only(kept)

    curve = take(run, np.isfinite(run.loss) & np.isfinite(run.tokens), "that are no number")
    if not len(curve.loss):
        raise UserError(f"{run.name} has no loss that is a number; leave it out")
    curve = curve.only(np.argsort(curve.tokens, kind="stable"))
    curve = take(curve, curve.tokens >= skip * curve.tokens[-1], f"in the first {100 * skip:g} % of its tokens")
    curve = take(curve, ~_outliers(curve.loss), "that are outliers")
    curve = take(curve, ~_diverged(curve.loss), "of an end that diverged")
    return _resampled(_smoothed(curve)), dropped


def prepare_all(runs: Sequence[Sequence[Any]], skip: float = 0.0) -> tuple[list[Curve], list[str]]:
    """All curves, and all that was taken out of them."""
    done = [prepare(as_curve(run, i), skip) for i, run in enumerate(runs)]
    return [curve for curve, _ in done], [line for _, lines in done for line in lines]


def _outliers(loss: np.ndarray) -> np.ndarray:
    """Which points are off the local median by more than 5 robust deviations; none in short curves."""
    if len(loss) < NEIGHBOURS:
        return np.zeros(len(loss), dtype=bool)
    middle = _local_median(loss)
    off = np.abs(loss - middle) / (np.abs(middle) if loss.min() > 0 else np.median(np.abs(loss)) + 1e-30)
    usual = _local_median(off, SPREAD) if len(loss) >= SPREAD else np.full_like(off, np.median(off))
    return off > np.maximum(DEVIATIONS * 1.4826 * usual, LEAST_OUTLIER)


def _diverged(loss: np.ndarray) -> np.ndarray:
    """Which points are of an end that rose above what had been reached and stayed there."""
    if len(loss) < NEIGHBOURS or loss.min() <= 0:
        return np.zeros(len(loss), dtype=bool)
    smooth = _local_median(loss)
    last = int(np.flatnonzero(smooth <= DIVERGED * np.minimum.accumulate(smooth))[-1])
    return np.arange(len(loss)) > last


def _local_median(values: np.ndarray, width: int = NEIGHBOURS) -> np.ndarray:
    """Median of each point's neighbourhood; a trend goes on beyond the ends."""
    padded = np.pad(values, width // 2, mode="reflect", reflect_type="odd")
    return np.median(sliding_window_view(padded, width), axis=1)


def _smoothed(curve: Curve) -> Curve:
    """Means over windows of tokens; points at the same tokens become one."""
    tokens = curve.tokens
    places = np.unique(tokens)
    low = np.searchsorted(tokens, (1 - WINDOW) * places, side="left")
    high = np.searchsorted(tokens, (1 + WINDOW) * places, side="right")

    def mean(values: np.ndarray) -> np.ndarray:
        sums = np.concatenate([[0.0], np.cumsum(values)])
        return (sums[high] - sums[low]) / (high - low)

    flops = None if curve.flops is None else mean(curve.flops)
    return curve._replace(tokens=mean(tokens), loss=mean(curve.loss), flops=flops)


def _resampled(curve: Curve) -> Curve:
    """At most :data:`POINTS` of the points, those nearest to places even in ln D."""
    if len(curve.tokens) <= POINTS:
        return curve
    log_d = np.log(curve.tokens)
    places = np.linspace(log_d[0], log_d[-1], POINTS)
    nearest = np.abs(log_d[None] - places[:, None]).argmin(axis=1)
    return curve.only(np.unique(nearest))
