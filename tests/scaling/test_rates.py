"""The sweep of learning rates: a whole grid for the smallest size, then down from the smaller one's best."""

import math

import pytest

from bczoo.scaling.rates import best_rate, next_rate

GRID = (0.001, 0.002, 0.004, 0.008)


def swept(loss_of, start=None):
    tried = {}
    while (rate := next_rate(GRID, tried, start)) is not None:
        tried[rate] = loss_of(rate)
    return tried


def test_the_smallest_size_tries_all_rates():
    tried = swept(lambda rate: abs(rate - 0.004))
    assert set(tried) == set(GRID) and best_rate(tried) == 0.004


@pytest.mark.parametrize(
    ("best", "expected", "trials"), [(0.004, 0.004, [0.004, 0.002]), (0.002, 0.002, [0.004, 0.002, 0.001])]
)
def test_a_larger_size_goes_down_from_the_best_of_the_smaller_one(best, expected, trials):
    tried = swept(lambda rate: abs(math.log(rate / best)), start=0.004)
    assert list(tried) == trials and best_rate(tried) == expected


def test_a_rate_that_diverges_is_never_the_best():
    tried = swept(lambda rate: math.nan if rate > 0.001 else 5.0, start=0.004)
    assert best_rate(tried) == 0.001
