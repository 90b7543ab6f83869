"""Writing what a model predicts.

Place in the pipeline: a callback of ``bczoo predict``; gathers the model's ``predict_step`` over all windows into
one safetensors file. Memory holds one batch: every tensor grows in a file of its own, in a hidden folder beside the
target, and these are joined at the end. So the disk needs room for twice the predictions.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, BinaryIO

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from bczoo.core.files import PartialPath, sweep, write_errors

DTYPES = {  # as safetensors calls them, in the order in which it writes them: the widest first
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class WritePredictions(BasePredictionWriter):
    """Writes ``predictions.safetensors``, one row per window (with several devices, one file per rank).

    Tensors: ``recording`` and ``start`` (N,), ``user`` and ``valid`` (N, T), and per group ``ids.<group>`` (most
    likely) and ``probability.<group>`` (of what the recording did), each (N, T, tokens).

    Lightning keeps all predictions in memory as well unless ``trainer.predict`` is called with
    ``return_predictions=False``, as ``bczoo predict`` does.

    Args:
        path: where to write.
    """

    def __init__(self, path: str = "predictions.safetensors") -> None:
        super().__init__(write_interval="batch")
        self.path = Path(path)
        self._growing: _Growing | None = None

    def write_on_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, prediction: dict[str, Tensor], *_: Any
    ) -> None:
        real = prediction["recording"] >= 0  # the others only fill up the batch
        if self._growing is None:
            path = self.path
            if trainer.world_size > 1:
                path = path.with_name(f"{path.stem}-{trainer.global_rank}{path.suffix}")
            sweep(path.parent)
            self._growing = _Growing(path)
        self._growing.append({k: v[real].cpu() for k, v in prediction.items()})

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        growing, self._growing = self._growing, None
        if growing is None:
            print("there are no windows to predict on")
            return
        growing.write()
        print(f"predictions on {growing.rows['recording']} windows written to {growing.path}")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """What was predicted until then is discarded."""
        growing, self._growing = self._growing, None
        if growing is not None:
            growing.discard()


class _Growing:
    """Tensors that grow by rows, in files, until :meth:`write` makes them one safetensors file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, int] = {}
        self._kinds: dict[str, tuple[torch.dtype, torch.Size]] = {}  # type and shape of a row
        self._files: dict[str, BinaryIO] = {}
        with write_errors(path):
            self._folder = PartialPath(path.with_name(f"{path.name}.parts"))
            self._folder.path.mkdir()

    def append(self, tensors: dict[str, Tensor]) -> None:
        if not self._files:
            self._kinds = {name: (t.dtype, t.shape[1:]) for name, t in tensors.items()}
            self.rows = dict.fromkeys(tensors, 0)
            with write_errors(self.path):
                self._files = {name: (self._folder.path / str(i)).open("w+b") for i, name in enumerate(tensors)}
        for name, tensor in tensors.items():
            if self._kinds[name] != (tensor.dtype, tensor.shape[1:]):
                raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, before it was {self._kinds[name]}")
            with write_errors(self.path):
                self._files[name].write(_bytes(tensor))
            self.rows[name] += len(tensor)

    def write(self) -> None:
        """Join the files to the one that was asked for, byte for byte as safetensors' own ``save_file`` writes it."""
        widest = {dtype: i for i, dtype in enumerate(DTYPES)}
        names = sorted(self._kinds, key=lambda name: (widest[self._kinds[name][0]], name))
        header, end = {}, 0
        for name in names:
            (dtype, row), rows, begin = self._kinds[name], self.rows[name], end
            end += rows * row.numel() * dtype.itemsize
            header[name] = {"dtype": DTYPES[dtype], "shape": [rows, *row], "data_offsets": [begin, end]}
        head = json.dumps(header, separators=(",", ":")).encode()
        head += b" " * (-len(head) % 8)
        try:
            with write_errors(self.path), PartialPath(self.path) as partial, partial.path.open("wb") as out:
                out.write(len(head).to_bytes(8, "little") + head)
                for name in names:
                    self._files[name].seek(0)
                    shutil.copyfileobj(self._files[name], out, 2**24)
        finally:
            self.discard()

    def discard(self) -> None:
        for file in self._files.values():
            file.close()
        self._folder.discard()


def _bytes(tensor: Tensor) -> memoryview:
    """The content of a tensor, also of types that numpy does not have."""
    flat = tensor.contiguous().view(-1)
    return (flat.view(torch.uint8).numpy() if flat.numel() else np.empty(0, np.uint8)).data
