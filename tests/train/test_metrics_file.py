"""metrics.csv: one file for one run, which goes on where the run does, and outlives full disks and kills."""

import csv
import errno
import io
from pathlib import Path

import pytest

from bczoo.train import metrics_file
from bczoo.train.metrics_file import MetricsFile, read_metrics


def log(file, *rows):
    for step, row in rows:
        file.log_metrics(row, step)
        file.save()


def rows(folder):
    return list(csv.DictReader(io.StringIO((folder / "metrics.csv").read_text())))


def test_columns_come_as_they_are_logged_and_nan_is_a_blank(tmp_path):
    log(
        MetricsFile(tmp_path),
        (1, {"epoch": 0, "train/loss": 2.5}),
        (2, {"epoch": 0, "val/loss": float("nan"), "lr": 0.1}),
    )
    assert (tmp_path / "metrics.csv").read_text().splitlines()[0] == "step,epoch,lr,train/loss,val/loss"
    first, second = rows(tmp_path)
    assert (first["step"], first["train/loss"], first["lr"]) == ("1", "2.5", "")
    assert (second["step"], second["val/loss"], second["lr"]) == ("2", "", "0.1")


def test_a_resumed_run_goes_on_in_its_file(tmp_path):
    log(MetricsFile(tmp_path), *((step, {"train/loss": float(step)}) for step in range(1, 6)))
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("6,0")  # killed while it wrote
    resumed = MetricsFile(tmp_path)
    resumed.go_on_from(3)
    log(resumed, (4, {"train/loss": 40.0}), (5, {"lr": 0.5}))
    assert [(row["step"], row["train/loss"]) for row in rows(tmp_path)] == [
        ("1", "1"), ("2", "2"), ("3", "3"), ("4", "40"), ("5", "")
    ]  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_what_is_measured_again_for_the_last_step_takes_the_place_of_what_was(tmp_path):
    log(MetricsFile(tmp_path), (3, {"train/loss": 1.0}), (3, {"val/loss": 2.0}), (2, {"val/loss": 3.0}))
    resumed = MetricsFile(tmp_path)
    resumed.go_on_from(3, ("val/",))
    log(resumed, (3, {"val/loss": 4.0}))
    assert [(row["step"], row["train/loss"], row["val/loss"]) for row in rows(tmp_path)] == [
        ("3", "1", ""), ("2", "", "3"), ("3", "", "4")
    ]  # fmt: skip


def test_the_file_of_an_earlier_run_is_kept_beside(tmp_path, capsys):
    for number in range(3):
        log(MetricsFile(tmp_path), (1, {"train/loss": number}))
    kept = sorted(tmp_path.glob("metrics-before-*.csv"))
    assert len(kept) == 2 and rows(tmp_path)[0]["train/loss"] == "2"
    assert {read_metrics(path)[1][0]["train/loss"] for path in kept} == {"0", "1"}
    assert f"the metrics of an earlier run are kept as {kept[0]}" in capsys.readouterr().out


def test_rows_wait_while_the_disk_is_full(tmp_path, monkeypatch):
    file = MetricsFile(tmp_path)
    log(file, (1, {"train/loss": 1.0}))
    real, full = Path.open, []

    class Half:
        """Takes some bytes, then the disk is full."""

        def __init__(self, inner):
            self.inner = inner

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.inner.close()

        def write(self, data):
            self.inner.write(data[:2])
            self.inner.flush()
            raise OSError(errno.ENOSPC, "No space left on device")

    def limited(self, *arguments, **options):
        opened = real(self, *arguments, **options)
        return Half(opened) if full and arguments == ("ab",) else opened

    monkeypatch.setattr(metrics_file.Path, "open", limited)
    full.append(True)
    with pytest.warns(UserWarning, match="No space left on device; it is tried again") as told:
        log(file, (2, {"train/loss": 2.0}), (3, {"train/loss": 3.0}))
    assert len(told) == 1 and [row["step"] for row in rows(tmp_path)] == ["1"]
    full.clear()
    log(file, (4, {"train/loss": 4.0}))
    assert [row["step"] for row in rows(tmp_path)] == ["1", "2", "3", "4"]
