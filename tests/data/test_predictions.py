"""Predictions go to disk as they come: one file of the known format, a batch in memory."""

from __future__ import annotations

import resource
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from bczoo.core.errors import UserError
from bczoo.train.callbacks import predictions
from bczoo.train.callbacks.predictions import WritePredictions

ALONE = SimpleNamespace(world_size=1, global_rank=0)


def batches(count=5, size=3, steps=4):
    generator = torch.Generator().manual_seed(0)
    for b in range(count):
        recording = torch.arange(size) + size * b
        if b == count - 1:
            recording[-1] = -1  # fills up the batch
        yield {
            "recording": recording,
            "start": torch.zeros(size, dtype=torch.long),
            "user": torch.rand(size, steps, generator=generator) > 0.5,
            "valid": torch.ones(size, steps, dtype=torch.bool),
            "ids.keys": torch.randint(0, 9, (size, steps, 2), generator=generator),
            "probability.keys": torch.rand(size, steps, 2, generator=generator),
            "hidden": torch.rand(size, 3, 2, generator=generator).bfloat16().transpose(1, 2),
        }


def write(path, batches, trainer=ALONE):
    writer = WritePredictions(str(path))
    for batch in batches:
        writer.write_on_batch_end(trainer, None, batch)
    return writer


def test_the_file_is_the_one_that_safetensors_writes(tmp_path, capsys):
    path = tmp_path / "out" / "predictions.safetensors"
    write(path, batches()).on_predict_end(ALONE, None)
    rows = [{k: v[b["recording"] >= 0] for k, v in b.items()} for b in batches()]
    whole = {k: torch.cat([r[k] for r in rows]) for k in rows[0]}
    read = load_file(path)
    assert read.keys() == whole.keys() and all(torch.equal(read[k], whole[k]) for k in whole)
    save_file(whole, tmp_path / "theirs")
    assert path.read_bytes() == (tmp_path / "theirs").read_bytes()
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert "predictions on 14 windows written" in capsys.readouterr().out


def test_memory_holds_a_batch(tmp_path):
    """180 MB of predictions in batches of 6 MB."""

    def large():
        for b in range(30):
            yield {"recording": torch.full((100,), b), "probability.keys": torch.rand(100, 15_000)}

    write(tmp_path / "warm", batches()).on_predict_end(ALONE, None)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    write(tmp_path / "predictions.safetensors", large()).on_predict_end(ALONE, None)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 90_000  # KB
    assert (tmp_path / "predictions.safetensors").stat().st_size > 180e6


def test_what_was_there_stays_until_all_is_predicted(tmp_path):
    path = tmp_path / "predictions.safetensors"
    path.write_text("of another run")
    write(path, batches()).on_exception(ALONE, None, KeyboardInterrupt())
    assert [p.name for p in tmp_path.iterdir()] == [path.name] and path.read_text() == "of another run"


def test_a_full_disk_is_reported_in_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    writer = write(tmp_path / "predictions.safetensors", batches())
    monkeypatch.setattr(predictions.shutil, "copyfileobj", full)
    with pytest.raises(UserError, match=r"predictions.safetensors cannot be written \(no space left"):
        writer.on_predict_end(ALONE, None)
    assert list(tmp_path.iterdir()) == []


def test_every_process_writes_a_file_of_its_own_and_no_windows_write_none(tmp_path, capsys):
    second = SimpleNamespace(world_size=2, global_rank=1)
    write(tmp_path / "predictions.safetensors", batches(), second).on_predict_end(second, None)
    assert [p.name for p in tmp_path.iterdir()] == ["predictions-1.safetensors"]
    write(tmp_path / "none", []).on_predict_end(ALONE, None)
    assert "no windows to predict on" in capsys.readouterr().out
