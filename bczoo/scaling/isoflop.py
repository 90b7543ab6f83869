"""Approach 2: at fixed budgets, the size at the bottom of a parabola.

Place in the pipeline: :func:`fit_isoflop` takes training curves (:mod:`bczoo.scaling.curves`), or runs of one point
each that were trained to the same few budgets (Hoffmann et al., arXiv 2203.15556), and returns a
:class:`bczoo.scaling.law.ScalingFit`.

Shape legend: P points of all runs, Q budgets, K resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from bczoo.core.errors import UserError
from bczoo.scaling.bootstrap import resampled_weights
from bczoo.scaling.curves import Curve, prepare_all
from bczoo.scaling.frontier import fit_loss_law
from bczoo.scaling.law import ScalingFit, percentiles, power_law, span

BUDGETS = 10  # that curves are cut at
GAP = 0.1  # of ln C, between runs of different budgets
NEAR = math.log(10.0)  # of ln N to each side of the best size, in which the losses are taken for a parabola
FEWEST_SIZES = 3


def fit_isoflop(
    runs: Sequence[Sequence[Any]], budgets: Sequence[float] | None = None, resamples: int = 1000, seed: int = 0
) -> ScalingFit:
    """Fit the best size at each of several budgets, and a power law through these, with 95 % intervals.

    Args:
        runs: a ``(params, tokens, loss)`` per run, or :class:`bczoo.scaling.Curve`; arrays of one entry for runs of
            which the end alone is known.
        budgets: C to look at; found in runs of one point, spread over what the curves share otherwise.
        resamples: of the bootstrap over the runs; 0 for no intervals.
        seed: of the bootstrap.

    Raises:
        UserError: fewer than two budgets have a best size inside the sizes that were trained; says why.
    """
    curves, dropped = prepare_all(runs)
    if min((float(curve.loss.min()) for curve in curves), default=0.0) <= 0:
        raise UserError("losses must be above 0: parabolas are fitted to their logarithms")
    at = _budgets(curves) if budgets is None else np.sort(np.asarray(budgets, dtype=float))
    rows, left_out = _bottoms(curves, at, np.ones(len(curves)))
    if len(rows) < 2:
        raise UserError(
            f"a and b cannot be identified with {len(rows)} budget{'s' if len(rows) != 1 else ''} that "
            f"{'have' if len(rows) != 1 else 'has'} a best size inside the sizes, and two are needed"
            f"{': ' if left_out else ''}{'; '.join(left_out)}"
        )
    c, n, d, y = rows.T
    (a, a0), (b, b0) = power_law(c, n), power_law(c, d)
    flags: list[str] = []
    refused: dict[str, str] = {}
    loss_law: dict[str, Any] = {}
    if len(rows) > 3:
        loss_law = fit_loss_law(c, y)
    else:
        refused = dict.fromkeys(("E", "c", "c0"), f"{len(rows)} budgets are too few for the loss law, which needs 4")
    samples, flag = _bootstrap(curves, at, resamples, seed, bool(loss_law)) if resamples else ({}, "")
    flags += [flag] if flag else []
    if resamples and not samples:
        refused["intervals"] = "fewer than half of the resamples have two budgets with a best size"
    tokens, flops = (np.concatenate(parts) for parts in zip(*((k.tokens, k.compute) for k in curves), strict=True))
    return ScalingFit(
        "isoflop",
        a,
        b,
        a0,
        b0,
        **loss_law,
        intervals={name: percentiles(values) for name, values in samples.items()},
        dropped=(*dropped, *left_out),
        flags=tuple(flags),
        refused=refused,
        points=rows,
        range=span(np.array([k.params for k in curves]), tokens, flops),
        samples=samples,
    )


def slices(curves: Sequence[Curve], budgets: np.ndarray) -> list[tuple[float, np.ndarray]]:
    """By budget the runs that reach it: (runs, 4) number of the run, ln N, ln D and ln L there."""
    cuts = []
    for budget in budgets:
        rows = []
        for i, curve in enumerate(curves):
            x, place = np.log(curve.compute), math.log(budget)
            if len(x) == 1 and abs(x[0] - place) < GAP:
                place = x[0]
            if x[0] <= place <= x[-1]:
                values = (np.interp(place, x, np.log(y)) for y in (curve.tokens, curve.loss))
                rows.append((i, math.log(curve.params), *values))
        cuts.append((float(budget), np.array(rows).reshape(-1, 4)))
    return cuts


def _budgets(curves: Sequence[Curve]) -> np.ndarray:
    """The budgets of runs of one point; else values of C even in ln C, as far as three sizes reach."""
    if all(len(curve.loss) == 1 for curve in curves):
        c = np.sort(np.log([curve.compute[0] for curve in curves]))
        groups = np.split(c, np.flatnonzero(np.diff(c) > GAP) + 1)
        return np.exp([group.mean() for group in groups])
    starts, ends = (np.sort([curve.compute[k] for curve in curves]) for k in (0, -1))
    if len(curves) < FEWEST_SIZES or starts[FEWEST_SIZES - 1] >= ends[-FEWEST_SIZES]:
        raise UserError(f"a and b cannot be identified: no budget is shared by {FEWEST_SIZES} runs")
    return np.geomspace(starts[FEWEST_SIZES - 1], ends[-FEWEST_SIZES], BUDGETS)


def _bottoms(curves: Sequence[Curve], budgets: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """(Q, 4) C, N, D and L of the best size at each budget, and the budgets without one."""
    rows, left_out = [], []
    for budget, cut in slices(curves, budgets):
        cut = cut[weights[cut[:, 0].astype(int)] > 0]
        name = f"C = {budget:.3g}"
        if len(cut):
            cut = cut[np.abs(cut[:, 1] - cut[cut[:, 3].argmin(), 1]) <= NEAR]
        if len(np.unique(cut[:, 1])) < FEWEST_SIZES:
            left_out.append(f"{name} has fewer than {FEWEST_SIZES} sizes near its best")
            continue
        run, log_n, log_d, log_loss = cut.T
        w = weights[run.astype(int)]
        middle = log_n.mean()
        fit = np.polynomial.polynomial.polyfit(log_n - middle, np.stack([log_loss, log_d], 1), 2, w=np.sqrt(w))
        bent = float(fit[2, 0])
        bottom = -float(fit[1, 0]) / (2 * bent) if bent > 0 else math.inf
        if not log_n.min() < middle + bottom < log_n.max():
            left_out.append(f"{name} has its best size at or beyond an end of the sizes")
            continue
        loss, tokens = (float(x) for x in fit[0] + fit[1] * bottom + fit[2] * bottom**2)
        rows.append((budget, math.exp(middle + bottom), math.exp(tokens), math.exp(loss)))
    return np.array(rows).reshape(-1, 4), left_out


def _bootstrap(
    curves: Sequence[Curve], budgets: np.ndarray, resamples: int, seed: int, with_loss: bool
) -> tuple[dict[str, np.ndarray], str]:
    """Exponents of resamples by name; empty where most cannot be fitted. Runs are drawn, or points inside few runs."""
    lengths = [len(curve.loss) for curve in curves]
    run = np.repeat(np.arange(len(curves)), lengths)
    weights, flag = resampled_weights(run, np.concatenate([k.tokens for k in curves]), resamples, seed)
    found: dict[str, list[float]] = {}
    for row in weights:
        parts = np.split(row, np.cumsum(lengths)[:-1])
        kept = [(k.only(part > 0), part.max()) for k, part in zip(curves, parts, strict=True) if part.any()]
        rows, _ = _bottoms([k for k, _ in kept], budgets, np.array([w for _, w in kept]))
        if len(rows) < (4 if with_loss else 2):
            continue
        c, n, d, y = rows.T
        (a, a0), (b, b0) = power_law(c, n), power_law(c, d)
        for name, value in {"a": a, "a0": a0, "b": b, "b0": b0, **(fit_loss_law(c, y) if with_loss else {})}.items():
            found.setdefault(name, []).append(value)
    if len(found.get("a", [])) < resamples / 2:
        return {}, flag
    return {name: np.array(values) for name, values in found.items()}, flag
