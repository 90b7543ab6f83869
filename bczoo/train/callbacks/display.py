"""What a training shows of itself: its progress, and one line about the model.

Place in the pipeline: the command line puts these in the place of Lightning's bar and table
(:func:`in_place_of_lightnings`); from Python they are callbacks like any other.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelSummary, RichModelSummary, RichProgressBar, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import convert_inf
from torch import nn

from bczoo.core.parts import written_class
from bczoo.core.progress import Progress


def in_place_of_lightnings(callbacks: list[L.Callback]) -> list[L.Callback]:
    """Callbacks with the displays of this module where Lightning has put its own; those of the user's stay."""
    ours = {
        RichProgressBar: TrainingProgress,
        TQDMProgressBar: TrainingProgress,
        RichModelSummary: ModelLine,
        ModelSummary: ModelLine,
    }
    return [ours[type(c)]() if type(c) in ours else c for c in callbacks]


class TrainingProgress(TQDMProgressBar):
    """Lightning's bar with a total in a resumed run too; plain lines where the output is no terminal."""

    _begun = False  # the epoch; its total is known

    def _bar(self, description: str, leave: bool = True) -> Any:
        return Progress(desc=description, disable=self.is_disabled, leave=leave, file=sys.stdout, unit="batches")

    def init_sanity_tqdm(self) -> Any:
        return super().init_sanity_tqdm() if _on_terminal() else self._bar(self.sanity_check_description, leave=False)

    def init_train_tqdm(self) -> Any:
        return super().init_train_tqdm() if _on_terminal() else self._bar(self.train_description)

    def init_validation_tqdm(self) -> Any:
        alone = self.trainer.state.fn == "validate"
        return super().init_validation_tqdm() if _on_terminal() else self._bar(self.validation_description, alone)

    def init_test_tqdm(self) -> Any:
        return super().init_test_tqdm() if _on_terminal() else self._bar(self.test_description)

    def init_predict_tqdm(self) -> Any:
        return super().init_predict_tqdm() if _on_terminal() else self._bar(self.predict_description)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.is_enabled and trainer.is_global_zero:
            print(_announcement(trainer), flush=True)
        super().on_train_start(trainer, pl_module)
        self._begun = False

    def on_train_epoch_start(self, trainer: L.Trainer, *rest: Any) -> None:
        super().on_train_epoch_start(trainer, *rest)
        self._begun = False

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if not self._begun:  # Lightning takes the steps that are left for the whole, also in the middle of an epoch
            self._begun, bar = True, self.train_progress_bar
            bar.total, bar.n, bar.initial = convert_inf(_batches_of_epoch(trainer, batch_idx)), batch_idx, batch_idx
            bar.set_description(f"Epoch {trainer.current_epoch}")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn != "fit" or trainer.sanity_checking or _on_terminal() or self.is_disabled:
            return
        values = self.get_metrics(trainer, pl_module)
        print(", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items()), flush=True)

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        metrics = {k: v for k, v in super().get_metrics(trainer, pl_module).items() if k != "v_num"}
        if trainer.state.fn != "fit":
            return metrics
        left = trainer.callback_metrics.get("speed/hours_left")  # bczoo.Throughput's; the bar's own is of the epoch
        return {
            "step": str(trainer.global_step),
            **metrics,
            **({"left": _duration(float(left))} if left else {}),
        }


class ModelLine(L.Callback):
    """Prints the parameters of a model by part before a training, and which of them do not learn."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            print(model_line(pl_module), flush=True)


def model_line(model: nn.Module) -> str:
    """``model    BCPolicy, 378 K parameters: encoder 164 K (frozen), transformer 100 K, ...``"""
    parts = getattr(model, "parts", None)
    by_name = parts() if parts is not None else {name: [module] for name, module in model.named_children()}
    said = [f"{name} {_shown(modules)}" for name, modules in by_name.items() if _count(modules)]
    return f"model    {written_class(type(model)).__name__}, {_number(_count([model]))} parameters: {', '.join(said)}"


def _shown(modules: list[nn.Module]) -> str:
    learning = _count(modules, learning=True)
    if learning == _count(modules):
        return _number(learning)
    return f"{_number(_count(modules))} ({f'{_number(learning)} of them learn' if learning else 'frozen'})"


def _count(modules: list[nn.Module], learning: bool = False) -> int:
    return sum(p.numel() for m in modules for p in m.parameters() if p.requires_grad or not learning)


def _duration(hours: float) -> str:
    """``3h 05min``, or ``12min``."""
    minutes = math.ceil(60 * hours)
    return f"{minutes // 60}h {minutes % 60:02}min" if minutes >= 60 else f"{minutes}min"


def _number(count: int) -> str:
    for size, unit in ((1_000_000_000, " G"), (1_000_000, " M"), (1_000, " K")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)


def _batches_of_epoch(trainer: L.Trainer, done: int) -> float:
    """Batches of an epoch that is cut short by the last step, of which some are done."""
    if trainer.max_steps == -1:
        return trainer.num_training_batches
    left = (trainer.max_steps - trainer.global_step) * trainer.accumulate_grad_batches
    return min(trainer.num_training_batches, done + left)


def _announcement(trainer: L.Trainer) -> str:
    """How long it is, and a word before the first step, which takes longest."""
    batches, most = convert_inf(trainer.num_training_batches), trainer.max_steps
    whole = f"{most - trainer.global_step} steps" if most != -1 else f"{trainer.max_epochs} epochs"
    of = "" if batches is None else f", {int(batches)} batches an epoch"
    return (
        f"training on {trainer.strategy.root_device.type}: {whole}{of}{_windows_of_a_step(trainer)}; the first step "
        "takes longest (videos are opened, kernels are chosen or compiled)"
    )


def _windows_of_a_step(trainer: L.Trainer) -> str:
    """How the windows of an optimiser step come together, where that is more than one batch."""
    batch, batches = getattr(trainer.datamodule, "batch_size", None), trainer.accumulate_grad_batches  # type: ignore[attr-defined]
    if batch is None or trainer.world_size * batches == 1:
        return ""
    n, strategy = trainer.world_size, type(trainer.strategy).__name__
    processes = f"{n} processes ({strategy}) x " if n > 1 else ""
    several = f" x {batches} batches" if batches > 1 else ""
    return f", {processes}{batch} windows{several} = {trainer.world_size * batch * batches} windows a step"


def _on_terminal() -> bool:
    return sys.stdout.isatty()
