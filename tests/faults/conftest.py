"""Faults need forks, process groups and limits of Linux; elsewhere this folder is left out."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # tiny_game
collect_ignore_glob = [] if sys.platform == "linux" else ["test_*.py"]


@pytest.fixture(autouse=True)
def forks(one_thread):
    """A fork has none of its parent's threads."""


@pytest.fixture(scope="session")
def bench():
    from trials import Bench

    return Bench()
