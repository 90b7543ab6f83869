"""Points of known laws, for the tests of the fits."""

from __future__ import annotations

import numpy as np

from bczoo.scaling import Law

CHINCHILLA = Law(A=482.01, B=2085.43, E=1.8172, alpha=0.3478, beta=0.3658)  # arXiv 2404.10102, table 1


def isoflop_points(law: Law, noise: float = 0.0, seed: int = 0, sizes: int = 27) -> tuple[np.ndarray, ...]:
    """N, D and L of runs at nine budgets, sizes within a factor 6 of the best: laid out like Hoffmann's 240.

    Args:
        law: of the losses.
        noise: standard deviation of ln L, heavy-tailed.
        seed: of the noise.
        sizes: at a budget.
    """
    rng = np.random.default_rng(seed)
    budgets = np.geomspace(6e18, 3e21, 9)
    n = np.concatenate([law.a0 * c**law.a * np.geomspace(1 / 6, 6, sizes) for c in budgets])[: 240 * sizes // 27]
    d = np.repeat(budgets, sizes)[: len(n)] / 6 / n
    return n, d, law.loss(n, d) * np.exp(noise / np.sqrt(2) * rng.standard_t(4, len(n)))


def curves(
    law: Law, sizes: np.ndarray, noise: float = 0.0, run_noise: float = 0.0, seed: int = 0, points: int = 100
) -> list[tuple[float, np.ndarray, np.ndarray]]:
    """A training curve per size, from well before its best budget to well past it."""
    rng, out = np.random.default_rng(seed), []
    for n in sizes:
        d = np.geomspace(0.6 * n, 2000 * n, points)
        off = run_noise * rng.standard_normal() + noise * rng.standard_normal(points)
        out.append((float(n), d, law.loss(n, d) * np.exp(off)))
    return out


def flat(runs: list[tuple[float, np.ndarray, np.ndarray]]) -> tuple[np.ndarray, ...]:
    """The same as params, tokens, loss and run."""
    lengths = [len(d) for _, d, _ in runs]
    n, run = np.repeat([r[0] for r in runs], lengths), np.repeat(range(len(runs)), lengths)
    return n, np.concatenate([r[1] for r in runs]), np.concatenate([r[2] for r in runs]), run
