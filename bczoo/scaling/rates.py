"""Which learning rate a size is trained with: a sweep that starts from the smaller size's best.

Place in the pipeline: whatever trains a grid of sizes (``bczoo scaling run``, ``bczoo study characters``) asks here
which rate to try next. The smallest size tries a whole grid. Larger models want smaller rates (paper 2411.04434,
appendix A.2), so each further size starts from the best rate of the one before and goes down while that helps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


def next_rate(grid: Sequence[float], tried: Mapping[float, float], start: float | None = None) -> float | None:
    """The rate to try next; None where :func:`best_rate` is settled.

    Args:
        grid: rates, in any order.
        tried: by rate the loss that it reached; infinite or no number where it diverged.
        start: best rate of the size before; None for the smallest size.
    """
    rates = sorted((rate for rate in grid if start is None or rate <= start), reverse=True)
    for i, rate in enumerate(rates):
        if rate not in tried:
            return rate
        if start is not None and i and _loss(tried, rate) >= _loss(tried, rates[i - 1]) < math.inf:
            return None
    return None


def best_rate(tried: Mapping[float, float]) -> float:
    """The rate that reached the least loss."""
    return min(tried, key=lambda rate: _loss(tried, rate))


def _loss(tried: Mapping[float, float], rate: float) -> float:
    return tried[rate] if math.isfinite(tried[rate]) else math.inf
