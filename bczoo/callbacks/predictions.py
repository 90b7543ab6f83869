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


class WritePredictions(BasePredictionWriter):
    """Writes ``predictions.safetensors``, one row per window (with several devices, one file per rank).

    Tensors: ``recording`` and ``start`` (N,), ``user`` and ``valid`` (N, T), and per group ``ids.<group>`` (most
    likely) and ``probability.<group>`` (of what the recording did), each (N, T, tokens).

    Args:
        path: where to write.
    """

    def __init__(self, path: str = "predictions.safetensors") -> None:
        super().__init__(write_interval="epoch")
        self.path = Path(path)

    def write_on_epoch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, predictions: Any, batch_indices: Any
    ) -> None:
        rows = {k: torch.cat([p[k] for p in predictions]).contiguous().cpu() for k in predictions[0]}
        path = self.path
        if trainer.world_size > 1:
            path = path.with_name(f"{path.stem}-{trainer.global_rank}{path.suffix}")
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(rows, path)
        print(f"predictions of {len(rows['recording'])} windows written to {path}")
