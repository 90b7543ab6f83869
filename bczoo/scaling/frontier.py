"""Approach 1: the envelope of training curves, one run per size.

Place in the pipeline: :func:`fit_frontier` takes training curves (:mod:`bczoo.scaling.curves`), finds where each size
is overtaken by the next, and reads the exponents off those places. It is the preferred method of paper 2411.04434
(section 3.4) and needs curves that cross.

The paper reads the best size off an even grid of C. With sizes even in ln N and K whole steps between the crossings the
slope of that staircase is a (1 - 1/K^2): 11 % low for five sizes. The crossings themselves, at the geometric mean of
both sizes, lie on a line of slope a exactly where the law holds.

Shape legend: P points of all runs, S sizes, W sizes that win, G places of a grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from scipy.optimize import OptimizeWarning, curve_fit

from bczoo.core.errors import UserError
from bczoo.scaling.bootstrap import resampled_weights
from bczoo.scaling.curves import Curve, prepare_all
from bczoo.scaling.law import ScalingFit, percentiles, power_law, span

Method = Literal["crossings", "grid"]
GRID = 100  # values of C
FINE = 400  # places at which two curves are compared
NEAR = math.log(2.0)  # of ln C to each side of a crossing, in which both curves are taken for parabolas
ENOUGH = 6  # points of a parabola
LOSS_LAW = ("E", "c", "c0")


@dataclass(frozen=True)
class SizeCurves:
    """The runs of one size: places ln C, values ln L (or what is compared), ln D and weights of points, by run."""

    params: float
    runs: tuple[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], ...]

    @property
    def low(self) -> float:
        return max(x[0] for x, *_ in self.runs)

    @property
    def high(self) -> float:
        return min(x[-1] for x, *_ in self.runs)

    def at(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values and ln D at places ln C, means over the runs; not a number where a run has not been."""
        values = [np.interp(places, x, y, np.nan, np.nan) for x, y, _, _ in self.runs]
        tokens = [np.interp(places, x, z, np.nan, np.nan) for x, _, z, _ in self.runs]
        weights = [w.mean() for *_, w in self.runs]
        return np.average(values, axis=0, weights=weights), np.average(tokens, axis=0, weights=weights)

    def parabola(self, place: float) -> np.ndarray:
        """Coefficients (3,) in ln C - ``place`` of what runs through the points near a place."""
        x, y, _, w = (np.concatenate(part) for part in zip(*self.runs, strict=True))
        away = np.abs(x - place)
        near = away <= max(NEAR, np.sort(away)[min(ENOUGH, len(x)) - 1])
        degree = 2 if near.sum() >= ENOUGH else 1
        found = np.polynomial.polynomial.polyfit(x[near] - place, y[near], degree, w=np.sqrt(w[near]))
        return np.pad(found, (0, 2 - degree))


def fit_frontier(
    runs: Sequence[Sequence[Any]],
    method: Method = "crossings",
    paper_bounds: bool = False,
    resamples: int = 1000,
    seed: int = 0,
) -> ScalingFit:
    """Fit the envelope of training curves: best size, best tokens and least loss over C, with 95 % intervals.

    Args:
        runs: a ``(params, tokens, loss)`` per run, points in any order, or :class:`bczoo.scaling.Curve`; runs of one
            size, of several seeds, count as one curve.
        method: ``crossings`` of neighbouring sizes, or ``grid`` as in the paper, whose slope is low.
        paper_bounds: keep E above 0.1, as the paper does; wrong for action losses, which fall below it.
        resamples: of the bootstrap; 0 for no intervals.
        seed: of the bootstrap.

    Raises:
        UserError: fewer than two crossings, or fewer than three sizes; says why a and b cannot be identified.
    """
    if method not in ("crossings", "grid"):
        raise UserError(f"method must be crossings or grid, got {method!r}")
    curves, dropped = prepare_all(runs)
    known = min((float(curve.loss.min()) for curve in curves), default=0.0) > 0
    found, left_out = _frontier(_by_size(curves, known), method, known, paper_bounds)
    flags, refused = list(found.flags), dict(found.refused)
    samples: dict[str, np.ndarray] = {}
    if resamples:
        samples, more = _bootstrap(curves, method, known, paper_bounds, resamples, seed)
        flags += more
        if not samples:
            refused["intervals"] = "fewer than half of the resamples have two crossings"
    tokens, flops = (np.concatenate(parts) for parts in zip(*((c.tokens, c.compute) for c in curves), strict=True))
    return ScalingFit(
        **{name: getattr(found, name) for name in ("method", "a", "b", "a0", "b0", "E", "c", "c0", "points")},
        intervals={name: percentiles(values) for name, values in samples.items()},
        dropped=(*dropped, *left_out),
        flags=tuple(flags),
        refused=refused,
        range=span(np.array([c.params for c in curves]), tokens, flops),
        samples=samples,
    )


