"""95 % intervals of means over a few seeds, and of the difference between two of them.

Place in the pipeline: :mod:`bczoo.compare.table` asks for them. Seeds are few, three or five. A bootstrap over so few
ends at the lowest and the highest of them and covers the mean far too seldom, so these are Student's intervals: of one
mean, of paired differences (both policies trained with the same seeds), and Welch's for two means. Where there are no
more than the intervals of two single runs, over their games or recordings, those are combined (method of variance
estimates recovery, Zou and Donner 2008).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

COVERAGE = 0.95
_STEPS = 20_001  # of the integral behind a quantile: five digits


@dataclass(frozen=True)
class Estimate:
    """A number and how well it is known.

    Args:
        value: the number.
        low: lower end of its 95 % interval; None without one.
        high: upper end.
        n: how many values it is the mean of.
        over: what the interval is over, in a word or two; empty without one.
    """

    value: float
    low: float | None = None
    high: float | None = None
    n: int = 1
    over: str = ""

    @property
    def side(self) -> str:
        """Where zero is outside the interval: ``higher`` or ``lower`` than it; ``no`` inside, empty without one."""
        if self.low is None or self.high is None:
            return ""
        return "higher" if self.low > 0 else "lower" if self.high < 0 else "no"


def student_quantile(df: float) -> float:
    """How many standard errors a two-sided 95 % interval reaches to each side.

    With t = sqrt(df) tan(a) the density is proportional to cos(a)^(df - 1) on a finite range, and is summed there.

    Args:
        df: degrees of freedom, at least 1.
    """
    angles = np.linspace(0, math.pi / 2, _STEPS)
    density = np.cos(angles) ** (df - 1)
    mass = np.r_[0, np.cumsum((density[1:] + density[:-1]) / 2)]
    return math.sqrt(df) * math.tan(float(np.interp(COVERAGE, mass / mass[-1], angles)))


def mean_over_seeds(values: Sequence[float]) -> Estimate:
    """Mean of runs that differ in their seed, with Student's interval; without one for a single run."""
    n = len(values)
    if n < 2:
        return Estimate(float(values[0]))
    half = student_quantile(n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n)
    mean = float(np.mean(values))
    return Estimate(mean, mean - half, mean + half, n, "seeds")


def paired_difference(values: Sequence[float], first: Sequence[float]) -> Estimate:
    """Mean difference of two configurations, each trained with the same seeds, at least two."""
    found = mean_over_seeds([a - b for a, b in zip(values, first, strict=True)])
    return Estimate(found.value, found.low, found.high, found.n, "pairs of seeds")


def welch_difference(values: Sequence[float], first: Sequence[float]) -> Estimate:
    """Difference of the means of two configurations, each with at least two seeds of its own."""
    parts = [(float(np.var(v, ddof=1)) / len(v), len(v)) for v in (values, first)]
    difference, variance = float(np.mean(values) - np.mean(first)), sum(part for part, _ in parts)
    half = 0.0
    if variance > 0:
        df = variance**2 / sum(part**2 / (n - 1) for part, n in parts)
        half = student_quantile(df) * math.sqrt(variance)
    return Estimate(difference, difference - half, difference + half, min(n for _, n in parts), "seeds")


def difference_of_intervals(value: Estimate, first: Estimate) -> Estimate:
    """Difference of two numbers that were measured independently of each other; without interval if one has none."""
    difference = value.value - first.value
    if None in (value.low, value.high, first.low, first.high):
        return Estimate(difference)
    assert value.low is not None and value.high is not None and first.low is not None and first.high is not None
    low = difference - math.hypot(value.value - value.low, first.high - first.value)
    high = difference + math.hypot(value.high - value.value, first.value - first.low)
    return Estimate(difference, low, high, 1, value.over)
