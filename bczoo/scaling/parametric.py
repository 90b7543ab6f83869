"""Approach 3: the law over size and data, fitted to all points at once.

Place in the pipeline: :func:`fit_parametric` takes points of training curves (:mod:`bczoo.scaling.curves`) or final
losses, descends (:mod:`bczoo.scaling.objective`) and returns a :class:`bczoo.scaling.law.ScalingFit`. It needs no
curves that cross, so it is the method for settings in which they do not (paper 2411.04434, section 3.4).

Shape legend: P points, R runs, K resamples.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import curve_fit
from threadpoolctl import threadpool_limits

from bczoo.core.errors import UserError
from bczoo.scaling.bootstrap import resampled_weights
from bczoo.scaling.law import FLOPS_PER_PARAMETER, Law, ScalingFit, percentiles, span
from bczoo.scaling.objective import BOUNDS, LOWEST_E, Points, descend, least

Objective = Literal["huber", "squares"]
FEWEST_POINTS = 6
FEWEST_VALUES = 3  # of sizes, and of tokens
SAME = 0.02  # difference of logarithms, up to which two sizes or budgets are one
FLAT = 1e-3  # range of ln L, below which a loss says nothing
EXPLAINED, BY_CHANCE = 0.1, 8.0  # share of the spread of ln L that a law has to explain, and more over few points
FAR_OFF = np.array([-2.5, -1.0, -0.7, 1.0, 0.3])  # second start of a resample


@threadpool_limits.wrap(limits=1, user_api="blas")  # on matrices of five rows threads wait for each other
def fit_parametric(
    params: ArrayLike,
    tokens: ArrayLike,
    loss: ArrayLike,
    run: ArrayLike | None = None,
    huber_delta: float = 1e-3,
    objective: Objective = "huber",
    starts: int = 50,
    resamples: int = 1000,
    seed: int = 0,
) -> ScalingFit:
    """Fit L(N, D) = E + A N^-alpha + B D^-beta, with 95 % intervals.

    Args:
        params: (P,) sizes N.
        tokens: (P,) inputs seen D.
        loss: (P,) in nats; other units scale E, A and B alone.
        run: (P,) the run of each point, any labels; runs weigh the same however many points they have, and the
            bootstrap draws whole runs. Each point is a run of its own if left out.
        huber_delta: where the loss of a residual of ln L turns from a square into a line; infinite for squares of ln L.
        objective: ``huber`` as Hoffmann et al., or ``squares`` of L by ``scipy.optimize.curve_fit`` as paper
            2411.04434, started where ``huber`` ends.
        starts: of the optimiser.
        resamples: of the bootstrap, K; 0 for no intervals.
        seed: of the bootstrap.

    Raises:
        UserError: the points cannot tell the constants apart; names those constants and what is missing.
    """
    if objective not in ("huber", "squares"):
        raise UserError(f"objective must be huber or squares, got {objective!r}")
    if not huber_delta > 0:
        raise UserError(f"huber_delta must be above 0, got {huber_delta}")
    n, d, y, group, dropped = _checked(params, tokens, loss, run)
    _refuse_designs(n, d, y)
    share = len(y) / (int(group.max()) + 1) / np.bincount(group)[group]  # runs weigh the same
    means = np.log(n).mean(), np.log(d).mean(), np.log(y).mean()
    points = Points(np.log(n) - means[0], np.log(d) - means[1], np.log(y) - means[2], share)
    theta = least(points, huber_delta, starts)
    _refuse_noise(points, theta)
    found, samples, flags = _law(theta, means), {}, _flags(theta, means)
    if objective == "squares":
        found = _least_squares(found, n, d, y, share)
    if resamples:
        weights, flag = resampled_weights(group, d, resamples, seed)
        flags += [flag] if flag else []
        laws = [_law(_again(points, theta, share * w, huber_delta), means) for w in weights]
        if objective == "squares":
            laws = [_least_squares(law, n, d, y, share * w) for law, w in zip(laws, weights, strict=True)]
        names = ("a", "b", "a0", "b0", "E", "c", "c0", "A", "B", "alpha", "beta")
        samples = {name: np.array([getattr(law, name) for law in laws]) for name in names}
    return ScalingFit.of_law(
        found,
        method=f"parametric, {objective}",
        intervals={name: percentiles(values) for name, values in samples.items()},
        dropped=tuple(dropped),
        flags=tuple(flags),
        points=np.stack([FLOPS_PER_PARAMETER * n * d, n, d, y], axis=1),
        range=span(n, d, FLOPS_PER_PARAMETER * n * d),
        samples=samples,
    )


def _checked(params: Any, tokens: Any, loss: Any, run: Any) -> tuple[np.ndarray, ...]:
    """Points that have a size, tokens and a loss, their runs by number, and what was left out."""
    n, d, y = (np.asarray(x, dtype=float).ravel() for x in (params, tokens, loss))
    group = np.arange(len(y)) if run is None else np.asarray(run).ravel()
    if not len(n) == len(d) == len(y) == len(group):
        raise UserError(f"params, tokens, loss and run have {len(n)}, {len(d)}, {len(y)} and {len(group)} entries")
    known = np.isfinite(n) & np.isfinite(d) & np.isfinite(y)
    if (np.minimum(np.minimum(n, d), y)[known] <= 0).any():
        raise UserError("sizes, tokens and losses must be above 0: the law is one of their logarithms")
    lost = int((~known).sum())
    dropped = [f"{lost} points that are no number"] if lost else []
    return n[known], d[known], y[known], np.unique(group[known], return_inverse=True)[1], dropped  # type: ignore[return-value]


def _refuse_designs(n: np.ndarray, d: np.ndarray, y: np.ndarray) -> None:
    """Raise where no loss at these sizes and tokens could tell the constants apart."""
    if len(y) < FEWEST_POINTS:
        raise UserError(f"{len(y)} points cannot identify A, B, E, alpha and beta; give at least {FEWEST_POINTS}")
    sizes, amounts = distinct(n), distinct(d)
    if sizes < FEWEST_VALUES:
        raise UserError(f"A, alpha and E cannot be identified with {_count(sizes, 'size')}; train at least 3 sizes")
    if amounts < FEWEST_VALUES:
        raise UserError(
            f"B, beta and E cannot be identified with {_count(amounts, 'value')} of D; give losses after at least 3 "
            "numbers of tokens"
        )
    log_n, log_d = np.log(n) - np.log(n).mean(), np.log(d) - np.log(d).mean()
    slope = float(log_n @ log_d / (log_n @ log_n))
    if np.abs(log_d - slope * log_n).max() < SAME:
        what = "D is a function of N in all points"
        if abs(slope - 1) < SAME:
            what = f"D/N is fixed at {math.exp(float(np.log(d / n).mean())):.4g}"
        elif abs(slope + 1) < SAME:
            what = f"there is one budget, C = {math.exp(float(np.log(FLOPS_PER_PARAMETER * n * d).mean())):.4g}"
        raise UserError(
            f"A, B, E, alpha and beta cannot be told apart, since {what}; give points that vary N and D apart from "
            "each other"
        )
    if np.ptp(np.log(y)) < FLAT:
        raise UserError("A, B, alpha and beta cannot be identified: the loss is flat, the same in all points")


def _refuse_noise(points: Points, theta: np.ndarray) -> None:
    """Raise where the law explains next to nothing of the losses."""
    spread = np.abs(points.log_loss - np.median(points.log_loss)).mean()
    share = min(EXPLAINED + BY_CHANCE / len(points.log_loss), 0.8)
    if np.abs(points.residuals(theta)).mean() > (1 - share) * spread:
        raise UserError(
            "A, B, alpha and beta cannot be identified: the loss is flat within its noise, and follows neither size "
            "nor tokens"
        )


def _flags(theta: np.ndarray, means: tuple[float, float, float]) -> list[str]:
    """Which constants stopped at the end of what is allowed."""
    flags = []
    if theta[2] <= LOWEST_E * (1 - 1e-6):
        flags.append(
            f"E is at its bound: the points show no loss that remains, E < {math.exp(LOWEST_E + means[2]):.2g}"
        )
    for name, x, (low, high) in zip(("alpha", "beta"), theta[3:], BOUNDS[3:], strict=True):
        if not low + 1e-6 < x < high - 1e-6:
            flags.append(f"{name} is at its bound, {x:.3g}: what it stands for is not in the points")
    return flags


def _law(theta: np.ndarray, means: tuple[float, float, float]) -> Law:
    """The law in the units of the data."""
    a, b, e, alpha, beta = (float(x) for x in theta)
    log_n, log_d, log_loss = (float(x) for x in means)
    A, B, E = (math.exp(x + log_loss) for x in (a + alpha * log_n, b + beta * log_d, e))
    return Law(A, B, E, alpha, beta)


def _again(points: Points, theta: np.ndarray, weights: np.ndarray, delta: float) -> np.ndarray:
    """Parameters of a resample: from the whole fit, and from far off it."""
    taken = weights > 0
    chosen = Points(points.log_n[taken], points.log_d[taken], points.log_loss[taken], weights[taken])
    ends = [descend(chosen, theta, delta), descend(chosen, FAR_OFF, delta)]
    return min(ends, key=lambda end: end[0])[1]


def _least_squares(start: Law, n: np.ndarray, d: np.ndarray, y: np.ndarray, weights: np.ndarray) -> Law:
    """The law of least squares of L by Levenberg-Marquardt, on centred logarithms so that no column dwarfs another."""
    taken = weights > 0
    log_n, log_d = np.log(n).mean(), np.log(d).mean()
    x = np.log(n[taken]) - log_n, np.log(d[taken]) - log_d

    def loss(x: Any, a: float, b: float, e: float, alpha: float, beta: float) -> np.ndarray:
        return e + np.exp(a - alpha * x[0]) + np.exp(b - beta * x[1])

    first = (math.log(start.A) - start.alpha * log_n, math.log(start.B) - start.beta * log_d, start.E)
    sigma = 1 / np.sqrt(weights[taken])
    try:
        (a, b, e, alpha, beta), _ = curve_fit(
            loss, x, y[taken], (*first, start.alpha, start.beta), sigma, ftol=1e-12, xtol=1e-12, maxfev=5000
        )
    except RuntimeError as error:
        raise UserError(f"least squares do not converge ({error}); take the objective huber") from error
    return Law(math.exp(a + alpha * log_n), math.exp(b + beta * log_d), float(e), float(alpha), float(beta))


def distinct(values: np.ndarray) -> int:
    """How many values there are, where those within 2 % are one."""
    ordered = np.sort(np.log(values))
    return 1 + int((np.diff(ordered) > SAME).sum())


def _count(number: int, what: str) -> str:
    return f"one {what}" if number == 1 else f"{number} {what}s"
