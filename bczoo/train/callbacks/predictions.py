"""Writing what a policy predicts.

Place in the pipeline: a callback of ``bczoo predict``; gathers the policy's ``predict_step`` over all windows into
one safetensors file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from safetensors.torch import save_file
from torch import Tensor

from bczoo.core.files import PartialPath, sweep, system_errors


class WritePredictions(BasePredictionWriter):
    """Writes ``predictions.safetensors``, one row per window (with several devices, one file per rank).

    Tensors: ``recording`` and ``start`` (N,), ``user`` and ``valid`` (N, T), and per group ``ids.<group>`` (most
    likely) and ``probability.<group>`` (of what the recording did), each (N, T, tokens).

    Args:
        path: where to write.
    """

    def __init__(self, path: str = "predictions.safetensors") -> None:
        super().__init__(write_interval="batch")
        self.path = Path(path)
        self._rows: list[dict[str, Tensor]] = []

    def write_on_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, prediction: dict[str, Tensor], *_: Any
    ) -> None:
        real = prediction["recording"] >= 0  # the others only fill up the batch
        self._rows.append({k: v[real].cpu() for k, v in prediction.items()})

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        rows, self._rows = self._rows, []
        if not rows:
            print("there are no windows to predict on")
            return
        path = self.path
        if trainer.world_size > 1:
            path = path.with_name(f"{path.stem}-{trainer.global_rank}{path.suffix}")
        sweep(path.parent)
        with PartialPath(path) as partial, system_errors():
            save_file({k: torch.cat([r[k] for r in rows]) for k in rows[0]}, partial.path)
        print(f"predictions on {sum(len(r['recording']) for r in rows)} windows written to {path}")
