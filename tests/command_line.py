"""What the tests of the command line share: recordings, a folder to work in, and ``bczoo`` as a function."""

import sys

import lightning
import numpy as np
import pytest
import torch

from bczoo.cli import main
from bczoo.data.recording import RecordingWriter

QUIET = [
    "--trainer.enable_progress_bar",
    "false",
    "--trainer.enable_model_summary",
    "false",
    "--trainer.accelerator",
    "cpu",
]
NO_LUCK = ["--model.encoder.init_args.drop_path", "0", "--trainer.num_sanity_val_steps", "0"]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    root = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(0)
    for i in range(6):
        with RecordingWriter(root / f"rec_{i}", size=96) as writer:
            for t in range(60):
                frame = np.full((96, 96, 3), (t * 4) % 256, np.uint8)
                frame[:, :48] = rng.integers(0, 256)
                values = {
                    "keys": ["w"] if t % 3 else [],
                    "mouse_buttons": [],
                    "mouse_dx": int(t % 7) - 3,
                    "mouse_dy": 0,
                }
                writer.add(frame, user=values)
    return root


@pytest.fixture(autouse=True)
def own_arguments(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bczoo"])


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bczoo(*arguments):
    return main([str(a) for a in arguments])


def fit(root, *more):
    return bczoo(
        "fit", "--config", "tiny", "--data.root", root, "--data.batch_size", 4, "--trainer.max_steps", 6,
        "--trainer.val_check_interval", 3, *QUIET, *NO_LUCK, *more,
    )  # fmt: skip


def weights(path="runs/tiny/checkpoints/last.ckpt"):
    return torch.load(path, weights_only=True)["state_dict"]


class OutOfTime(lightning.pytorch.callbacks.Timer):
    """``trainer.max_time`` whose time is over in step 5, however fast the machine is."""

    def __init__(self) -> None:
        super().__init__(duration={"days": 1}, interval="step")

    def on_train_batch_end(self, trainer, *args, **kwargs) -> None:
        if trainer.global_step == 5:
            self._duration = 0.0
        super().on_train_batch_end(trainer, *args, **kwargs)
