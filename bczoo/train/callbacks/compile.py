"""Compiling the blocks of a model for training.

Place in the pipeline: a callback; ``--trainer.callbacks+=bczoo.CompileBlocks``. The blocks are compiled one by one, so
that one compilation serves all of them, weights keep their names, and sharding sees what it shards.
"""

from __future__ import annotations

from typing import Any

import lightning as L
from torch import nn

from bczoo.core.errors import UserError
from bczoo.models.model import Model


class CompileBlocks(L.Callback):
    """Compiles the blocks (:meth:`bczoo.Model.blocks`) for the steps of training; validation and play run them as
    written, because their shapes are others and each would be compiled anew.

    The first step takes longer, on a GPU by up to some minutes.

    Args:
        mode: of ``torch.compile``, such as max-autotune.
    """

    def __init__(self, mode: str | None = None) -> None:
        self.mode = mode
        self._compiled: dict[nn.Module, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        blocks = pl_module.blocks() if isinstance(pl_module, Model) else []
        if not blocks:
            raise UserError(
                f"{type(pl_module).__name__} has no blocks to compile; name them in its method blocks(), or leave "
                "bczoo.CompileBlocks out"
            )
        for block in blocks:
            block.compile(mode=self.mode, dynamic=False)
        self._compiled = {block: block._compiled_call_impl for block in blocks}

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._use(False)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._use(True)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._use(False)
        self._compiled = {}

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._use(False)

    def _use(self, compiled: bool) -> None:
        for block, call in self._compiled.items():
            block._compiled_call_impl = call if compiled else None
