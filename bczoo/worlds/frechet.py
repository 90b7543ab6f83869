"""The Frechet distance between two sets of features, and features of clips that need no downloaded network.

Place in the pipeline: ``bczoo evaluate`` compares dreamt clips with real ones by it. Between Gaussians of the means m
and covariances S of both sets it is |m1 - m2|^2 + tr(S1 + S2 - 2 sqrt(S1 S2)).

Distances of other features, clip lengths or counts never compare, so all three stand in the name of a measure. Few
clips bias it upwards, the more the more values a feature has; the distance between two halves of the real clips is
what is told beside it.

Shape legend: N clips, T steps, z tokens of a picture, F values of a feature.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

IMAGINARY = 1e-3  # share of the trace up to which an imaginary part comes from rounding
HALF = 16  # values of the mean over time, and as many of the change


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    """The distance between the Gaussians of two sets of features (N, F).

    Raises:
        ValueError: a set has fewer than two rows, or the square root is not real.
    """
    if min(len(one), len(other)) < 2:
        raise ValueError(f"a covariance needs at least two rows, got {len(one)} and {len(other)}")
    means = [x.mean(0) for x in (one, other)]
    first, second = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (one, other))
    # the eigenvalues of S1 S2 are those of sqrt(S1) S2 sqrt(S1), which is symmetric and so has a symmetric root
    values, vectors = np.linalg.eigh(first)
    root = vectors * np.sqrt(np.clip(values, 0, None)) @ vectors.T
    inner = np.linalg.eigvalsh(root @ second @ root)
    whole = float(np.trace(first) + np.trace(second))
    if inner.min() < 0 and np.sqrt(-inner.min()) > IMAGINARY * max(whole, 1e-12):
        raise ValueError(f"the square root of the covariances is not real: an eigenvalue is {inner.min():g}")
    cross = float(np.sqrt(np.clip(inner, 0, None)).sum())
    return max(float(np.square(means[0] - means[1]).sum()) + whole - 2 * cross, 0.0)


def token_features(pictures: Tensor, codes: int) -> np.ndarray:
    """Features (N, 32) of clips by their ids (N, T, z), T >= 2.

    Each code and each place has a fixed vector of random signs; a picture is the mean of the products of both over its
    tokens, so it tells which codes are where. A feature is the mean over time, and the mean size of the change from
    picture to picture. Only the tokenizer decides on it, and no network is trained or downloaded for it.

    Args:
        pictures: the ids.
        codes: V of the tokenizer.
    """
    generator = torch.Generator().manual_seed(0)
    of_code = 2.0 * torch.randint(0, 2, (codes, HALF), generator=generator) - 1
    of_place = 2.0 * torch.randint(0, 2, (pictures.shape[-1], HALF), generator=generator) - 1
    shown = (of_code[pictures.cpu()] * of_place).sum(2) / pictures.shape[-1] ** 0.5  # (N, T, HALF)
    change = (shown[:, 1:] - shown[:, :-1]).abs().mean(1)
    return torch.cat([shown.mean(1), change], dim=-1).double().numpy()
