"""What a run logs for a scaling law: counted exactly, kept over an interruption, read by `bczoo scaling fit`."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import lightning as L
import pytest
import tiny
from command_line import NO_LUCK, QUIET
from command_line import recordings as recordings
from torch import nn

from bczoo import RecordingDataModule, ScalingLog
from bczoo.cli import main
from bczoo.scaling.points import read_sources
from bczoo.train.callbacks import scaling
from bczoo.train.flops import flops_per_window

pytestmark = pytest.mark.usefixtures("one_thread")
BATCH = 2


def train(recordings, run, steps, ckpt_path=None, policy=None):
    policy = policy or tiny.tiny_policy(text_dim=None)
    data = RecordingDataModule(root=str(recordings), batch_size=BATCH, val_fraction=0)
    log = ScalingLog()
    trainer = L.Trainer(callbacks=[log], default_root_dir=run, **{**tiny.QUIET, "max_steps": steps})
    trainer.fit(policy, data, ckpt_path=ckpt_path)
    return policy, trainer


def rows_of(run):
    with (Path(run) / "scaling.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_tokens_operations_and_sizes_are_counted(recordings, tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "COUNT_AFTER", 0.0)
    policy, _ = train(recordings, tmp_path, 6)
    rows = rows_of(tmp_path)
    assert [float(row["end_step"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [float(row["step"]) for row in rows] == [0.5, 1.5, 2.5, 3.5, 4.5, 5.5]
    last, window, per_frame = rows[-1], policy.input_spec.window, policy.layout.length
    assert float(last["samples"]) == 6 * BATCH and float(last["frames"]) == 6 * BATCH * window
    assert float(last["end_tokens"]) == 6 * BATCH * window * per_frame
    tokens = 5.5 * BATCH * window * per_frame
    assert float(last["tokens"]) == tokens
    n = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    positions = policy.decoder.positions.numel()
    embeddings = sum(m.weight.numel() for m in policy.modules() if isinstance(m, nn.Embedding))
    assert float(last["params"]) == n - positions and float(last["params_with_positions"]) == n
    assert float(last["params_without_embeddings"]) == n - positions - embeddings
    assert float(last["flops_6nd"]) == pytest.approx(6 * (n - positions) * tokens)
    backbone = policy.transformer
    attention = 12 * len(backbone.blocks) * backbone.width * window * per_frame
    assert float(last["flops_6nd_attention"]) == pytest.approx((6 * (n - positions) + attention) * tokens)
    assert float(last["flops_measured"]) == pytest.approx(flops_per_window(policy) * 5.5 * BATCH)
    assert float(last["data_tokens"]) == pytest.approx(6 * 60 * per_frame, rel=0.03), "hours are rounded"


def test_a_long_run_s_rows_are_means_over_growing_intervals(recordings, tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "GROWTH", 0.5)
    train(recordings, tmp_path, 9)
    rows = rows_of(tmp_path)
    assert [float(row["end_step"]) for row in rows] == [1, 2, 3, 5, 8, 9]
    assert [float(row["step"]) for row in rows] == [0.5, 1.5, 2.5, 4, 6.5, 8.5]


def test_a_resumed_run_counts_on(recordings, tmp_path):
    _, trainer = train(recordings, tmp_path / "a", 4)
    trainer.save_checkpoint(tmp_path / "kept.ckpt")
    train(recordings, tmp_path / "a", 7, ckpt_path=tmp_path / "kept.ckpt")
    train(recordings, tmp_path / "b", 7)
    resumed, whole = rows_of(tmp_path / "a"), rows_of(tmp_path / "b")
    for column in ("step", "tokens", "samples", "flops_6nd", "params"):
        assert [row[column] for row in resumed] == [row[column] for row in whole]
    seconds = [float(row["seconds"]) for row in resumed]
    assert seconds == sorted(seconds)


def test_a_new_run_sets_the_older_one_s_aside(recordings, tmp_path):
    train(recordings, tmp_path, 2)
    train(recordings, tmp_path, 3)
    assert len(rows_of(tmp_path)) == 3 and len(list(tmp_path.glob("scaling-before-*.csv"))) == 1


def test_a_model_whose_operations_cannot_be_counted_trains_on(recordings, tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "COUNT_AFTER", 0.0)

    def fails(model):
        raise NotImplementedError("no meta kernel")

    monkeypatch.setattr(scaling, "flops_per_window", fails)
    with pytest.warns(UserWarning, match="no meta kernel"):
        train(recordings, tmp_path, 2)
    assert [row["flops_measured"] for row in rows_of(tmp_path)] == ["", ""]


@pytest.fixture(scope="module")
def run(recordings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "a"
    words = ["--config", "tiny", "--model.text_dim", "null", "--data.root", str(recordings), "--data.batch_size", "2"]
    words += ["--trainer.max_steps", "4", "--trainer.val_check_interval", "2", *NO_LUCK, *QUIET]
    assert main(["fit", *words, "--trainer.default_root_dir", str(folder)]) == 0
    return folder


def test_the_command_reads_runs_and_their_other_measures(run, tmp_path, capsys):
    read = read_sources([str(run)])
    (curve,) = read.curves
    assert len(curve.loss) == 4 and curve.params == float(rows_of(run)[0]["params"])
    assert read.tokens_per_frame == float(rows_of(run)[0]["end_tokens"]) / float(rows_of(run)[0]["frames"])
    (validated,) = read_sources([str(run)], "val/loss").curves
    assert list(validated.tokens) == [float(rows_of(run)[i]["end_tokens"]) for i in (1, 3)]
    assert read_sources([str(run)], params="without").curves[0].params < curve.params
    with_attention = read_sources([str(run)], flops="6nd_attention").curves[0]
    assert (with_attention.compute > curve.compute).all()
    assert main(["scaling", "fit", str(run), "--target", "val/los"]) == 1
    assert "did you mean 'val/loss'" in capsys.readouterr().err
    assert main(["scaling", "fit", str(run), "--flops", "measured"]) == 1
    assert "counted after a minute" in capsys.readouterr().err
    assert main(["scaling", "fit", str(run), "--out", str(tmp_path / "fit.json")]) == 1, "four points are no law"
    assert "4 points cannot identify" in json.loads((tmp_path / "fit.json").read_text())["refused"]["parametric"]


def test_too_many_epochs_are_flagged(run, tmp_path):
    rows = rows_of(run)
    for row in rows:
        row["data_tokens"] = float(rows[-1]["end_tokens"]) / 5
    with (tmp_path / "scaling.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    assert "saw its recordings 5.0 times" in read_sources([str(tmp_path)]).notes[0]
