"""A checkpoint to resume from, and how a run finds it again.

Place in the pipeline: a callback of the trainer; the command line's ``ckpt_path: last`` looks for what it wrote.
An interrupted run goes on from ``last.ckpt``, with the random generators of every process as they were, so that dropout
goes on as it would have. A file ``finished`` beside it says that the run came to its end, with all that follows the
training: it is evaluated from there, and training again starts anew. ``finished`` holds the fingerprint of its
``last.ckpt``, so that it never speaks of the checkpoint of another run, whenever that was killed.

    <run>/checkpoints/last.ckpt                 replaced as a whole (bczoo.train.callbacks.checkpoint_io)
    <run>/checkpoints/best.ckpt                 best so far by validation (bczoo.train.callbacks.best)
    <run>/checkpoints/step-<n>.ckpt             the newest ones and the series, if asked for
    <run>/checkpoints/before-<time>.ckpt        of earlier runs
    <run>/checkpoints/*-before-<time>.ckpt      best and numbered ones of earlier runs
    <run>/checkpoints/finished, validated
    <run>/checkpoints/.lock                     who writes here (bczoo.train.callbacks.lock)

A checkpoint is a file, or a folder where all processes write (bczoo.hub.checkpoint_folder).
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import re
import shutil
import signal
import threading
import time
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.utilities.exceptions import SIGTERMException

from bczoo.core import arguments
from bczoo.core.errors import UserError
from bczoo.core.files import PartialPath, link, remove, set_aside, sweep, write_text
from bczoo.hub.checkpoint_folder import CHECKSUMS
from bczoo.hub.state import KEEPER_STATE, RUN_STATE, fingerprint, is_checkpoint, kept_by
from bczoo.train.callbacks.agreed import Agreed
from bczoo.train.callbacks.best import OF_TRAINING, VALIDATED, Best, best_in, challenger, check_monitor
from bczoo.train.callbacks.checkpoint_io import AtomicCheckpointIO, install, write_tensors
from bczoo.train.callbacks.final_validation import is_last_step, validation_due
from bczoo.train.callbacks.lock import FolderLock
from bczoo.train.run_record import BEST, LAST

FINISHED = "finished"
NUMBERED = re.compile(r"step-\d+\.ckpt")


class ResumableCheckpoint(Checkpoint):
    """Keeps ``last.ckpt`` up to date: every so many optimiser steps, at the end, and when the run is asked to stop.

    After every validation that is better than those before, ``best.ckpt`` gets the weights. Where a run is named as a
    policy, it means these.

    The checkpoints of an earlier run in the same folder are kept as ``before-<time>.ckpt`` and
    ``best-before-<time>.ckpt``, never overwritten. One
    training at a time writes to the folder. A save that fails, because the disk is full, is reported and made up for by
    the next; if it is the last one, it is an error.

    Training goes on while ``last.ckpt`` is written from a copy in the processor's memory. The next save, a validation's
    end and the end of the training wait for it, so that no file is ahead of ``last.ckpt``. The first one of a run and
    ``best.ckpt``, a third as large, are written before training goes on.

    Ctrl-C and SIGTERM end the training behind the step that it is in, or within a validation, with a checkpoint of
    that step; the status of the process is 130 or 143 then. A second Ctrl-C does not wait. With several processes a
    validation is not broken off.

    Args:
        dirpath: folder of the checkpoints; ``checkpoints`` in the trainer's default_root_dir if left out.
        every_n_train_steps: optimiser steps between two saves.
        monitor: metric of the validation that decides which weights are the best; null keeps none but the last.
        mode: whether the best value is the lowest (min) or the highest (max).
        keep: how many of the newest checkpoints stay. The newest is ``last.ckpt``; with more than one, they are
            ``step-<n>.ckpt`` too, which takes no more room where the file system has second names.
        series_every_n_train_steps: optimiser steps between two checkpoints that are kept for good, as
            ``step-<n>.ckpt``, to study a training by; null for none. They are saved whatever every_n_train_steps says.
        background: write ``last.ckpt`` while training goes on, which takes as much of the processor's memory as the
            checkpoint is large; false waits instead.
    """

    def __init__(
        self,
        dirpath: str | None = None,
        every_n_train_steps: int = 1000,
        monitor: str | None = "val/loss",
        mode: str = "min",
        keep: int = 1,
        series_every_n_train_steps: int | None = None,
        background: bool = True,
    ) -> None:
        check_monitor(monitor, mode)
        arguments.whole("keep", keep, 1)
        for name, steps in {
            "every_n_train_steps": every_n_train_steps,
            "series_every_n_train_steps": series_every_n_train_steps or every_n_train_steps,
        }.items():
            arguments.whole(name, steps, 1)
        self.dirpath = Path(dirpath or "checkpoints")
        self._anywhere = dirpath is None
        self.every_n_train_steps = every_n_train_steps
        self.monitor, self.mode = monitor, mode
        self.keep, self.series_every_n_train_steps, self.background = keep, series_every_n_train_steps, background
        self._writer: AtomicCheckpointIO | None = None
        self._passing: list[int] = []  # steps of numbered checkpoints that give way to newer ones
        self._writing: int | None = None  # step of the checkpoint that is written in the background
        self.compare_anew = False  # what was the best up to here does not count: the data is other
        self._run = uuid.uuid4().hex  # mark in all checkpoints of a run
        self._best: Best | None = None
        self._saving_best = False
        self._unsaved: Best | None = None  # that no checkpoint could be written of
        self._missed = False  # it was told that the monitored metric is not there
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
    def state_key(self) -> str:
        return KEEPER_STATE

    @property
    def path(self) -> Path:
        return self.dirpath / LAST

    @property
    def best_path(self) -> Path:
        return self.dirpath / BEST

    @property
    def best(self) -> Best | None:
        """What ``best.ckpt`` is the best of; None as long as this run has none."""
        return self._best

    @property
    def go_on(self) -> str:
        """What the same command does after this run was interrupted, in words."""
        if self._own and is_checkpoint(self.path):
            return f"the same command goes on from step {self._saved_step}"
        return (
            f"no checkpoint was written yet (every {self.every_n_train_steps} steps), so the same command trains from "
            "the first step; recordings stay as they are"
        )

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
        if self.path.is_dir() and not is_checkpoint(self.path):
            raise UserError(f"{self.path} is a folder that holds no checkpoint, where one is to be; move it away")
        for folder in {self.dirpath, Path(trainer.default_root_dir)}:
            sweep(folder)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.locate(trainer.default_root_dir)
        if stage != "fit":
            return
        self.claim(trainer)
        self._writer = install(trainer)
        least = sum(p.nbytes for p in pl_module.parameters() if not p.is_meta)
        if trainer.is_global_zero and (free := shutil.disk_usage(self.dirpath).free) < least:
            raise UserError(
                f"{self.dirpath} has {free / 1e6:,.1f} MB left, and the weights alone take {least / 1e6:,.1f} MB; free "
                "space there, or give another --trainer.default_root_dir"
            )

    @property
    def finished(self) -> bool:
        """Whether ``last.ckpt`` is of a run that came to its end."""
        if not is_checkpoint(self.path):
            return False
        try:
            of = (self.dirpath / FINISHED).read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return False
        return not of or of == fingerprint(self.path)  # earlier versions wrote an empty file

    def to_resume(self) -> Path | None:
        """The checkpoint of an interrupted run, if there is one."""
        return self.path if is_checkpoint(self.path) and not self.finished else None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved_step = self._step = trainer.global_step
        self._own = trainer.ckpt_path is not None and Path(trainer.ckpt_path) == self.path
        if self._own and trainer.is_global_zero:
            self._set_others_aside(self._run)
            self._keep_numbered(self._saved_step)  # in case it was killed between the two
        self._best = None if self.compare_anew else best_in(self.best_path, self._run)
        self._unsaved, self._missed = None, False
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
        if self._to_save(trainer) and self._step not in (self._saved_step, self._writing):
            self._save(trainer, background=self.background)
        if self._told_to_stop(trainer):
            self._end(trainer)
        if trainer.world_size == 1:
            self._after_step = copy.deepcopy(trainer.fit_loop.state_dict()), [_generators()]

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self._training and self._signal and self._after_step is not None:
            self._in_validation = True
            self._end(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._training and not trainer.sanity_checking:
            self._finish_writing(trainer)
            if (found := self._challenger(trainer, self._best, trainer.global_step)) is not None:
                self._save_best(trainer, found)
            if trainer.is_global_zero:
                self._mark_validated(self._run, trainer.global_step)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._finish_writing(trainer)
        if trainer.global_step != self._saved_step or not self._own:
            self._save(trainer, must=True)
        if self._unsaved is not None and self._unsaved.step == trainer.global_step:
            self._save_best(trainer, self._unsaved, must=True)
        if self._told_to_stop(trainer, all=True):
            self._end(trainer)
        self._leave()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say that the run is finished: this is the last callback, all that follows the training is done."""
        if trainer.is_global_zero and _came_to_its_end(trainer):
            write_text(self.dirpath / FINISHED, f"{fingerprint(self.path)}\n" if is_checkpoint(self.path) else "")
            best = "" if self.best is None else f"; the best by validation, {self.best}, is {self.best_path}"
            print(f"the trained policy is in {self.path}{best}")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Say what an interrupted training can be resumed from."""
        if isinstance(exception, SIGTERMException):  # which is a SystemExit, with status 0
            exception.code = 128 + (self._signal or signal.SIGTERM)
        if (step := self._writing) is not None:
            self._writing = None
            with contextlib.suppress(Exception):  # what ends the run is told; what was saved follows from this
                if self._wait_for_writer() is None:
                    self._saved_step = step
        if self._training and trainer.is_global_zero:
            by = f" by {signal.Signals(self._signal).name}" if self._signal else ""
            print(f"\ninterrupted{by} at step {trainer.global_step}; {self.go_on}")
        self._leave()
        if trainer.is_global_zero:
            FolderLock(self.dirpath).release()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.is_global_zero:
            FolderLock(self.dirpath).release()

    def state_dict(self) -> dict[str, Any]:
        best = {"best": self._best.to_dict()} if self._best is not None else {}
        return {"generators": self._generators, "run": self._run, "passing": self._passing_with(self._step), **best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._generators = state_dict["generators"]
        self._run = state_dict.get("run", self._run)
        self._passing = list(state_dict.get("passing", []))
        self._best = best_in(self.best_path, self._run)  # of a training that is over no more will be heard
        self._restore = True

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._in_validation and self._after_step is not None:
            checkpoint["loops"]["fit_loop"] = self._after_step[0]
        if self._saving_best:
            for key in OF_TRAINING:
                checkpoint.pop(key, None)

    # ------------------------------------------------------------------ saving

    def _to_save(self, trainer: L.Trainer) -> bool:
        """Whether a checkpoint belongs behind this step."""
        if self._step % self.every_n_train_steps == 0 or self._in_series(self._step) or is_last_step(trainer):
            return True
        # one that ends by a time limit is saved here, in the middle of its epoch; later Lightning counts it as over
        # and the best checkpoint needs a last one of its run beside it
        return trainer.should_stop or (not self._own and validation_due(trainer))

    def _save(self, trainer: L.Trainer, must: bool = False, background: bool = False) -> None:
        """Write ``last.ckpt``; all processes do. A disk's failure is reported, or an error if it ``must`` work."""
        self._finish_writing(trainer)
        if self._in_validation and self._after_step is not None:
            self._generators = self._after_step[1]
        else:
            self._generators = _generators_of_all_ranks(trainer)
        kept: Path | None = None
        failure: OSError | None = None
        try:
            if not self._own and trainer.is_global_zero and is_checkpoint(self.path):
                kept = self._keep_earlier()
            if self._writer is not None:
                self._writer.background = background and self._own
            trainer.save_checkpoint(self.path, weights_only=False)
        except OSError as error:
            failure = error
            trainer.strategy.barrier("Trainer.save_checkpoint")  # where the other processes are
        if self._writer is not None and self._writer.background and failure is None:
            self._writing, self._writer.background = trainer.global_step, False
            return
        if kept is not None and is_checkpoint(self.path) and _same(kept, self.path):
            remove(kept)  # nothing took its place
        if self._written(trainer, trainer.global_step, failure, must, kept) and kept is not None:
            print(f"the checkpoint of an earlier run is kept as {kept}")

    def _finish_writing(self, trainer: L.Trainer) -> None:
        """Wait for the checkpoint that is written in the background, and say if it could not be; all processes do."""
        if (step := self._writing) is not None:
            failure, self._writing = self._wait_for_writer(), None
            self._written(trainer, step, failure)

    def _wait_for_writer(self) -> OSError | None:
        try:
            if self._writer is not None:
                self._writer.wait()
        except OSError as error:
            return error
        return None

    def _written(
        self, trainer: L.Trainer, step: int, failure: OSError | None, must: bool = False, kept: Path | None = None
    ) -> bool:
        """Draw the consequences of a checkpoint that was written, or could not be; returns whether it was."""
        if trainer.strategy.broadcast(failure is not None):
            if must:
                raise failure or UserError(f"the last checkpoint could not be written to {self.path}")
            if failure is not None and trainer.is_global_zero:
                warnings.warn(
                    f"the checkpoint of step {step} could not be written: {failure.strerror} "
                    f"({failure.filename}). Training goes on; mend that before the next one",
                    stacklevel=2,
                )
            return False
        if trainer.is_global_zero:
            (self.dirpath / FINISHED).unlink(missing_ok=True)
            if not self._own:
                self._set_others_aside(self._run, kept)
            self._keep_numbered(step)
        self._saved_step, self._own = step, True
        return True

    def _passing_with(self, step: int) -> list[int]:
        passes = step > 0 and self.keep > 1 and not self._in_series(step)
        return sorted({*self._passing, step}) if passes else list(self._passing)

    def _in_series(self, step: int) -> bool:
        return self.series_every_n_train_steps is not None and step % self.series_every_n_train_steps == 0

    def _keep_numbered(self, step: int) -> None:
        """Give ``last.ckpt`` its number as a second name if it is to stay; let go those that are not to any more."""
        if step and (self.keep > 1 or self._in_series(step)):
            try:
                _link(self.path, self.dirpath / f"step-{step}.ckpt")
            except OSError as error:
                warnings.warn(f"step-{step}.ckpt could not be kept: {error.strerror} ({error.filename})", stacklevel=2)
                return
        self._passing = self._passing_with(step)
        while len(self._passing) > (self.keep if self.keep > 1 else 0):
            remove(self.dirpath / f"step-{self._passing.pop(0)}.ckpt")

    def _save_best(self, trainer: L.Trainer, found: Best, must: bool = False) -> None:
        """Write ``best.ckpt``; all processes do. A disk's failure is reported, or an error if it ``must`` work."""
        if not self._own:
            return  # the last one could not be written either, which has been told
        before, self._best = self._best, found
        failure: OSError | None = None
        self._saving_best = True
        try:
            trainer.save_checkpoint(self.best_path, weights_only=False)
        except OSError as error:
            failure = error
            trainer.strategy.barrier("Trainer.save_checkpoint")  # where the other processes are
        finally:
            self._saving_best = False
        self._unsaved = None
        if not trainer.strategy.broadcast(failure is not None):
            return
        self._best, self._unsaved = before, found
        if must:
            raise failure or UserError(f"the best checkpoint could not be written to {self.best_path}")
        if failure is not None:
            warnings.warn(
                f"the best checkpoint so far ({found}) could not be written: {failure.strerror} ({failure.filename}); "
                "training goes on",
                stacklevel=2,
            )

    def _challenger(self, trainer: L.Trainer, best: Best | None, step: int) -> Best | None:
        """The validation that has just been if it is the best so far; the same in all processes."""
        if self.monitor is None:
            return None
        metrics = trainer.callback_metrics
        if self.monitor not in metrics:
            if not self._missed:
                known = ", ".join(sorted(name for name in metrics if name.startswith("val/"))) or "nothing"
                warnings.warn(
                    f"no best checkpoint is kept: the validation logs no {self.monitor!r}, but {known}; name one of "
                    "these as monitor of bczoo.ResumableCheckpoint, or null",
                    stacklevel=2,
                )
            self._missed = True
            return None
        if math.isnan(float(metrics[self.monitor])) and not self._missed:
            self._missed = True
            warnings.warn(
                f"no best checkpoint can be told: {self.monitor} is not a number, as where no step of the validation "
                "recordings has an action to learn from",
                stacklevel=2,
            )
        found: Best | None = trainer.strategy.broadcast(challenger(best, metrics, self.monitor, self.mode, step))
        return found

    def _set_others_aside(self, run: str, kept: Path | None = None) -> None:
        """Give best and numbered checkpoints of another run other names, beside the last one of that run."""
        for path in self.dirpath.glob("step-*.ckpt"):
            if NUMBERED.fullmatch(path.name) and kept_by(path, KEEPER_STATE).get("run") != run:
                set_aside(path)
        if not is_checkpoint(self.best_path) or kept_by(self.best_path, KEEPER_STATE).get("run") == run:
            return
        if kept is None or (aside := self.dirpath / f"best-{kept.name}").exists():
            set_aside(self.best_path)
        else:
            self.best_path.rename(aside)

    def _mark_validated(self, run: str, step: int) -> None:
        with contextlib.suppress(OSError):  # then this validation is made once more if the run is interrupted
            write_text(self.dirpath / VALIDATED, f"{run} {step}\n")

    def has_validated(self, checkpoint: Mapping[str, Any]) -> bool:
        """Whether the validation of a checkpoint's step came to its end, and what follows from it is on the disk."""
        run = checkpoint.get("callbacks", {}).get(self.state_key, {}).get("run")
        try:
            marked = (self.dirpath / VALIDATED).read_text(encoding="utf-8").split()
        except OSError:
            return False
        return marked == [run, str(checkpoint["global_step"])]

    def take_into_account(self, trainer: L.Trainer, checkpoint: Mapping[str, Any], measured: Mapping[str, Any]) -> None:
        """Do after a validation outside of training, of the weights in ``last.ckpt``, what follows on one within.

        Args:
            trainer: that has just validated.
            checkpoint: content of ``last.ckpt``.
            measured: metrics of the validation and its step, for the record.
        """
        callbacks = checkpoint["callbacks"]
        state, step = callbacks.get(self.state_key, {}), checkpoint["global_step"]
        if not isinstance(run := state.get("run"), str):
            return  # of an earlier version
        if trainer.is_global_zero:
            self._set_others_aside(run)
        best = None if self.compare_anew else best_in(self.best_path, run)
        found = self._challenger(trainer, best, step)
        if not trainer.is_global_zero:
            return
        if found is not None:
            kept = {key: value for key, value in checkpoint.items() if key not in OF_TRAINING}
            states = {
                self.state_key: {**state, "best": found.to_dict()},
                RUN_STATE: {**callbacks.get(RUN_STATE, {}), "measured": dict(measured)},
            }
            write_tensors(self.best_path, {**kept, "callbacks": {**callbacks, **states}})
            self.compare_anew = False
        self._mark_validated(run, step)

    def _keep_earlier(self) -> Path:
        """A second name for the checkpoint of an earlier run, which keeps it when the first is given to another."""
        written = time.strftime("%Y%m%d-%H%M%S", time.gmtime(self.path.stat().st_mtime))
        kept, number = self.dirpath / f"before-{written}.ckpt", 1
        while kept.exists():
            if _same(kept, self.path):
                return kept  # of a run that was killed before it saved anything
            number += 1
            kept = self.dirpath / f"before-{written}-{number}.ckpt"
        try:
            _link(self.path, kept)
        except OSError:  # a file system without second names, and without room for another copy
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
            self._finish_writing(trainer)
            if self._saved_step != trainer.global_step or not self._own:
                self._save(trainer)
        finally:
            self._in_validation = False
        raise SIGTERMException


def _link(path: Path, name: Path) -> None:
    """Give a checkpoint, file or folder, a second name; a copy where the file system has no second names."""
    if is_checkpoint(name) and _same(path, name):
        return
    with PartialPath(name) as partial:
        link(path, partial.path)
        remove(name)


def _same(one: Path, other: Path) -> bool:
    """Whether two checkpoints are the same one under two names, or a copy of it."""
    files = [path / CHECKSUMS if path.is_dir() else path for path in (one, other)]
    return files[0].samefile(files[1]) or fingerprint(one) == fingerprint(other) != ""


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
