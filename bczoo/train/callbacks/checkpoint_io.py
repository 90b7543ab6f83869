"""Checkpoints that are there whole or not at all, written while training goes on.

Place in the pipeline: :class:`bczoo.ResumableCheckpoint` gives this to the trainer in place of Lightning's own writer,
which writes to the folder for temporary files and, where that is another file system, copies over the older checkpoint.
Lightning's AsyncCheckpointIO writes in the background too, but does not tell when a checkpoint is on the disk, and
without that no older one could be let go.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor
from torch.distributed.tensor import DTensor

from bczoo.core.files import PartialPath
from bczoo.hub.checkpoint_folder import is_folder_checkpoint, save_file
from bczoo.hub.state import load_tensors


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes local checkpoints through :mod:`bczoo.core.files`; the older one stays until the new one is on the device.

    For a moment both are on the disk. Addresses such as ``s3://`` are left to Lightning.

    Attributes:
        background: whether :meth:`save_checkpoint` returns before the checkpoint is written. What it holds is copied
            to the processor's memory before, and :meth:`wait` tells how it went; it is called before the next one.
    """

    def __init__(self) -> None:
        self.background = False
        self._writing: Future[None] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            self.write(checkpoint, lambda content: write_tensors(path, content))

    def write(self, content: Any, write: Callable[[Any], None]) -> None:
        """Have a function write something, now or in the background with a copy of it."""
        if self.background:
            thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
            self._writing = thread.submit(write, snapshot(content))
            thread.shutdown(wait=False)
        else:
            write(content)

    def wait(self) -> None:
        """Wait until what is written in the background is on the disk; raises what went wrong, once."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        if is_folder_checkpoint(path):
            return load_tensors(path, optimizer=True)
        return super().load_checkpoint(path, map_location, weights_only)


def install(trainer: L.Trainer) -> AtomicCheckpointIO | None:
    """Have a trainer write whole checkpoints, and return what does; None if it was given a writer of its own."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
    writer = trainer.strategy.checkpoint_io
    return writer if isinstance(writer, AtomicCheckpointIO) else None


def write_tensors(path: str | Path, content: Any) -> None:
    """Write a file of ``torch.save``, or leave the older one, or the folder of an older one, as it is.

    Raises:
        OSError: the system's own, such as of a full disk, with the path.
    """
    with PartialPath(path, over_folder=is_folder_checkpoint(path)) as partial:
        save_file(partial.path, content)


def snapshot(content: Any) -> Any:
    """A copy of what a checkpoint holds, in the memory of the processor; what shares memory shares it in the copy."""
    known: dict[Any, Tensor] = {}

    def copied(value: Any) -> Any:
        if isinstance(value, Tensor):
            return _copied(value, known)
        if isinstance(value, dict):
            return type(value)((key, copied(part)) for key, part in value.items())
        if type(value) in (list, tuple):
            return type(value)(copied(part) for part in value)
        return copy.deepcopy(value)

    return copied(content)


def _copied(tensor: Tensor, known: dict[Any, Tensor]) -> Tensor:
    if isinstance(
        tensor, DTensor
    ):  # of a GPU's mesh, what is on the processor has been copied there for the checkpoint
        on_its_device = tensor.to_local().device.type == tensor.device_mesh.device_type
        return tensor.detach().clone() if on_its_device else tensor
    memory = tensor.untyped_storage().data_ptr()
    key = (memory, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
    if key not in known or not memory:
        known[key] = tensor.detach().to("cpu", copy=True)
    return known[key]
