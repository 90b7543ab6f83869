"""A checkpoint to resume from, and how a run finds it again.

Place in the pipeline: a callback of the trainer; the command line's ``ckpt_path: last`` looks for what it wrote.
An interrupted run goes on from ``last.ckpt``, with the random generators of every process as they were, so that dropout
goes on as it would have. A file ``finished`` beside it says that the run came to its end: it is evaluated from there,
and training again starts anew.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping

LAST, FINISHED = "last.ckpt", "finished"


class ResumableCheckpoint(Checkpoint):
    """Keeps ``last.ckpt`` up to date: every so many optimiser steps, and at the end.

    The checkpoint of an earlier run in the same folder is renamed to ``before-<time>.ckpt``, never overwritten.

    Args:
        dirpath: folder of the checkpoints; ``checkpoints`` in the trainer's default_root_dir if left out.
        every_n_train_steps: optimiser steps between two saves.
    """

    def __init__(self, dirpath: str | None = None, every_n_train_steps: int = 1000) -> None:
        self.dirpath = Path(dirpath or "checkpoints")
        self._anywhere = dirpath is None
        self.every_n_train_steps = every_n_train_steps
        self._saved_step = -1
        self._own = False  # last.ckpt is of this run
        self._generators: list[dict[str, torch.Tensor]] = []  # states by rank, as of the last save
        self._restore = False  # set the generators back before the next batch

    @property
    def path(self) -> Path:
        return self.dirpath / LAST

    def locate(self, default_root_dir: str) -> None:
        """Place the folder in the run's folder, unless it was given."""
        if self._anywhere:
            self.dirpath, self._anywhere = Path(default_root_dir) / self.dirpath, False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.locate(trainer.default_root_dir)

    @property
    def finished(self) -> bool:
        """Whether ``last.ckpt`` is of a run that came to its end."""
        return self.path.is_file() and (self.dirpath / FINISHED).exists()

    def to_resume(self) -> Path | None:
        """The checkpoint of an interrupted run, if there is one."""
        return self.path if self.path.is_file() and not self.finished else None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved_step = trainer.global_step
        self._own = trainer.ckpt_path is not None and Path(trainer.ckpt_path) == self.path

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if self._restore:
            self._restore = False
            if len(self._generators) == trainer.world_size:
                _set_generators(self._generators[trainer.global_rank])

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        step = trainer.global_step
        if step % self.every_n_train_steps == 0 and step != self._saved_step:
            self._save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step != self._saved_step or not self._own:
            self._save(trainer)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero and _came_to_its_end(trainer):
            (self.dirpath / FINISHED).touch()
            print(f"the trained policy is in {self.path}")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Say what an interrupted training can be resumed from."""
        if isinstance(exception, KeyboardInterrupt) and trainer.is_global_zero and trainer.training:
            kept = f"the same command goes on from step {self._saved_step}"
            if not (self._own and self.path.is_file()):
                kept = (
                    f"nothing was saved yet (every {self.every_n_train_steps} steps), so the same command starts anew"
                )
            print(f"\ninterrupted at step {trainer.global_step}; {kept}")

    def state_dict(self) -> dict[str, Any]:
        return {"generators": self._generators}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._generators = state_dict["generators"]
        self._restore = True

    def _save(self, trainer: L.Trainer) -> None:
        self._saved_step = trainer.global_step
        self._generators = _generators_of_all_ranks(trainer)
        if not self._own and trainer.is_global_zero and self.path.is_file():
            written = time.strftime("%Y%m%d-%H%M%S", time.gmtime(self.path.stat().st_mtime))
            kept = self.path.rename(self.dirpath / f"before-{written}.ckpt")
            print(f"the checkpoint of an earlier run is kept as {kept}")
        if trainer.is_global_zero:
            (self.dirpath / FINISHED).unlink(missing_ok=True)
        self._own = True
        trainer.save_checkpoint(self.path, weights_only=False)


def _came_to_its_end(trainer: L.Trainer) -> bool:
    """Whether training reached its number of steps or epochs or stopped early, and not a time limit."""
    if trainer.interrupted:
        return False
    steps = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    epochs = trainer.max_epochs not in (None, -1) and trainer.current_epoch >= trainer.max_epochs
    early = any(isinstance(c, EarlyStopping) and c.stopped_epoch for c in trainer.early_stopping_callbacks)
    return bool(steps or epochs or early)


def _generators_of_all_ranks(trainer: L.Trainer) -> list[dict[str, torch.Tensor]]:
    own = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        own["cuda"] = torch.cuda.get_rng_state()
    states: list[dict[str, torch.Tensor]] = [own] * trainer.world_size
    if trainer.world_size > 1:
        torch.distributed.all_gather_object(states, own)
    return states


def _set_generators(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
