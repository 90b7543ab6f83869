"""How fast a training goes, and what holds it up.

Place in the pipeline: a callback that every ``bczoo fit`` has. It measures between the hooks of the trainer, without
waiting for the device in any step but those whose numbers are logged.
"""

from __future__ import annotations

import math
import time
import warnings
from typing import Any

import lightning as L
import torch
from torch import Tensor

from bczoo.core.devices import bfloat16_cost
from bczoo.models.model import Model
from bczoo.train.flops import flops_per_window, peak_flops

HELD_UP = 0.2  # share of the time spent waiting for data, from which on a word is said
SLOWER = 1.2  # times as long, from which on bfloat16 is warned of
STEPS_TO_JUDGE = 20  # optimiser steps without validation before that word


class Throughput(L.Callback):
    """Logs the speed of training, over the steps since it was last logged and all processes together.

    - ``speed/windows``, ``speed/frames``, ``speed/tokens``: a second; tokens are those of the transformer
    - ``speed/waiting``: share of the time in which this process waited for its next batch
    - ``speed/mfu``: model FLOP/s utilisation, where the device's peak is known
    - ``speed/memory_gb``: most memory taken on the device, on a GPU
    - ``speed/hours``: hours of game seen since the training began
    - ``speed/hours_left``: until the last step at this speed, without validations; where there is a last step

    A training that waits for data is told so once, with what to change; so is one in bfloat16 on a processor that is
    slower in it.
    """

    def __init__(self) -> None:
        self._seen = 0  # frames, of all processes, over the whole training
        self._per_window: int | None = None
        self._warned = False
        self._since: float | None = None  # when the steps began that are counted
        self._asked_at: float | None = None  # when the next batch was waited for
        self._waited, self._batches, self._windows, self._frames = 0.0, 0, 0, 0

    def state_dict(self) -> dict[str, Any]:
        return {"frames": self._seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seen = state_dict["frames"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start()
        if pl_module.device.type == "cpu" and str(trainer.precision).startswith("bf16"):
            _warn_of_bfloat16(str(trainer.precision))
        peak = peak_flops(pl_module.device)
        if peak is not None and isinstance(pl_module, Model) and self._per_window is None:
            self._per_window = flops_per_window(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start()  # what was not training does not count

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, *_: Any) -> None:
        if self._asked_at is not None:
            self._waited += time.perf_counter() - self._asked_at

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        valid = batch.get("valid") if isinstance(batch, dict) else None
        if not isinstance(valid, Tensor):
            return
        if self._since is None:  # the first batch warms up
            self._since = time.perf_counter()
        else:
            self._batches += 1
            self._windows += valid.shape[0] * trainer.world_size
            self._frames += valid.numel() * trainer.world_size
        self._seen += valid.numel() * trainer.world_size
        if self._windows and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._log(trainer, pl_module)
        self._asked_at = time.perf_counter()

    def _start(self) -> None:
        self._since = self._asked_at = None
        self._waited, self._batches, self._windows, self._frames = 0.0, 0, 0, 0

    def _log(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert self._since is not None
        device = pl_module.device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - self._since
        fps = getattr(getattr(pl_module, "input_spec", None), "fps", None)
        values = {
            "speed/windows": self._windows / seconds,
            "speed/frames": self._frames / seconds,
            "speed/tokens": self._frames * getattr(pl_module, "tokens_per_step", 1) / seconds,
            "speed/waiting": self._waited / seconds,
        }
        if math.isfinite(steps := trainer.estimated_stepping_batches):
            batches = (steps - trainer.global_step) * trainer.accumulate_grad_batches
            values["speed/hours_left"] = batches * seconds / self._batches / 3600
        if fps:
            values["speed/hours"] = self._seen / fps / 3600
        if device.type == "cuda":
            values["speed/memory_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
        if (peak := peak_flops(device)) is not None and self._per_window:
            values["speed/mfu"] = self._per_window * self._windows / seconds / (peak * trainer.world_size)
        pl_module.log_dict(values, batch_size=1)
        self._judge(trainer, values["speed/waiting"])
        self._start()
        self._since = time.perf_counter()

    def _judge(self, trainer: L.Trainer, waiting: float) -> None:
        if self._warned or waiting < HELD_UP or trainer.global_step < STEPS_TO_JUDGE or not trainer.is_global_zero:
            return
        self._warned = True
        workers = getattr(getattr(trainer, "datamodule", None), "num_workers", 0)
        what = "raise --data.num_workers" if workers else "set --data.num_workers to the number of processor cores"
        warnings.warn(
            f"training waits for its data {100 * waiting:.0f} % of the time; {what}, record smaller frames (--size), "
            "or put the recordings on a faster disk",
            stacklevel=2,
        )


def _warn_of_bfloat16(precision: str) -> None:
    """Say that a processor is slower in bfloat16, where it is."""
    if (cost := bfloat16_cost()) > SLOWER:
        warnings.warn(
            f"--trainer.precision {precision}: a matrix product in bfloat16 takes {cost:.1f} times as long as in "
            "float32 on this processor; --trainer.precision 32-true is faster here",
            stacklevel=2,
        )
