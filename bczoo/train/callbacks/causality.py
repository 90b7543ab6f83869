"""The causality score in validation.

Place in the pipeline: a callback in any YAML; scores every validation batch beside the policy's own validation step
and logs means over the epoch (paper 2601.04575, section 4; definitions in :mod:`bczoo.causality.scores`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L

from bczoo.causality.counterfactual import Counterfactuals
from bczoo.causality.donors import Donors
from bczoo.causality.metrics import CausalityMetrics, evaluate
from bczoo.causality.perturb import FREEZE_STEPS, Perturbation, checked_kinds, perturbations
from bczoo.core.errors import UserError
from bczoo.core.spec import Batch
from bczoo.data.loader import WindowLoader

# of the policy's own metrics, logged beside the score
COMPANIONS = {"change_accuracy", "repeat_accuracy", "change_repeat_accuracy", "persistence", "relative_cross_entropy"}


class CausalityScore(L.Callback):
    """Logs ``val/causality`` in total and per action group, ``val/action_reliance`` and ``val/visual_share``.

    The score is high where the policy acts on the current picture and 0 where the picture does not matter. A policy may
    score high and be wrong: read it beside the loss, and beside what is logged with it per group: ``change_accuracy``,
    ``repeat_accuracy`` and ``change_repeat_accuracy`` (the baseline that repeats the last action), ``persistence`` and
    ``relative_cross_entropy`` (:mod:`bczoo.train.metrics`).

    What is swapped comes from windows that are sampled from all validation recordings and read before the first batch
    (:mod:`bczoo.causality.donors`), so the score depends neither on the batch size nor on the number of processes. With
    loaders that are not a RecordingDataModule's it comes from the same batch.

    Args:
        perturb: what is shown instead of the recorded picture: swap (a picture from elsewhere), freeze (that of half a
            second ago), blank (the clip's mean colour), noise, counterfactual (your own). The first is
            ``val/causality``, the others ``val/causality_<name>``.
        replaced: how many steps up to the decision show it.
        reliance: score the reliance on past actions too.
        freeze_steps: how many steps ago freeze shows the frame of.
        counterfactual: folder of edited frames ``<recording>/<frame>.png``; adds this perturbation.
    """

    def __init__(
        self,
        perturb: list[str] | None = None,
        replaced: int = 1,
        reliance: bool = True,
        freeze_steps: int = FREEZE_STEPS,
        counterfactual: str | None = None,
    ) -> None:
        kinds = ["swap"] if perturb is None else perturb
        self.perturb = checked_kinds(kinds, counterfactual, replaced, freeze_steps)
        self.replaced, self.reliance = replaced, reliance
        self.freeze_steps, self.counterfactual = freeze_steps, counterfactual
        self._kinds: dict[str, Perturbation] = {}
        self._donors: Donors | None = None
        self._metrics: dict[str, CausalityMetrics] = {}

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        pl_module.logged |= COMPANIONS
        for part in ("val", "test"):
            self._metrics[part] = CausalityMetrics(pl_module.action_space, self.perturb, self.reliance)

    def _start(self, trainer: L.Trainer, pl_module: Any, loaders: Any) -> None:
        edited = None
        if self.counterfactual is not None:
            if not isinstance(loaders, WindowLoader):
                raise UserError("counterfactual frames need the recordings of a bczoo.RecordingDataModule")
            edited = Counterfactuals(self.counterfactual, loaders.windows.index)
        self._kinds = perturbations(self.perturb, self.freeze_steps, edited)
        self._donors = None
        if isinstance(loaders, WindowLoader) and ("swap" in self.perturb or self.reliance):
            with trainer.precision_plugin.forward_context():
                self._donors = Donors.read(pl_module, loaders)

    def _score(self, trainer: L.Trainer, pl_module: Any, batch: Batch, part: str, known: Any) -> None:
        metrics = self._metrics[part]
        with trainer.precision_plugin.forward_context():
            known = {k: known.get(k) for k in ("encoded", "logits")} if isinstance(known, Mapping) else {}
            scores = evaluate(pl_module, batch, self._kinds, self.replaced, self.reliance, donors=self._donors, **known)
        metrics.update(scores.measures)

    def _log(self, pl_module: Any, part: str) -> None:
        metrics = self._metrics[part]
        # every rank takes part, also one without a step that counts: computing reduces over ranks
        values = {f"{part}/{name}": value for name, value in metrics.compute().items()}
        pl_module.log_dict(values, sync_dist=True)
        metrics.reset()

    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._metrics["val"].to(pl_module.device)
        self._start(trainer, pl_module, trainer.val_dataloaders)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._score(trainer, pl_module, batch, "val", outputs)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._log(pl_module, "val")

    def on_test_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._metrics["test"].to(pl_module.device)
        self._start(trainer, pl_module, trainer.test_dataloaders)

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._score(trainer, pl_module, batch, "test", outputs)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._log(pl_module, "test")
