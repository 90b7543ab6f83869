"""Bootstrap intervals of 95 %, over what was sampled independently: episodes, recordings, kinds of policies.

Place in the pipeline: :func:`interval_over_episodes` is for returns in play, interventions and the training-inference
gap, :func:`bootstrap` for many metrics of the same recordings at once, :func:`interval_over_groups` for any statistic.
Whole units are resampled with replacement, since the steps inside one resemble each other, and the ends are
percentiles.

Why not ``scipy.stats.bootstrap``: for a mean over steps it gives the same ends to the last digit in the same time, and
for a report it fits less: one matrix of multinomial counts serves all metrics of :func:`bootstrap`, some of which are
matrices, and a metric that a few resamples lack still has an interval, where SciPy's is not a number.

Shape legend: R units that are resampled, K resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

Interval = tuple[float, float]
RESAMPLES = 10_000  # of a mean
RESAMPLES_OF_METRICS = 2000
ENDS = (0.025, 0.975)


def interval_over_episodes(sums: np.ndarray, counts: np.ndarray) -> Interval:
    """95 % interval of a mean over all steps of all episodes.

    Args:
        sums: (R,) over the steps of each episode.
        counts: (R,) how many steps these are.
    """
    chosen = np.random.default_rng(0).integers(len(sums), size=(RESAMPLES, len(sums)))
    low, high = np.quantile(sums[chosen].sum(1) / counts[chosen].sum(1), ENDS)
    return float(low), float(high)


def bootstrap(
    sums: Mapping[str, Tensor],
    counts: Mapping[str, Tensor],
    statistic: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    resamples: int = RESAMPLES_OF_METRICS,
) -> dict[str, tuple[Tensor, Tensor]]:
    """95 % intervals of metrics over the steps of all recordings; every metric sees the same resamples.

    Where more than 5 % of the resamples lack a metric, because few recordings have it, and where there is but one
    recording, both ends are not a number.

    Args:
        sums: by name (R, ...), over the steps of each recording that count.
        counts: by name (R,), how many steps these are.
        statistic: makes metrics of means by name (:func:`bczoo.train.metrics.summarise`), K of them in front.
        resamples: K.

    Returns:
        by metric the lower and the upper end.
    """
    n = len(next(iter(counts.values())))
    chosen = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=resamples)
    times = torch.from_numpy(chosen).double()  # (K, R), how often each recording is in a resample
    means = {}
    for name, x in sums.items():
        total = (times @ x.double().reshape(n, -1)).reshape(resamples, *x.shape[1:])
        means[name] = total / (times @ counts[name].double()).reshape(resamples, *[1] * (x.ndim - 1))
    out = {}
    for name, values in statistic(means).items():
        known = values[~values.isnan()]
        if n > 1 and len(known) >= 0.95 * resamples:
            low, high = known.quantile(known.new_tensor(ENDS))
        else:
            low = high = values.new_tensor(torch.nan)
        out[name] = low, high
    return out


def interval_over_groups(
    statistic: Callable[[np.ndarray], float], groups: np.ndarray, resamples: int = RESAMPLES_OF_METRICS
) -> Interval:
    """95 % interval of a statistic of rows, over resamples of groups of rows, each with all its rows.

    Args:
        statistic: of the numbers of rows, some of them several times; not a number where it is not defined.
        groups: (rows,) the group of each row, 0 to R - 1.
        resamples: K.
    """
    rng = np.random.default_rng(0)
    members = [np.flatnonzero(groups == group) for group in range(groups.max() + 1)]
    values = []
    for _ in range(resamples):
        chosen = rng.integers(len(members), size=len(members))
        values.append(statistic(np.concatenate([members[group] for group in chosen])))
    if np.isnan(values).all():
        return math.nan, math.nan
    low, high = np.nanquantile(values, ENDS)
    return float(low), float(high)
