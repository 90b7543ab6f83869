"""Latency statistics in constant memory."""

import math

import numpy as np
import pytest

from bczoo.play.latency import Durations, StageTimes


def test_percentiles_are_within_one_percent_and_extremes_exact():
    seconds = np.random.default_rng(0).lognormal(-5, 1, 20_000)
    durations = Durations()
    for s in seconds:
        durations.add(float(s))
    row = durations.summary()
    for p in (50, 95, 99):
        exact = 1e3 * float(np.percentile(seconds, p, method="inverted_cdf"))
        assert exact <= row[f"p{p}"] * (1 + 1e-9) and row[f"p{p}"] <= exact * 1.011
    assert row["max"] == 1e3 * seconds.max() and row["n"] == 20_000
    assert row["mean"] == pytest.approx(1e3 * seconds.mean())


def test_merged_histograms_are_those_of_all_durations():
    whole, parts = StageTimes(), (StageTimes(), StageTimes())
    for i, seconds in enumerate([0.25, 0.5, 4.0, 0.125, 1.0]):
        whole.add("send", seconds)
        parts[i % 2].add("send", seconds)
    merged = StageTimes()
    for part in parts:
        merged.merge("send", part.stages["send"])
    assert merged.summary() == whole.summary() and whole.summary()["send"]["n"] == 5
    assert parts[0].summary()["send"]["n"] == 3, "what is merged stays as it is"
    whole.stages["send"].merge(Durations())
    assert merged.summary() == whole.summary()


def test_memory_does_not_grow():
    durations = Durations()
    size = durations.counts.nbytes
    for i in range(5000):
        durations.add(i * 1e-3)
    assert durations.counts.nbytes == size < 1 << 16


@pytest.mark.parametrize("seconds", [0.0, 1e-12, 1e9])
def test_what_lies_outside_of_the_bins_is_counted(seconds):
    durations = Durations()
    durations.add(seconds)
    assert durations.n == 1 and durations.counts.sum() == 1 and durations.max_s == seconds


def test_nothing_measured_is_not_a_number():
    assert math.isnan(Durations().percentile_s(50))


def test_stages_are_told_in_the_order_of_a_step():
    times = StageTimes()
    times.add("total", 0.004)
    times.add("sample", 0.001)
    with times.stage("resize"):
        pass
    assert list(times.summary()) == ["resize", "sample", "total"]
    assert times.table().splitlines()[3] == "| sample | 1.00 | 1.00 | 1.00 | 1.00 | 1 |"
