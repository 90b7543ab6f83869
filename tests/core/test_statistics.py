"""Intervals against resampling one by one, and against means whose interval is known."""

from collections import defaultdict

import numpy as np
import torch

from bczoo.core.statistics import bootstrap, interval_over_episodes, interval_over_groups
from bczoo.train.metrics import masked_sum, summarise


def sums_of(recordings):
    """Sums and counts per recording of random numbers; ``recordings`` lists how many steps each has."""
    torch.manual_seed(0)
    measures = []
    for i, n in enumerate(recordings):
        p = torch.softmax(torch.randn(1, max(recordings), 2, 3) + i, -1)
        where = (torch.arange(max(recordings)) < n)[None]
        measures.append({"cross_entropy/x": (torch.rand(where.shape) + i, where), "marginal/x": (p, where)})
    sums, counts = {}, {}
    for name in measures[0]:
        both = [masked_sum(*one[name]) for one in measures]
        sums[name], counts[name] = (torch.cat(x) for x in zip(*both, strict=True))
    return sums, counts


def test_intervals_are_those_of_recordings_resampled_one_by_one():
    sums, counts = sums_of([3, 8, 5, 1])
    ends = bootstrap(sums, counts, summarise, resamples=300)
    resamples = np.random.default_rng(0).multinomial(4, np.full(4, 0.25), size=300)
    values = defaultdict(list)
    for times in resamples:
        chosen = np.repeat(np.arange(4), times)
        means = {name: sum(sums[name][i].double() for i in chosen) / counts[name][chosen].sum() for name in sums}
        for name, value in summarise(means).items():
            values[name].append(value.item())
    assert ends.keys() == values.keys() == {"perplexity/x", "relative_cross_entropy/x"}
    for name, (low, high) in ends.items():
        np.testing.assert_allclose([low, high], np.percentile(values[name], [2.5, 97.5]), rtol=1e-6)
        assert low < summarise({k: sums[k].sum(0) / counts[k].sum() for k in sums})[name] < high


def test_what_one_or_few_recordings_have_gets_no_interval():
    assert all(end.isnan() for ends in bootstrap(*sums_of([4]), summarise).values() for end in ends)
    values, steps = torch.arange(20.0), torch.full((20,), 3.0)
    rare, common = steps.clone(), steps.clone()
    rare[2:] = 0
    common[10:] = 0
    for counts, known in ((rare, False), (common, True)):
        low, high = bootstrap({"score": values * counts}, {"score": counts}, dict)["score"]
        assert (low.isfinite() and low < high) if known else (low.isnan() and high.isnan())


def test_the_interval_over_episodes_covers_the_truth_as_often_as_it_says():
    """Long episodes weigh more, steps of an episode share its luck; 95 % of the intervals hold the mean of 3."""
    rng, hits = np.random.default_rng(1), 0
    for _ in range(100):
        counts = rng.integers(5, 50, 60).astype(float)
        low, high = interval_over_episodes(rng.normal(3, 1, 60) * counts, counts)
        hits += low < 3 < high
    assert 88 <= hits <= 99


def test_groups_are_resampled_whole():
    values = np.array([0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    low, high = interval_over_groups(lambda rows: values[rows].mean(), np.array([0, 0, 0, 1, 1, 1]), resamples=200)
    assert (low, high) == (0.0, 1.0)  # one group alone is often the whole resample
    every = [interval_over_groups(lambda rows: values[rows].mean(), np.arange(6), resamples=200) for _ in range(2)]
    assert every[0] == every[1] and 0 <= every[0][0] < 0.5 < every[0][1] <= 1
    assert all(np.isnan(interval_over_groups(lambda rows: np.nan, np.arange(3), resamples=20)))
