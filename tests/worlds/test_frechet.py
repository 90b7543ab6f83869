"""The Frechet distance: closed forms, and features of tokens that tell what is where and what moves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bczoo.worlds.frechet import frechet_distance, token_features


def test_closed_forms():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 5))
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(x, x + 2) == pytest.approx(5 * 4)  # of the means alone
    assert frechet_distance(x, 3 * (x - x.mean(0)) + x.mean(0)) == pytest.approx(
        4 * np.trace(np.cov(x.T))
    )  # (3 - 1)^2 S
    first, second = np.diag([1.0, 4.0, 9.0]), np.diag([4.0, 1.0, 16.0])
    sets = []
    for wanted in (first, second):  # sets whose covariance is exactly the wanted one
        y = rng.normal(size=(50, 3))
        y -= y.mean(0)
        y = y @ np.linalg.inv(np.linalg.cholesky(np.cov(y.T)).T) @ np.sqrt(wanted)
        sets.append(y)
    assert frechet_distance(*sets) == pytest.approx((2 - 1) ** 2 + (2 - 1) ** 2 + (4 - 3) ** 2)


def test_fewer_rows_than_values_give_a_number_and_one_row_none():
    rng = np.random.default_rng(1)
    assert 0 < frechet_distance(rng.normal(size=(6, 40)), rng.normal(size=(7, 40))) < 200
    with pytest.raises(ValueError, match="at least two rows"):
        frechet_distance(np.zeros((1, 3)), np.zeros((5, 3)))


def test_token_features_see_codes_places_and_motion():
    still = torch.zeros(40, 4, 9, dtype=torch.long)
    still[torch.arange(40), :, torch.randint(0, 9, (40,))] = 1
    moved = still.roll(1, -1)
    moving = torch.stack([still[:, t].roll(t, -1) for t in range(4)], 1)
    other = still * 2
    features = [token_features(x, 5) for x in (still, moved, moving, other)]
    assert features[0].shape == (40, 32) and not features[0][:, 16:].any() and features[2][:, 16:].any()
    distances = [frechet_distance(features[0], x) for x in features]
    assert distances[0] == pytest.approx(0, abs=1e-6) and min(distances[2:]) > 0.1
    assert np.array_equal(features[0], token_features(still, 5))