def _by_size(curves: Sequence[Curve], logarithm: bool, weights: Sequence[np.ndarray] | None = None) -> list[SizeCurves]:
    """The curves by size, ascending, with the points that have a weight.

    Args:
        curves: prepared.
        logarithm: compare ln L; a measure that is not above 0 is compared as it is.
        weights: of the points of each curve; 1 if left out.
    """
    sizes: dict[float, list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]] = {}
    for i, curve in enumerate(curves):
        weight = np.ones(len(curve.loss)) if weights is None else weights[i]
        x, y = np.log(curve.compute), np.log(curve.loss) if logarithm else curve.loss
        taken = weight > 0
        if taken.sum() > 1:
            points = (x[taken], y[taken], np.log(curve.tokens[taken]), weight[taken])
            sizes.setdefault(curve.params, []).append(points)
    return [SizeCurves(params, tuple(runs)) for params, runs in sorted(sizes.items())]


def _frontier(
    sizes: list[SizeCurves], method: Method, logarithm: bool, paper_bounds: bool
) -> tuple[ScalingFit, list[str]]:
    """The fit without intervals, and the sizes that are not on the frontier."""
    if len(sizes) < 3:
        raise UserError(
            f"a and b cannot be identified: a frontier needs curves of at least 3 sizes, and there "
            f"{'is' if len(sizes) == 1 else 'are'} {len(sizes)}"
        )
    winners, crossings, left_out = envelope(sizes)
    if len(crossings) < 2:
        raise UserError(
            f"a and b cannot be identified: the curves of {len(sizes)} sizes cross {len(crossings)} times and have to "
            f"twice ({'; '.join(left_out) or 'no neighbours meet'}). Train past the best size of each budget, or take "
            "the parametric method, which needs no crossings"
        )
    places = np.linspace(crossings[0], crossings[-1], GRID)
    values, tokens = (np.array(part) for part in zip(*(w.at(places) for w in winners), strict=True))  # (W, G)
    best = np.where(np.isnan(values), np.inf, values).argmin(axis=0)
    across = np.arange(GRID)
    least = values[best, across]
    if method == "grid":
        x, log_d, y = places, tokens[best, across], least
        log_n = np.log([w.params for w in winners])[best]
    else:
        least = _between_sizes(np.log([w.params for w in winners]), values, best)
        x, pairs = np.array(crossings), list(pairwise(winners))
        log_n = np.array([(math.log(one.params) + math.log(other.params)) / 2 for one, other in pairs])
        both = [(one.at(x[i : i + 1]), other.at(x[i : i + 1])) for i, (one, other) in enumerate(pairs)]
        y, log_d = (np.array([(one[k][0] + other[k][0]) / 2 for one, other in both]) for k in (0, 1))
    c, n, d = np.exp(x), np.exp(log_n), np.exp(log_d)
    (a, a0), (b, b0) = power_law(c, n), power_law(c, d)
    flags: list[str] = []
    refused: dict[str, str] = {}
    loss_law: dict[str, Any] = {}
    if logarithm:
        loss_law = fit_loss_law(np.exp(places), np.exp(least), paper_bounds)
        lowest = 0.1 if paper_bounds else 0.0
        if loss_law["E"] <= lowest + 1e-6:
            flags.append(f"E is at its bound {lowest:g}: the frontier shows no loss that remains")
    else:
        refused = dict.fromkeys(LOSS_LAW, "the measure is not above 0 everywhere, or rises: no power law of a loss")
    if len(crossings) == 2:
        flags.append("a and b are a line through two crossings; nothing says how well it fits")
    points = np.stack([c, n, d, np.exp(y) if logarithm else y], axis=1)
    found = ScalingFit(
        f"frontier, {method}", a, b, a0, b0, **loss_law, flags=tuple(flags), refused=refused, points=points
    )
    return found, left_out


def _between_sizes(log_n: np.ndarray, values: np.ndarray, best: np.ndarray) -> np.ndarray:
    """The least value between sizes, (G,): the bottom of the parabola through the best size and its neighbours.

    Where one of those has not been it is the value of the best size. With these alone the least loss would go up and
    down with the distance to the next size, and E with it.

    Args:
        log_n: (W,) of the sizes.
        values: (W, G) theirs, not a number where a size has not been.
        best: (G,) which size is best.
    """
    middle = np.clip(best, 1, len(log_n) - 2)
    at = np.arange(values.shape[1])
    left, right = log_n[middle] - log_n[middle - 1], log_n[middle + 1] - log_n[middle]
    fall = (values[middle - 1, at] - values[middle, at]) / left
    rise = (values[middle + 1, at] - values[middle, at]) / right
    bent = (fall + rise) / (left + right)
    slope = (rise * left - fall * right) / (left + right)
    known = bent > 0  # comparisons with what is not a number are false
    return np.where(known, values[middle, at] - slope**2 / (4 * np.where(known, bent, 1.0)), values[best, at])


