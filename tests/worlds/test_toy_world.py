"""A world model that has learned a moving square dreams it exactly, for as long as it is asked to."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_world

from bczoo.models.token.dream import Dream

pytestmark = pytest.mark.usefixtures("one_thread")


def test_fifty_pictures_are_exact(world):
    columns, keys = toy_world.walk(np.random.default_rng(5), (4, 52))
    ids = toy_world.action_ids(keys)
    dream = Dream(world, 4, temperature=0)
    dream.see(toy_world.picture_ids(columns[:, :1]), ids[:, :0])
    for t in range(51):
        assert torch.equal(dream.step(ids[:, t]).ids, toy_world.picture_ids(columns[:, t + 1])), t


def test_its_card_shows_how_to_dream(world_folder):
    card = (Path(world_folder) / "README.md").read_text()
    assert "# toy" in card and "A world model, for the Python package" in card and "14 tokens a step" in card
    code = card.split("```python\n")[1].split("```")[0]
    names: dict = {}
    exec(re.sub(r'from_pretrained\(".*?"\)', f'from_pretrained("{world_folder}")', code), names)
    assert any(np.array_equal(names["frame"], toy_world.frame(column)) for column in range(toy_world.COLUMNS))


def test_left_and_right_lead_to_different_and_right_pictures(world):
    dream = Dream(world, 3, temperature=0)
    dream.see(toy_world.picture_ids([[3]] * 3), torch.zeros(3, 0, 8, dtype=torch.long))
    for t in range(1, 6):
        shown = dream.step(toy_world.action_ids([0, 1, 2])).ids
        assert torch.equal(shown, toy_world.picture_ids([3, max(3 - t, 0), min(3 + t, 5)]))
    assert np.array_equal(dream.pixels(shown)[1], toy_world.frame(0))
