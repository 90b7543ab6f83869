"""What a training shows of itself."""

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelSummary, RichModelSummary, RichProgressBar, TQDMProgressBar
from tiny import tiny_policy
from torch.utils.data import DataLoader, TensorDataset

from bczoo.train.callbacks import display
from bczoo.train.callbacks.display import ModelLine, TrainingProgress, in_place_of_lightnings, model_line


class Line(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_index):
        loss = self.layer(batch[0]).square().mean()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trained(folder, *callbacks, ckpt_path=None, **options):
    trainer = lightning.Trainer(
        default_root_dir=folder, accelerator="cpu", logger=False, enable_model_summary=False,
        enable_checkpointing=False, callbacks=list(callbacks), **options,
    )  # fmt: skip
    trainer.fit(Line(), DataLoader(TensorDataset(torch.ones(10, 1))), ckpt_path=ckpt_path)
    return trainer


class Total(lightning.Callback):
    """Notes the bar's state after the first batch."""

    def on_train_batch_end(self, trainer, *_):
        if not hasattr(self, "seen"):
            bar = trainer.progress_bar_callback.train_progress_bar
            self.seen = bar.total, bar.n, bar.desc


@pytest.mark.parametrize("terminal", [True, False])
def test_the_bar_of_a_resumed_run_has_a_total(tmp_path, monkeypatch, capsys, terminal):
    monkeypatch.setattr(display, "_on_terminal", lambda: terminal)
    first = trained(tmp_path, TrainingProgress(), max_steps=6)
    first.save_checkpoint(tmp_path / "a.ckpt")
    total = Total()
    trained(tmp_path, TrainingProgress(), total, max_steps=10, ckpt_path=tmp_path / "a.ckpt")
    assert total.seen[:2] == (10, 7) and total.seen[2].startswith("Epoch ")
    out = capsys.readouterr().out
    assert "training on cpu: 6 steps, 10 batches an epoch; the first step takes longest" in out
    assert "training on cpu: 4 steps" in out


@pytest.mark.parametrize(
    ("processes", "batches", "told"),
    [
        (1, 1, ""),
        (1, 3, ", 4 windows x 3 batches = 12 windows a step"),
        (2, 1, ", 2 processes (DDPStrategy) x 4 windows = 8 windows a step"),
    ],
)
def test_what_a_step_is_made_of_is_told(processes, batches, told):
    class Data:
        batch_size = 4

    class DDPStrategy:
        pass

    class Trainer:
        datamodule, strategy, world_size, accumulate_grad_batches = Data, DDPStrategy(), processes, batches

    assert display._windows_of_a_step(Trainer) == told


def test_without_a_terminal_there_are_few_lines(tmp_path, capsys):
    trained(tmp_path, TrainingProgress(), max_epochs=5)
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 2 and "\r" not in out and "v_num" not in out
    assert "Epoch 4: 10 of 10 batches" in out and "step=50" in out and "train/loss=" in out


def test_the_time_left_is_told_in_hours_and_minutes():
    assert [display._duration(h) for h in (0.001, 0.99, 3.08)] == ["1min", "1h 00min", "3h 05min"]


def test_a_bar_that_is_switched_off_says_nothing(tmp_path, capsys):
    bar = TrainingProgress()
    bar.disable()
    trained(tmp_path, bar, max_steps=2)
    assert capsys.readouterr().out == ""


def test_lightnings_displays_are_replaced_and_the_users_stay():
    class Own(TQDMProgressBar):
        pass

    own, other = Own(), lightning.Callback()
    given = [RichProgressBar(), TQDMProgressBar(), RichModelSummary(), ModelSummary(), own, other]
    kinds = [type(c) for c in in_place_of_lightnings(given)]
    assert kinds == [TrainingProgress, TrainingProgress, ModelLine, ModelLine, Own, lightning.Callback]


def test_the_model_is_told_by_part_with_what_does_not_learn():
    policy = tiny_policy()
    total = sum(p.numel() for p in policy.parameters())
    assert model_line(policy).startswith(f"model    BCPolicy, {total / 1000:.3g} K parameters: encoder ")
    policy.decoder.requires_grad_(False)
    next(policy.encoder.parameters()).requires_grad_(False)
    line = model_line(policy)
    assert "K (frozen)" in line and "of them learn)" in line and "transformer" in line
