"""What all tests need before torch is imported: waiting threads that sleep, as under the command line."""

import multiprocessing

import pytest

from bczoo.core.threads import tune_for_cpu

tune_for_cpu()
multiprocessing.set_forkserver_preload(["preload"])  # tests/preload.py, imported once for all processes of the tests


@pytest.fixture
def one_thread():
    """Tiny tensors gain nothing from threads, which wait for each other where cores are busy."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
