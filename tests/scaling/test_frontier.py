"""Approaches 1 and 2 and the extrapolation, on curves of known laws."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from points import CHINCHILLA, curves, isoflop_points

from bczoo.core.errors import UserError
from bczoo.scaling import Law, extrapolate, fit_frontier, fit_isoflop, fit_parametric
from bczoo.scaling.curves import POINTS, as_curve, prepare
from bczoo.scaling.frontier import SizeCurves, crossing, fit_loss_law

SIZES = np.geomspace(1e7, 1e9, 5)


def test_two_curves_cross_where_the_law_says():
    small, large = curves(CHINCHILLA, np.array([1e8, 2e8]))
    both = [SizeCurves(n, ((np.log(6 * n * d), np.log(y), np.log(d), np.ones(len(d))),)) for n, d, y in (small, large)]
    assert math.exp(crossing(*both)) == pytest.approx(CHINCHILLA.crossing(1e8, 2e8), rel=1e-4)


def test_crossings_have_no_staircase_bias_and_the_grid_has():
    """With K whole steps between the crossings the slope of the staircase is a (1 - 1/K^2)."""
    for sizes, steps in ((SIZES, 3), (np.geomspace(1e7, 1e9, 7), 5)):
        runs = curves(CHINCHILLA, sizes)
        exact, stairs = (fit_frontier(runs, method, resamples=0) for method in ("crossings", "grid"))
        assert exact.a == pytest.approx(CHINCHILLA.a, rel=1e-3) and exact.b == pytest.approx(CHINCHILLA.b, rel=1e-3)
        assert stairs.a / CHINCHILLA.a == pytest.approx(1 - 1 / steps**2, abs=0.015)
        assert pytest.approx(CHINCHILLA.E, rel=2e-3) == exact.E and exact.c == pytest.approx(CHINCHILLA.c, rel=5e-3)
        assert exact.loss_opt(1e19) == pytest.approx(CHINCHILLA.loss(exact.n_opt(1e19), exact.d_opt(1e19)), rel=2e-3)


def test_noise_outliers_nan_ties_and_any_order():
    rng = np.random.default_rng(0)
    runs = []
    for n, d, y in curves(CHINCHILLA, SIZES, noise=0.003, points=300):
        y[[40, 170]] *= 1.5
        y[100] = math.nan
        order = rng.permutation(len(d))
        runs.append((n, np.concatenate([d[order], d[:3]]), np.concatenate([y[order], y[:3]])))
    found = fit_frontier([runs[i] for i in (3, 0, 4, 1, 2)], resamples=100)
    assert found.a == pytest.approx(CHINCHILLA.a, rel=0.05)
    assert found.intervals["a"][0] < CHINCHILLA.a < found.intervals["a"][1]
    said = " ".join(found.dropped)
    assert said.count("1 points that are no number") == 5
    counted = [int(count) for count in re.findall(r"(\d+) points that are outliers", said)]
    assert len(counted) == 5 and all(2 <= count <= 5 for count in counted), "noise may look like one"


def test_bits_and_other_units_leave_the_exponents():
    runs = curves(CHINCHILLA, SIZES)
    other = [(n / 1e6, d / 1e9, y / math.log(2)) for n, d, y in runs]
    one, two = (fit_frontier(r, resamples=0) for r in (runs, other))
    assert two.a == pytest.approx(one.a, rel=1e-6) and pytest.approx(one.E / math.log(2), rel=1e-3) == two.E
    a, b = (fit_isoflop(r, resamples=0) for r in (runs, other))
    assert b.a == pytest.approx(a.a, rel=1e-3)


def test_a_size_that_never_wins_is_named():
    runs = curves(CHINCHILLA, SIZES)
    n, d, y = runs[2]
    runs[2] = (n, d, y * 1.2)
    found = fit_frontier(runs, resamples=0)
    assert any("N = 1e+08 never wins" in line for line in found.dropped)
    assert found.a == pytest.approx(CHINCHILLA.a, rel=0.02)


def test_seeds_of_a_size_count_as_one_curve():
    runs = [run for seed in range(3) for run in curves(CHINCHILLA, SIZES, noise=0.002, seed=seed)]
    found = fit_frontier(runs, resamples=50)
    assert not any("blocks" in flag for flag in found.flags), "15 runs are enough to draw runs"
    assert found.a == pytest.approx(CHINCHILLA.a, rel=0.03)
    assert found.intervals["a"][0] < CHINCHILLA.a < found.intervals["a"][1]


@pytest.mark.parametrize(
    ("runs", "told"),
    [
        (curves(CHINCHILLA, SIZES[:1]), "at least 3 sizes, and there is 1"),
        (curves(CHINCHILLA, SIZES[:2]), "at least 3 sizes, and there are 2"),
        ([(n, d, n**-0.1 + d**-0.1) for n, d in ((n, np.geomspace(1e9, 1e10, 40)) for n in SIZES)], "cross 0 times"),
        ([(n, np.geomspace(1e9, 1e11, 40), np.full(40, 2.0)) for n in SIZES], "cross 0 times"),
        ([(SIZES, SIZES, SIZES)], "a run has one"),
        ([(1e7, [1.0, 2.0], [math.nan, math.nan])], "no loss that is a number"),
    ],
)
def test_what_cannot_be_fitted_is_refused(runs, told):
    with pytest.raises(UserError, match=told):
        fit_frontier(runs, resamples=0)


def test_measures_that_are_no_loss_still_give_the_best_size():
    """A return rises with compute: its negative crosses as a loss does, and no power law of it is claimed."""
    runs = [(n, d, y - 100.0) for n, d, y in curves(CHINCHILLA, SIZES)]
    found = fit_frontier(runs, resamples=0)
    assert found.a == pytest.approx(CHINCHILLA.a, rel=1e-3)
    assert found.E is None and set(found.refused) == {"E", "c", "c0"}
    with pytest.raises(UserError, match="knows no loss"):
        found.loss_opt(1e20)


def test_the_loss_law_keeps_the_paper_s_bound_only_by_name():
    c = np.geomspace(1e15, 1e19, 50)
    loss = 0.03 + 40.0 * c**-0.15
    free, bound = fit_loss_law(c, loss), fit_loss_law(c, loss, paper_bounds=True)
    assert free["E"] == pytest.approx(0.03, abs=1e-4) and free["c"] == pytest.approx(0.15, abs=1e-3)
    assert free["c0"] == pytest.approx(40.0, rel=0.02)
    assert bound["E"] == pytest.approx(0.1, abs=1e-3)


def test_isoflop_on_runs_of_one_point_and_on_curves():
    n, d, y = isoflop_points(CHINCHILLA)
    points = fit_isoflop([(n[i], d[i : i + 1], y[i : i + 1]) for i in range(len(n))], resamples=20)
    slices = fit_isoflop(curves(CHINCHILLA, np.geomspace(1e7, 1e9, 9)), resamples=0)
    for found in (points, slices):
        assert found.a == pytest.approx(CHINCHILLA.a, rel=0.02) and found.a + found.b == pytest.approx(1, abs=1e-3)
        assert pytest.approx(CHINCHILLA.E, rel=0.02) == found.E
    with pytest.raises(UserError, match="1 budget"):
        fit_isoflop([(n[i], d[i : i + 1], y[i : i + 1]) for i in range(27)], resamples=0)


def test_the_largest_size_is_predicted_from_the_others():
    runs = curves(CHINCHILLA, np.geomspace(1e7, 1e9, 7), noise=0.001)
    held, found = extrapolate(runs, lambda rest: fit_frontier(rest, resamples=0))
    assert found.range["params"][1] < held.params == 1e9
    assert held.params_factor == pytest.approx(1, abs=0.6) and abs(held.loss_excess) < 0.01
    n, d, y = runs[-1]
    worse, _ = extrapolate([*runs[:-1], (n, d, y * 1.1)], lambda rest: fit_frontier(rest, resamples=0))
    assert worse.loss_excess > 0.05


def test_a_curve_is_cleaned_smoothed_and_resampled():
    rng = np.random.default_rng(0)
    d = np.arange(1, 5001) * 1000.0
    y = CHINCHILLA.loss(1e7, d) * np.exp(0.05 * rng.standard_normal(len(d)))
    y[-400:] *= np.linspace(1.5, 4.0, 400)  # it diverges
    y[1000] *= 3
    curve, dropped = prepare(as_curve((1e7, d, y)), skip=0.05)
    assert curve.tokens[0] >= 0.05 * d[-1] * 0.95 and len(curve.tokens) <= POINTS
    said = " ".join(dropped)
    assert "249 points in the first 5 %" in said and "diverged" in said and "outliers" in said
    assert np.median(np.abs(np.log(curve.loss / CHINCHILLA.loss(1e7, curve.tokens)))) < 0.005, "noise is averaged"
    assert np.all(np.diff(np.log(curve.tokens)) > 0)


def test_all_methods_agree_on_one_law():
    law = Law(120.0, 900.0, 0.4, 0.3, 0.35)
    runs = curves(law, np.geomspace(1e6, 1e8, 9))
    n, d, y = (np.concatenate([np.broadcast_to(r[k], len(r[1])) for r in runs]) for k in range(3))
    found = [fit_frontier(runs, resamples=0), fit_isoflop(runs, resamples=0), fit_parametric(n, d, y, resamples=0)]
    assert [fit.a for fit in found] == pytest.approx([law.a] * 3, rel=0.02)
    assert [fit.loss_opt(1e17) for fit in found] == pytest.approx([found[2].loss_opt(1e17)] * 3, rel=0.01)
