"""Memory of frames goes back and forth between worker and trainer, and nobody sees another batch's frames."""

from __future__ import annotations

import gc
import pickle
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from synthetic import SIZE
from torch.utils.data import DataLoader

from bczoo.core.actions import ActionSpace
from bczoo.data import handover
from bczoo.data.dataset import WindowDataset, as_batch
from bczoo.data.handover import FrameMemory, Frames
from bczoo.data.index import open_index

linux = pytest.mark.skipif(not hasattr(handover.os, "memfd_create"), reason="files in memory are Linux's")


@pytest.fixture
def memory(monkeypatch) -> FrameMemory:
    """As in a worker."""
    monkeypatch.setattr(handover, "get_worker_info", lambda: object())
    return FrameMemory()


def sent(frames: Frames) -> torch.Tensor:
    return pickle.loads(ForkingPickler.dumps(frames))


@linux
def test_memory_is_taken_again_when_the_last_view_is_gone(memory):
    tensor, frames = memory.take(1, 2, 3, 4, 4)
    tensor[:] = 7
    received = sent(frames)
    assert received.shape == (1, 2, 3, 4, 4) and (received == 7).all()
    view = received[0, 1]
    del received
    gc.collect()
    other, _ = memory.take(1, 2, 3, 4, 4)
    other[:] = 9  # of another batch, as the trainer still looks at the first
    assert (view == 7).all()
    del view
    again, _ = memory.take(1, 2, 3, 4, 4)
    assert again.data_ptr() == tensor.data_ptr() and len(memory._pieces) == 2
    assert memory.take(1, 1, 3, 4, 4)[0].shape == (1, 1, 3, 4, 4)


@linux
def test_what_was_not_received_is_not_taken_again(memory):
    first, _ = memory.take(1, 1, 3, 4, 4)
    assert memory.take(1, 1, 3, 4, 4)[0].data_ptr() != first.data_ptr()


def test_without_workers_a_batch_has_memory_of_its_own():
    tensor, handed = FrameMemory().take(1, 2, 3, 4, 4)
    assert handed is tensor and tensor.shape == (1, 2, 3, 4, 4)


def test_batches_that_are_kept_stay_what_they_were(root):
    index = open_index(root, ActionSpace.keyboard_mouse(), text_dim=None)
    dataset = WindowDataset(index, 4, SIZE)
    keys = [[(r, s)] for r in range(6) for s in (0, 4, 8, 12)]
    loader = DataLoader(dataset, batch_sampler=keys, num_workers=1, collate_fn=as_batch)
    kept = []
    for i, batch in enumerate(loader):
        if i % 3:  # the others' memory is taken again while these are kept
            kept.append((keys[i], batch["frames"][0, 1:]))
    for key, frames in kept:
        assert torch.equal(frames, dataset.__getitems__(key)["frames"][0, 1:])
