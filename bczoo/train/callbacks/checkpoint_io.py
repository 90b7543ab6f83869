"""Checkpoints that are there whole or not at all.

Place in the pipeline: :class:`bczoo.ResumableCheckpoint` gives this to the trainer in place of Lightning's own writer,
which writes to the folder for temporary files and, where that is another file system, copies over the older checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from bczoo.core.files import PartialPath


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes local checkpoints through :mod:`bczoo.core.files`; the older one stays until the new one is on the device.

    For a moment both are on the disk. Addresses such as ``s3://`` are left to Lightning.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            write_tensors(path, checkpoint)


def install(trainer: L.Trainer) -> None:
    """Have a trainer write whole checkpoints, unless it was given a writer of its own."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()


def write_tensors(path: str | Path, content: Any) -> None:
    """Write a file of ``torch.save``, or leave the older one as it is.

    Raises:
        OSError: the system's own, such as of a full disk, with the path.
    """
    with PartialPath(path) as partial:
        try:
            with partial.path.open("wb") as file:
                torch.save(content, file)
        except RuntimeError as error:  # torch reports what it could not write; why is behind it
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
