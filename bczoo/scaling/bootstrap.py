"""Which points a resample takes, and how often.

Place in the pipeline: all methods of :mod:`bczoo.scaling` ask here for the weights of their resamples. Points of one
training curve are not independent of each other, so whole runs are drawn with replacement. Below :data:`FEW_RUNS` of
them too few resamples differ; then runs stay and blocks of neighbouring points are drawn inside each.

Shape legend: P points, R runs, K resamples.
"""

from __future__ import annotations

import numpy as np

FEW_RUNS = 8
BLOCKS = 50  # of a curve, so that a block of a resampled one is two points


def resampled_weights(run: np.ndarray, order: np.ndarray, resamples: int, seed: int = 0) -> tuple[np.ndarray, str]:
    """How often each point is in each resample, (K, P), and a flag that says so where blocks were drawn.

    Args:
        run: (P,) the run of each point, 0 to R - 1.
        order: (P,) by which the points of a run are neighbours: tokens.
        resamples: K.
        seed: of the draw.
    """
    rng = np.random.default_rng(seed)
    runs = int(run.max()) + 1
    if runs >= FEW_RUNS:
        return rng.multinomial(runs, np.full(runs, 1 / runs), size=resamples)[:, run].astype(float), ""
    weights = np.empty((resamples, len(run)))
    for i in range(runs):
        members = np.flatnonzero(run == i)
        members = members[np.argsort(order[members], kind="stable")]
        blocks = min(BLOCKS, len(members))
        block = np.arange(len(members)) * blocks // len(members)
        weights[:, members] = rng.multinomial(blocks, np.full(blocks, 1 / blocks), size=resamples)[:, block]
    return weights, (
        f"intervals are over blocks of the curves of {runs} runs, since {FEW_RUNS} are needed to draw runs: they "
        "leave out how another seed would do"
    )
