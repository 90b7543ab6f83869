"""Intervals of means, by bootstrap over what was drawn independently: episodes, games.

Place in the pipeline: returns in play, interventions and the training-inference gap are told with these;
:func:`bczoo.train.metrics.bootstrap` does the same for many metrics of many recordings at once.
"""

from __future__ import annotations

import numpy as np

DRAWS = 10_000


def interval_over_episodes(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """95 % interval of a mean over all steps; whole episodes are drawn, since their steps resemble each other.

    Args:
        sums: (E,) over the steps of each episode.
        counts: (E,) how many steps these are.
    """
    drawn = np.random.default_rng(0).integers(len(sums), size=(DRAWS, len(sums)))
    low, high = np.percentile(sums[drawn].sum(1) / counts[drawn].sum(1), [2.5, 97.5])
    return float(low), float(high)
