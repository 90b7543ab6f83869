"""Fixtures of the data tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from synthetic import write_recordings


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny tensors gain nothing from threads, which wait for each other where cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def root(tmp_path) -> Path:
    return write_recordings(tmp_path / "recordings")
