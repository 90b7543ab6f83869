"""Fixtures of the data tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic import write_recordings


@pytest.fixture(autouse=True)
def small_tensors(one_thread):
    """All tests of data work on these."""


@pytest.fixture
def root(tmp_path) -> Path:
    return write_recordings(tmp_path / "recordings")