def envelope(sizes: list[SizeCurves]) -> tuple[list[SizeCurves], list[float], list[str]]:
    """The sizes that win somewhere, the ln C at which each is overtaken by the next, and the others by name."""
    winners, left_out = [sizes[0]], []
    crossings: list[float] = []
    for size in sizes[1:]:
        while True:
            place = crossing(winners[-1], size)
            if place == math.inf:  # overtakes nobody
                left_out.append(f"N = {size.params:.4g} never wins")
                break
            if place == -math.inf or (crossings and place <= crossings[-1]):  # overtakes before that one has won
                left_out.append(f"N = {winners[-1].params:.4g} never wins")
                winners.pop()
                if crossings:
                    crossings.pop()
                if not winners:
                    winners = [size]
                    break
                continue
            winners.append(size)
            crossings.append(place)
            break
    return winners, crossings, left_out


def crossing(smaller: SizeCurves, larger: SizeCurves) -> float:
    """The ln C from which on a larger size is better; -inf where it always is, inf where it never is or none is shared.

    The step that parts smaller from larger best is where the summed difference is least, whatever single points do.
    Near it both curves are parabolas, whose intersection averages the noise of their points.
    """
    low, high = max(smaller.low, larger.low), min(smaller.high, larger.high)
    if low >= high:
        return math.inf
    grid = np.linspace(low, high, FINE)
    difference = smaller.at(grid)[0] - larger.at(grid)[0]
    step = int(np.concatenate([[0.0], np.cumsum(difference)]).argmin())
    if step == FINE or not difference.any():
        return math.inf
    if step == 0:
        return -math.inf
    place = float(grid[step - 1 : step + 1].mean())
    for _ in range(3):  # so that the parabolas' window is about their crossing
        near = _root(smaller.parabola(place) - larger.parabola(place))
        if near is None or not low <= place + near <= high:
            break
        place += near
    else:
        return place
    return math.inf if step > FINE / 2 else -math.inf  # noise at an end


def _root(coefficients: np.ndarray) -> float | None:
    """Where a parabola rises through zero, the nearest to 0 within :data:`NEAR`; None if it does not."""
    roots = np.polynomial.polynomial.polyroots(np.trim_zeros(coefficients, "b"))
    real = [float(r.real) for r in roots if abs(r.imag) < 1e-9 and abs(r.real) <= NEAR]
    rising = [r for r in real if coefficients[1] + 2 * coefficients[2] * r > 0]
    return min(rising, key=abs, default=None)


def fit_loss_law(flops: np.ndarray, loss: np.ndarray, paper_bounds: bool = False) -> dict[str, float]:
    """E, c and c0 of L = E + c0 C^-c (paper 2411.04434, equation 8), by least squares with c0 >= 0 and c in [-1, 1].

    Args:
        flops: (P,) C.
        loss: (P,) least losses.
        paper_bounds: E >= 0.1 instead of E >= 0.
    """
    center = float(np.exp(np.log(flops).mean()))  # 1e20 would ruin the Jacobian
    x, lowest = flops / center, 0.1 if paper_bounds else 0.0
    tries = []
    for exponent in np.geomspace(0.01, 0.99, 25):  # linear in the other two
        power = x**-exponent
        slope = float(np.cov(power, loss)[0, 1] / power.var(ddof=1))
        rest = max(float((loss - slope * power).mean()), lowest + 1e-9)
        slope = max(float((power * (loss - rest)).sum() / (power**2).sum()), 1e-12)
        tries.append((float(((rest + slope * power - loss) ** 2).sum()), (rest, exponent, slope)))

    def law(x: Any, e: float, c: float, c0: float) -> Any:
        return e + c0 * x**-c

    bounds = (lowest, -1.0, 0.0), (np.inf, 1.0, np.inf)
    (e, c, c0), _ = curve_fit(law, x, loss, min(tries)[1], bounds=bounds, ftol=1e-12, xtol=1e-12, gtol=1e-12)
    return {"E": float(e), "c": float(c), "c0": float(c0 * center**c)}


def _bootstrap(
    curves: list[Curve], method: Method, logarithm: bool, paper_bounds: bool, resamples: int, seed: int
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Exponents of resamples by name, empty where most cannot be fitted, and what to say of them."""
    import warnings

    lengths = [len(curve.loss) for curve in curves]
    run = np.repeat(np.arange(len(curves)), lengths)
    order = np.concatenate([curve.tokens for curve in curves])
    weights, flag = resampled_weights(run, order, resamples, seed)
    fits = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OptimizeWarning)
        for row in weights:
            try:
                sizes = _by_size(curves, logarithm, np.split(row, np.cumsum(lengths)[:-1]))
                fits.append(_frontier(sizes, method, logarithm, paper_bounds)[0])
            except UserError:
                continue
    flags = [flag] if flag else []
    if len(fits) < resamples / 2:
        return {}, flags
    if (lost := resamples - len(fits)) > 0.05 * resamples:
        flags.append(f"{lost} of {resamples} resamples have no two crossings: the intervals are too narrow")
    names = ("a", "b", "a0", "b0", *(LOSS_LAW if logarithm else ()))
    return {name: np.array([getattr(fit, name) for fit in fits]) for name in names}, flags
