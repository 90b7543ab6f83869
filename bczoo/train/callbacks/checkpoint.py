"""A checkpoint to resume from, and how a run finds it again.

Place in the pipeline: a callback of the trainer; the command line's ``ckpt_path: last`` looks for what it wrote.
An interrupted run goes on from ``last.ckpt``, with the random generators of every process as they were, so that dropout
goes on as it would have. A file ``finished`` beside it says that the run came to its end, with all that follows the
training: it is evaluated from there, and training again starts anew. ``finished`` holds the fingerprint of its
``last.ckpt``, so that it never speaks of the checkpoint of another run, whenever that was killed.

    <run>/checkpoints/last.ckpt            replaced as a whole (bczoo.train.callbacks.checkpoint_io)
    <run>/checkpoints/before-<time>.ckpt   of earlier runs
    <run>/checkpoints/finished
    <run>/checkpoints/.lock                who writes here (bczoo.train.callbacks.lock)
"""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
import signal
import threading
import time
import warnings
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.utilities.exceptions import SIGTERMException

from bczoo.core.errors import UserError
from bczoo.core.files import sweep, write_text
from bczoo.hub.state import fingerprint
from bczoo.train.callbacks.agreed import Agreed
from bczoo.train.callbacks.checkpoint_io import install
from bczoo.train.callbacks.lock import FolderLock
from bczoo.train.run_record import LAST

FINISHED = "finished"


