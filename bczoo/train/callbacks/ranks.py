"""Which process of a training on several devices died first.

Place in the pipeline: a callback that every trainer command has. Where one process is killed, by the kernel for want of
memory or by hand, the others fail a moment later in whatever they exchange, and end with errors that tell nothing. So
the first process, which Lightning had start the others, waits for them; each of the others looks whether it is still
there. Whoever finds another one dead says so in one line and ends all. torchrun and SLURM watch the processes that they
start themselves.
"""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import lightning as L
from lightning.fabric.plugins.environments import LightningEnvironment

from bczoo.train.callbacks.checkpoint import ResumableCheckpoint

LOOK_S = 0.2  # seconds between two looks at whether the first process is there
HEARD_S = 5.0  # seconds that an error is held back, in case a process has died


class Ranks(L.Callback):
    """Ends all processes of a training if one of them is killed, and says which and what to do."""

    def __init__(self) -> None:
        self._watched: list[threading.Thread] = []
        self._over = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        started_here = isinstance(getattr(trainer.strategy, "cluster_environment", None), LightningEnvironment)
        if trainer.world_size == 1 or not started_here or self._watched:
            return
        started: list[subprocess.Popen[bytes]] = getattr(trainer.strategy.launcher, "procs", [])
        tasks: list[tuple[Any, ...]] = [(self._wait_for, trainer, 1 + i, started) for i in range(len(started))]
        if trainer.local_rank > 0:
            tasks = [(self._look_after_first, trainer, os.getppid())]
        if started:
            atexit.register(_kill, started)  # so that none of them takes the end of the first one for its death
        for function, *arguments in tasks:
            self._watched.append(threading.Thread(target=function, args=arguments, daemon=True, name="ranks"))
            self._watched[-1].start()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Hold back an error of the exchange, which a process that died would explain."""
        if isinstance(exception, RuntimeError) and self._watched:
            time.sleep(HEARD_S)
        self._over = True

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._over = True

    def _wait_for(self, trainer: L.Trainer, rank: int, started: list[subprocess.Popen[bytes]]) -> None:
        process = started[rank - 1]
        status = process.wait()
        if status > 0:
            time.sleep(HEARD_S)  # what ended it may be about to end all
        if status != 0 and not self._over:
            _kill(started)
            name = f"process {rank} (pid {process.pid})"
            killed = f"{name} was killed by {signal.Signals(-status).name}" if status < 0 else ""
            _end(trainer, killed or f"{name} ended with the error above")

    def _look_after_first(self, trainer: L.Trainer, first: int) -> None:
        while os.getppid() == first and not self._over:
            time.sleep(LOOK_S)
        if not self._over:
            _end(trainer, f"process 0 (pid {first}), which had started the others, was killed", trainer.local_rank == 1)


def _kill(started: list[subprocess.Popen[bytes]]) -> None:
    for process in started:
        process.kill()


def _end(trainer: L.Trainer, what: str, tell: bool = True) -> None:
    keeper = next((c for c in trainer.checkpoint_callbacks if isinstance(c, ResumableCheckpoint)), None)
    go_on = f"; {keeper.go_on}" if keeper is not None and trainer.training else ""
    memory = ". The kernel kills where memory is short (dmesg tells): take a smaller batch or fewer workers of the data"
    if tell:
        sys.stdout.flush()
        hint = memory if "killed" in what else ""
        os.write(2, f"\nbczoo: {what}, so all {trainer.world_size} processes end{go_on}{hint}\n".encode())
    os._exit(1)
