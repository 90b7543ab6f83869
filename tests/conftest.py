"""What all tests need before torch is imported: waiting threads that sleep, as under the command line."""

import multiprocessing

import pytest

from bczoo.core.threads import tune_for_cpu

tune_for_cpu()

# what processes of tests import before they are forked off (processes.py): everything that a training needs
PRELOADED = ["lightning.pytorch", "timm", "transformers", "bczoo.cli.trainer", "bczoo.data.module"]
multiprocessing.set_forkserver_preload([*PRELOADED, "bczoo.models.bc.policy", "bczoo.train.sharded"])


@pytest.fixture
def one_thread():
    """Tiny tensors gain nothing from threads, which wait for each other where cores are busy."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