class ResumableCheckpoint(Checkpoint):
    """Keeps ``last.ckpt`` up to date: every so many optimiser steps, at the end, and when the run is asked to stop.

    The checkpoint of an earlier run in the same folder is kept as ``before-<time>.ckpt``, never overwritten. One
    training at a time writes to the folder. A save that fails, because the disk is full, is reported and made up for by
    the next; if it is the last one, it is an error.

    Ctrl-C and SIGTERM end the training behind the step that it is in, or within a validation, with a checkpoint of
    that step; the status of the process is 130 or 143 then. A second Ctrl-C does not wait. With several processes a
    validation is not broken off.

    Args:
        dirpath: folder of the checkpoints; ``checkpoints`` in the trainer's default_root_dir if left out.
        every_n_train_steps: optimiser steps between two saves.
    """

    def __init__(self, dirpath: str | None = None, every_n_train_steps: int = 1000) -> None:
        self.dirpath = Path(dirpath or "checkpoints")
        self._anywhere = dirpath is None
        self.every_n_train_steps = every_n_train_steps
        self._saved_step = -1
        self._training = False
        self._step = -1  # after which on_train_batch_end was last
        self._own = False  # last.ckpt is of this run
        self._generators: list[dict[str, torch.Tensor]] = []  # states by rank, as of the last save
        self._restore = False  # set the generators back before the next batch
        self._signal = 0  # that asked this process to stop
        self._handlers: dict[int, Any] = {}  # of signals, before training
        self._stop = Agreed()
        self._after_step: tuple[dict[str, Any], list[dict[str, torch.Tensor]]] | None = None  # loops, generators
        self._in_validation = False  # a checkpoint that is written now is of the step before it

    @property
    def path(self) -> Path:
        return self.dirpath / LAST

    def locate(self, default_root_dir: str) -> None:
        """Place the folder in the run's folder, unless it was given."""
        if self._anywhere:
            self.dirpath, self._anywhere = Path(default_root_dir) / self.dirpath, False

    def claim(self, trainer: L.Trainer) -> None:
        """See that checkpoints can be written, keep others from it, and clear away what killed runs left.

        Raises:
            UserError: the folder cannot be written to, holds a folder in place of a checkpoint, has no room, or
                another training writes there.
        """
        self.locate(trainer.default_root_dir)
        if not trainer.is_global_zero:
            return
        try:
            self.dirpath.mkdir(parents=True, exist_ok=True)
            FolderLock(self.dirpath).acquire()
        except OSError as error:
            raise UserError(
                f"checkpoints cannot be written to {self.dirpath}: {error.strerror} ({error.filename}); mend that, or "
                "give another --trainer.default_root_dir"
            ) from error
        if self.path.is_dir():
            raise UserError(
                f"{self.path} is a folder, where the checkpoint is to be; move it away (checkpoints that a strategy "
                "writes as folders cannot be resumed from yet)"
            )
        for folder in {self.dirpath, Path(trainer.default_root_dir), *_log_folders(trainer)}:
            sweep(folder)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.locate(trainer.default_root_dir)
        if stage != "fit":
            return
        self.claim(trainer)
        install(trainer)
        least = sum(p.nbytes for p in pl_module.parameters() if not p.is_meta)
        if trainer.is_global_zero and (free := shutil.disk_usage(self.dirpath).free) < least:
            raise UserError(
                f"{self.dirpath} has {free / 1e6:,.1f} MB left, and the weights alone take {least / 1e6:,.1f} MB; free "
                "space there, or give another --trainer.default_root_dir"
            )

    @property
    def finished(self) -> bool:
        """Whether ``last.ckpt`` is of a run that came to its end."""
        if not self.path.is_file():
            return False
        try:
            of = (self.dirpath / FINISHED).read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return False
        return not of or of == fingerprint(self.path)  # earlier versions wrote an empty file

    def to_resume(self) -> Path | None:
        """The checkpoint of an interrupted run, if there is one."""
        return self.path if self.path.is_file() and not self.finished else None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved_step = self._step = trainer.global_step
        self._own = trainer.ckpt_path is not None and Path(trainer.ckpt_path) == self.path
        self._training = True
        self._stop.clear()
        self._after_step = None
        self._signal = signal.SIGTERM if trainer.received_sigterm else 0
        if threading.current_thread() is threading.main_thread():
            self._handlers = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if self._restore:
            self._restore = False
            if len(self._generators) == trainer.world_size:
                _set_generators(self._generators[trainer.global_rank])

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self._step:
            self._after_step = None
            return  # gradients are still being added up, and would be lost between two steps
        self._step = trainer.global_step
        # one that ends by a time limit is saved here, in the middle of its epoch; later Lightning counts it as over
        if (self._step % self.every_n_train_steps == 0 or trainer.should_stop) and self._step != self._saved_step:
            self._save(trainer)
        if self._told_to_stop(trainer):
            self._end(trainer)
        if trainer.world_size == 1:
            self._after_step = copy.deepcopy(trainer.fit_loop.state_dict()), [_generators()]

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self._training and self._signal and self._after_step is not None:
            self._in_validation = True
            self._end(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step != self._saved_step or not self._own:
            self._save(trainer, must=True)
        if self._told_to_stop(trainer, all=True):
            self._end(trainer)
        self._leave()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say that the run is finished: this is the last callback, all that follows the training is done."""
        if trainer.is_global_zero and _came_to_its_end(trainer):
            write_text(self.dirpath / FINISHED, f"{fingerprint(self.path)}\n" if self.path.is_file() else "")
            print(f"the trained policy is in {self.path}")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Say what an interrupted training can be resumed from."""
        if isinstance(exception, SIGTERMException):  # which is a SystemExit, with status 0
            exception.code = 128 + (self._signal or signal.SIGTERM)
        if self._training and trainer.is_global_zero:
            kept = f"the same command goes on from step {self._saved_step}"
            if not (self._own and self.path.is_file()):
                kept = (
                    f"no checkpoint was written yet (every {self.every_n_train_steps} steps), so the same command "
                    "trains from the first step; recordings stay as they are"
                )
            by = f" by {signal.Signals(self._signal).name}" if self._signal else ""
            print(f"\ninterrupted{by} at step {trainer.global_step}; {kept}")
        self._leave()
        if trainer.is_global_zero:
            FolderLock(self.dirpath).release()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.is_global_zero:
            FolderLock(self.dirpath).release()

    def state_dict(self) -> dict[str, Any]:
        return {"generators": self._generators}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._generators = state_dict["generators"]
        self._restore = True

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._in_validation and self._after_step is not None:
            checkpoint["loops"]["fit_loop"] = self._after_step[0]

    # ------------------------------------------------------------------ saving

    def _save(self, trainer: L.Trainer, must: bool = False) -> None:
        """Write ``last.ckpt``; all processes do. A disk's failure is reported, or an error if it ``must`` work."""
        if self._in_validation and self._after_step is not None:
            self._generators = self._after_step[1]
        else:
            self._generators = _generators_of_all_ranks(trainer)
        kept: Path | None = None
        failure: OSError | None = None
        try:
            if not self._own and trainer.is_global_zero and self.path.is_file():
                kept = self._keep_earlier()
            trainer.save_checkpoint(self.path, weights_only=False)
        except OSError as error:
            failure = error
            trainer.strategy.barrier("Trainer.save_checkpoint")  # where the other processes are
        if kept is not None:
            with contextlib.suppress(OSError):
                if self.path.is_file() and kept.samefile(self.path):
                    kept.unlink()  # nothing took its place
        if trainer.strategy.broadcast(failure is not None):
            if must:
                raise failure or UserError(f"the last checkpoint could not be written to {self.path}")
            if failure is not None:
                warnings.warn(
                    f"the checkpoint of step {trainer.global_step} could not be written: {failure.strerror} "
                    f"({failure.filename}). Training goes on; mend that before the next one",
                    stacklevel=2,
                )
            return
        self._saved_step, self._own = trainer.global_step, True
        if trainer.is_global_zero:
            (self.dirpath / FINISHED).unlink(missing_ok=True)
        if kept is not None:
            print(f"the checkpoint of an earlier run is kept as {kept}")

    def _keep_earlier(self) -> Path:
        """A second name for the checkpoint of an earlier run, which keeps it when the first is given to another."""
        written = time.strftime("%Y%m%d-%H%M%S", time.gmtime(self.path.stat().st_mtime))
        kept, number = self.dirpath / f"before-{written}.ckpt", 1
        while kept.exists():
            if kept.samefile(self.path):
                return kept  # of a run that was killed before it saved anything
            number += 1
            kept = self.dirpath / f"before-{written}-{number}.ckpt"
        try:
            os.link(self.path, kept)
        except OSError:  # a file system without second names
            self.path.rename(kept)
        return kept

    # ------------------------------------------------------------------ stopping

    def _note(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: training stops at the next place from which it can be resumed exactly."""
        if self._signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = number
        os.write(2, b"\nstopping after this step, with a checkpoint; Ctrl-C stops at once\n")

    def _leave(self) -> None:
        """Give the signals back to whom they were with."""
        self._training = False
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _told_to_stop(self, trainer: L.Trainer, all: bool = False) -> bool:
        """Whether a signal has reached any process; with several, known to all at the same step."""
        if trainer.world_size == 1:
            return bool(self._signal)
        if not all:
            signalled = torch.full((), float(self._signal != 0), device=trainer.strategy.root_device)
            self._stop.ask(trainer, signalled, True)
        return bool(self._stop.answers(all))

    def _end(self, trainer: L.Trainer) -> None:
        try:
            if self._saved_step != trainer.global_step or not self._own:
                self._save(trainer)
        finally:
            self._in_validation = False
        raise SIGTERMException


def _log_folders(trainer: L.Trainer) -> list[Path]:
    """Folders of the loggers, each of which holds a folder per run: ``lightning_logs/version_N``."""
    roots = [Path(root) for logger in trainer.loggers if (root := getattr(logger, "root_dir", None))]
    return [*roots, *(version for root in roots for version in root.glob("version_*"))]


def _came_to_its_end(trainer: L.Trainer) -> bool:
    """Whether training reached its number of steps or epochs or stopped early, and not a time limit."""
    if trainer.interrupted:
        return False
    steps = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    epochs = trainer.max_epochs not in (None, -1) and trainer.current_epoch >= trainer.max_epochs
    stopped = EarlyStoppingReason.NOT_STOPPED
    early = any(isinstance(c, EarlyStopping) and c.stopping_reason != stopped for c in trainer.early_stopping_callbacks)
    return bool(steps or epochs or early)


def _generators_of_all_ranks(trainer: L.Trainer) -> list[dict[str, torch.Tensor]]:
    own = _generators()
    states: list[dict[str, torch.Tensor]] = [own] * trainer.world_size
    if trainer.world_size > 1:
        torch.distributed.all_gather_object(states, own)
    return states


def _generators() -> dict[str, torch.Tensor]:
    own = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        own["cuda"] = torch.cuda.get_rng_state()
    return own


def _set_generators(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
