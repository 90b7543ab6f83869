"""The numbers that a training is done in where nobody named them."""

import json
from pathlib import Path

import crash
import pytest
import torch
from command_line import bczoo, fit, here, own_arguments, recordings  # noqa: F401

from bczoo.core import devices
from bczoo.core.devices import training_precision

AUTOMATIC = ["--trainer.precision", "null", "--trainer.callbacks.every_n_train_steps", 2]


def gpu(monkeypatch, bfloat16):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bfloat16)


def test_a_gpu_trains_in_bfloat16_where_it_computes_in_it(monkeypatch):
    gpu(monkeypatch, True)
    assert training_precision("auto") == ("bf16-mixed", "a GPU computes in bfloat16")
    assert training_precision("gpu", processes=8, before="32-true")[0] == "bf16-mixed"
    gpu(monkeypatch, False)
    assert training_precision("auto", before="bf16-mixed")[0] == "32-true"


@pytest.mark.parametrize(("cost", "chosen"), [(0.5, "bf16-mixed"), (1.3, "32-true")])
def test_a_processor_takes_what_is_not_slower_and_stays_with_it(monkeypatch, cost, chosen):
    monkeypatch.setattr(devices, "bfloat16_cost", lambda: cost)
    assert training_precision("cpu")[0] == chosen
    assert training_precision("cpu", processes=2)[0] == "32-true", "they might measure differently"
    assert {training_precision("cpu", before=before)[0] for before in ("32-true", "16-mixed")} == {"32-true", chosen}


def test_a_training_says_what_it_takes_and_a_resumed_one_stays_with_it(recordings, here, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr(devices, "bfloat16_cost", lambda: 0.5)
    with pytest.raises(crash.PowerCut):
        fit(recordings, *AUTOMATIC, "--trainer.callbacks+=crash.CrashAt", "--trainer.callbacks.step", 3)
    assert "precision bf16-mixed: on this processor a product takes 0.50 times as long" in capsys.readouterr().out
    monkeypatch.setattr(devices, "bfloat16_cost", lambda: 3.0)
    assert fit(recordings, *AUTOMATIC) == 0
    assert "precision bf16-mixed: the run began so" in capsys.readouterr().out
    assert json.loads(Path("runs/tiny/record.json").read_text())["training"]["precision"] == "bf16-mixed"
    assert fit(recordings, "--trainer.max_steps", 1) == 0
    assert "precision" not in capsys.readouterr().out, "tiny names one"
