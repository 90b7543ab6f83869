"""Pictures of a validation, and below them what a tokenizer makes of them.

Place in the pipeline: a callback of tokenizers. Numbers do not tell which small things are lost, such as a rival's
health bar (paper 2411.04434, A.1); one look does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from bczoo.core import arguments
from bczoo.core.files import PartialPath, write_errors
from bczoo.train.events_file import EventsFile

FILE = "reconstructions.png"


class Reconstructions(L.Callback):
    """Writes ``reconstructions.png`` into the run's folder at every validation, and to TensorBoard where that is on.

    Rows of originals and of what became of them take turns; the pictures are the first of the validation, spread over
    its windows.

    Args:
        count: pictures.
        columns: in a row.
    """

    def __init__(self, count: int = 16, columns: int = 8) -> None:
        arguments.whole("count", count, 1)
        arguments.whole("columns", columns, 1)
        self.count, self.columns = count, columns
        self._picture: Tensor | None = None

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx == 0 and trainer.is_global_zero:
            # (B T, ...) to the first step of each window, then the second
            windows, steps = batch["valid"].shape
            order = torch.arange(windows * steps).view(windows, steps).T.flatten()[: self.count]
            rows = zip(
                outputs["frames"][order].cpu().split(self.columns),
                outputs["reconstructions"][order].cpu().split(self.columns),
                strict=True,
            )
            self._picture = make_grid(
                torch.cat([torch.cat([_filled(r, self.columns) for r in pair]) for pair in rows]), nrow=self.columns
            )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        picture, self._picture = self._picture, None
        if picture is None or trainer.sanity_checking:
            return
        path = Path(trainer.default_root_dir) / FILE
        with write_errors(path), PartialPath(path) as partial:
            Image.fromarray(picture.permute(1, 2, 0).numpy()).save(partial.path, format="PNG")
        for logger in trainer.loggers:
            if isinstance(logger, EventsFile):
                logger.log_image("reconstructions", path.read_bytes(), trainer.global_step)


def _filled(row: Tensor, columns: int) -> Tensor:
    """A row of pictures (n, 3, H, W) with black ones behind them, (columns, 3, H, W)."""
    return torch.cat([row, row.new_zeros(columns - len(row), *row.shape[1:])])
