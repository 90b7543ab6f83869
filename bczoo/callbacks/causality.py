"""The causality score in validation.

Place in the pipeline: a callback in any YAML; scores every validation batch beside the policy's own validation step
and logs means over the epoch (paper 2601.04575, section 4; definitions in :mod:`bczoo.causality.scores`).
"""

from __future__ import annotations

from typing import Any

import lightning as L

from bczoo.causality.metrics import CausalityMetrics, evaluate
from bczoo.causality.perturb import KINDS
from bczoo.errors import UserError
from bczoo.spec import Batch


class CausalityScore(L.Callback):
    """Logs ``val/causality`` in total and per action group, ``val/action_reliance`` and ``val/visual_share``.

    The score is high where the policy acts on the current picture and 0 where the picture does not matter. A policy may
    score high and be wrong: read it beside the loss.

    Args:
        perturb: what is shown instead of the recorded picture: swap (a picture from elsewhere), freeze (that of half a
            second ago), blank (the clip's mean colour), noise. The first is ``val/causality``, the others
            ``val/causality_<name>``.
        replaced: how many steps up to the decision show it.
        reliance: score the reliance on past actions too.
    """

    def __init__(self, perturb: list[str] | None = None, replaced: int = 1, reliance: bool = True) -> None:
        self.perturb = ["swap"] if perturb is None else perturb
        if unknown := [kind for kind in self.perturb if kind not in KINDS]:
            raise UserError(f"there are no perturbations {unknown}; choose of {', '.join(KINDS)}")
        if replaced < 1:
            raise UserError(f"replaced is a number of steps from 1 on, got {replaced}")
        self.replaced, self.reliance = replaced, reliance
        self._metrics: dict[str, CausalityMetrics] = {}

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        for part in ("val", "test"):
            self._metrics[part] = CausalityMetrics(pl_module.action_space, self.perturb, self.reliance)

    def _score(self, pl_module: Any, batch: Batch, part: str) -> None:
        metrics = self._metrics[part].to(pl_module.device)
        metrics.update(evaluate(pl_module, batch, self.perturb, self.replaced, self.reliance))

    def _log(self, pl_module: Any, part: str) -> None:
        metrics = self._metrics[part]
        # every rank takes part, also one without a counted step: computing reduces over ranks
        pl_module.log_dict({f"{part}/{name}": value for name, value in metrics.compute().items()})
        metrics.reset()

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._score(pl_module, batch, "val")

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._log(pl_module, "val")

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._score(pl_module, batch, "test")

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._log(pl_module, "test")
