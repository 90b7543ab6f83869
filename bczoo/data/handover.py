"""Memory for the frames of batches, or their features, which workers and trainer share and use again and again.

Place in the pipeline: `dataset.py` decodes frames to here; a data loader's worker hands them to the trainer without
a copy. torch would give every batch new memory, and the system hands that out page by page: 22,000 page faults for four
windows of 200 frames, which can take longer than to decode them. So a worker keeps its memory, and takes a piece again
once the trainer has let go of it. The last byte of a piece tells: the worker sets it, and the trainer clears it when
the last tensor that looks at the piece is gone.
"""

from __future__ import annotations

import math
import mmap
import os
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info

FREE, TAKEN = 0, 1
ALIGNED = 64  # bytes, as torch's own memory: matrix products of features round by how these lie


class Frames:
    """Frames of a batch in shared memory; whoever gets them from another process gets a tensor.

    Args:
        piece: where they lie.
        shape: (B, T, 3, H, W), or (B, T, F) of features.
        dtype: of the values.
    """

    def __init__(self, piece: _Piece, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.tensor = torch.frombuffer(piece.memory, dtype=dtype, count=math.prod(shape)).view(shape)
        self._piece, self._shape, self._dtype = piece, shape, dtype

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (DupFd(self._piece.file), self._piece.bytes, self._shape, self._dtype)


class FrameMemory:
    """Gives memory for the frames of a batch, with any values in it."""

    def __init__(self) -> None:
        self._pieces: list[_Piece] = []

    def take(self, *shape: int, dtype: torch.dtype = torch.uint8) -> tuple[torch.Tensor, torch.Tensor | Frames]:
        """A tensor, and what to put into the batch: it, or in a worker what becomes one in the trainer."""
        if get_worker_info() is None or not hasattr(os, "memfd_create"):
            # numpy asks for large pages, of which a few hundred are enough
            count = math.prod(shape) * dtype.itemsize
            memory = np.empty(count + ALIGNED, np.uint8)
            first = -memory.ctypes.data % ALIGNED
            tensor = torch.from_numpy(memory[first : first + count]).view(dtype).view(shape)
            return tensor, tensor
        wanted = math.prod(shape) * dtype.itemsize + 1
        piece = next((p for p in self._pieces if p.bytes == wanted and p.memory[-1] == FREE), None)
        if piece is None:
            self._pieces.append(piece := _Piece(wanted))
        piece.memory[-1] = TAKEN
        frames = Frames(piece, shape, dtype)
        return frames.tensor, frames

    def __getstate__(self) -> dict[str, Any]:
        return {"_pieces": []}  # of another process


class _Piece:
    """A file in memory, which stays as long as this worker runs."""

    def __init__(self, bytes: int) -> None:
        self.bytes = bytes
        self.file = os.memfd_create("bczoo-frames")
        os.truncate(self.file, bytes)
        self.memory = mmap.mmap(self.file, bytes)


class _Borrowed(mmap.mmap):
    """A worker's piece in the trainer."""

    holder = 0

    def __del__(self) -> None:
        if self.holder == os.getpid():  # and not in a process that was forked from it
            self[-1] = FREE


def _received(file: Any, bytes: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    handle = file.detach()
    try:
        memory = _Borrowed(handle, bytes, flags=mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0))
    finally:
        os.close(handle)
    memory.holder = os.getpid()
    return torch.frombuffer(memory, dtype=dtype, count=math.prod(shape)).view(shape)
