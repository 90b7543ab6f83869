"""The sum of Huber losses of a law's logarithm, and its minimum.

Place in the pipeline: :mod:`bczoo.scaling.parametric` centres the data, has :func:`least` descend from many starts, and
turns what comes out back into the units of the data. The objective is that of Hoffmann et al. (arXiv 2203.15556,
approach 3), the sum over points of Huber(ln L_fit - ln L), with ln L_fit by log-sum-exp, where nothing overflows.

The sum is scaled to a size at which the optimiser's tolerances mean something. Their mean, about 4e-6, is what the
published fit minimised: L-BFGS-B stops where a step gains less than 2.2e-9, which is at once
(Besiroglu et al., arXiv 2404.10102).

Shape legend: P points, S starts. Parameters are (a', b', e, alpha, beta) with a' = ln A, b' = ln B, e = ln E.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

LOWEST_E = math.log(1e-4)  # of the geometric mean of the losses; E below that is as good as none
BOUNDS = ((-40.0, 40.0), (-40.0, 40.0), (LOWEST_E, 5.0), (0.01, 6.0), (0.01, 6.0))
GRID = (  # of the starts, in the centred units of Points
    (-5.0, -2.5, -1.0),
    (-5.0, -2.5, -1.0),
    (-2.0, -0.7, -0.1),
    (0.1, 0.3, 0.6, 1.0, 1.7),
    (0.1, 0.3, 0.6, 1.0, 1.7),
)
FINALISTS = 3  # that are followed to the end
SIZE = 100.0  # the objective is divided by delta and multiplied by this


@dataclass(frozen=True)
class Points:
    """Logarithms of sizes, tokens and losses, each without its mean, and the weight of each point; all (P,)."""

    log_n: np.ndarray
    log_d: np.ndarray
    log_loss: np.ndarray
    weights: np.ndarray

    def terms(self, theta: np.ndarray) -> np.ndarray:
        """Logarithms of the three terms of the law, (..., 3, P) for theta (..., 5)."""
        a, b, e, alpha, beta = np.moveaxis(theta[..., None], -2, 0)
        size, data = a - alpha * self.log_n, b - beta * self.log_d
        return np.stack([size, data, np.broadcast_to(e, size.shape)], axis=-2)

    def residuals(self, theta: np.ndarray) -> np.ndarray:
        """ln L_fit - ln L, (..., P)."""
        terms = self.terms(theta)
        top = terms.max(axis=-2)
        return top + np.log(np.exp(terms - top[..., None, :]).sum(axis=-2)) - self.log_loss

    def objective(self, theta: np.ndarray, delta: float) -> np.ndarray:
        """Weighted sum of the Huber losses, (...) for theta (..., 5)."""
        return (self.weights * huber(self.residuals(theta), delta)).sum(axis=-1)

    def with_gradient(self, theta: np.ndarray, delta: float) -> tuple[float, np.ndarray]:
        """The same of one theta (5,) with its derivative, scaled for the optimiser."""
        terms = self.terms(theta)
        top = terms.max(axis=0)
        shares = np.exp(terms - top)
        total = shares.sum(axis=0)
        residual = top + np.log(total) - self.log_loss
        slope = self.weights * np.clip(residual, -delta, delta) / total
        size, data, rest = shares * slope
        gradient = np.array([size.sum(), data.sum(), rest.sum(), -size @ self.log_n, -data @ self.log_d])
        scale = SIZE / min(delta, 1e-3)
        return scale * float((self.weights * huber(residual, delta)).sum()), scale * gradient


def huber(residual: np.ndarray, delta: float) -> np.ndarray:
    """Half the square up to ``delta``, its tangent beyond; half the square everywhere for an infinite ``delta``."""
    inside = np.clip(residual, -delta, delta)
    return inside * (residual - 0.5 * inside)


def grid_of_starts() -> np.ndarray:
    """(S, 5) combinations of :data:`GRID`."""
    return np.stack(np.meshgrid(*GRID, indexing="ij"), axis=-1).reshape(-1, len(GRID))


def least(points: Points, delta: float, starts: int) -> np.ndarray:
    """Parameters (5,) of the least objective, from the best ``starts`` of the grid."""
    grid = grid_of_starts()
    chosen = grid[np.argsort(points.objective(grid, max(delta, 1e-2)), kind="stable")[:starts]]
    found = sorted((descend(points, start, delta, steps=200) for start in chosen), key=lambda x: x[0])
    return min((follow(points, theta, delta) for _, theta in found[:FINALISTS]), key=lambda x: x[0])[1]


def follow(points: Points, theta: np.ndarray, delta: float) -> tuple[float, np.ndarray]:
    """Objective and parameters where both optimisers stop, L-BFGS-B within the bounds and BFGS behind it.

    The kinks of a small ``delta`` hold both up, so it is reached in steps.
    """
    widths = [w for w in (1e-2, 1e-3, 1e-4, 1e-5) if w > delta]
    best = math.inf, theta
    for width in [*widths, delta]:
        best = descend(points, best[1], width)
    if not at_bound(best[1]):
        end = minimize(points.with_gradient, best[1], (delta,), "BFGS", jac=True, options={"gtol": 1e-9})
        if np.isfinite(end.x).all() and end.fun < best[0] and not at_bound(end.x):
            best = float(end.fun), end.x
    return best


def descend(points: Points, start: np.ndarray, delta: float, steps: int = 3000) -> tuple[float, np.ndarray]:
    """Objective and parameters where L-BFGS-B stops, with tolerances that let it arrive."""
    options = {"maxiter": steps, "maxfun": 2 * steps, "maxcor": 20, "ftol": 1e-14, "gtol": 1e-9}
    end = minimize(points.with_gradient, start, (delta,), "L-BFGS-B", jac=True, bounds=BOUNDS, options=options)
    return float(end.fun), end.x


def at_bound(theta: np.ndarray) -> bool:
    """Whether a parameter is at the end of :data:`BOUNDS`, or beyond it."""
    return any(not low < x < high for x, (low, high) in zip(theta, BOUNDS, strict=True))
