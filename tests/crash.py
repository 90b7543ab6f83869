"""Callbacks for tests that stop a training, as a power cut would."""

import os
from types import SimpleNamespace

import lightning as L

from bczoo.core import files
from bczoo.train.callbacks import checkpoint


class PowerCut(Exception):
    """What ends the run."""


class CrashAt(L.Callback):
    """Raises before optimiser step ``step``."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            raise PowerCut


class CrashAtTheEnd(L.Callback):
    """Raises when training is over."""

    def on_fit_end(self, trainer, pl_module):
        raise PowerCut


class KillAt(L.Callback):
    """Kills its process in optimiser step ``step``, in the validation behind it, or while a checkpoint is written.

    Args:
        where: step, validation, or writing (the second time that ``last.ckpt`` is).
        step: which one.
        number: of the signal, SIGKILL by default.
        rank: of the only process that gets it; any if left out.
    """

    def __init__(self, where: str, step: int, number: int = 9, rank: int | None = None) -> None:
        self.where, self.step, self.number, self.rank, self.writes = where, step, number, rank, 0

    def setup(self, trainer, pl_module, stage):
        if self.where == "writing":
            self.flush, files.flush = files.flush, self._flush

    def _flush(self, path):
        self.writes += "last.ckpt" in path.name
        if self.writes == 2:
            os.kill(os.getpid(), self.number)
        self.flush(path)

    def on_train_batch_start(self, trainer, *_):
        self._at("step", trainer)

    def on_validation_batch_start(self, trainer, *_):
        self._at("validation", trainer)

    def _at(self, where, trainer):
        if (where, trainer.global_step) == (self.where, self.step) and self.rank in (None, trainer.global_rank):
            os.kill(os.getpid(), self.number)


class FullDisk(L.Callback):
    """Has a training find no room for its weights before it begins."""

    def setup(self, trainer, pl_module, stage):
        checkpoint.shutil.disk_usage = lambda _: SimpleNamespace(free=10)
