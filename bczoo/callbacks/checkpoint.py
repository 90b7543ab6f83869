"""A checkpoint to resume from, and how a run finds it again.

Place in the pipeline: a callback of the trainer; the command line's ``ckpt_path: last`` looks for what it wrote.
An interrupted run goes on from ``last.ckpt``; a finished one is evaluated from it, and training again starts anew.
The states of the random generators are kept too, so that dropout goes on as it would have.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


class ResumableCheckpoint(Checkpoint):
    """Keeps ``last.ckpt`` up to date: every so many optimiser steps, and at the end marked as finished.

    Args:
        dirpath: folder of the checkpoints.
        every_n_train_steps: optimiser steps between two saves.
    """

    def __init__(self, dirpath: str, every_n_train_steps: int = 1000) -> None:
        self.dirpath = Path(dirpath)
        self.every_n_train_steps = every_n_train_steps
        self.finished = False
        self._saved_step = -1
        self._random: dict[str, Any] | None = None  # generator states to go on from, once

    @property
    def path(self) -> Path:
        return self.dirpath / LAST

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.finished = False
        self._saved_step = trainer.global_step

    def on_train_batch_start(self, *_: Any) -> None:
        if self._random is not None:
            torch.set_rng_state(self._random["cpu"])
            if torch.cuda.is_available() and len(self._random["cuda"]) == torch.cuda.device_count():
                torch.cuda.set_rng_state_all(self._random["cuda"])
            self._random = None

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        step = trainer.global_step
        if step % self.every_n_train_steps == 0 and step != self._saved_step:
            self._save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.finished = True
        self._save(trainer)

    def state_dict(self) -> dict[str, Any]:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {"finished": self.finished, "random": {"cpu": torch.get_rng_state(), "cuda": cuda}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._random = state_dict["random"]

    def _save(self, trainer: L.Trainer) -> None:
        self._saved_step = trainer.global_step
        trainer.save_checkpoint(self.path, weights_only=False)

    def to_resume(self) -> Path | None:
        """The checkpoint of an interrupted run; that of a finished run is set aside instead."""
        if not self.path.is_file():
            return None
        state = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        if not state["callbacks"].get(self.state_key, {}).get("finished", False):
            return self.path
        self.path.replace(self.dirpath / PREVIOUS)
        return None
