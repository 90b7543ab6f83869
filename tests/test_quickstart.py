"""The quick start from one command: record, train, validate, play, table, video. CI runs it small."""

import os
import sys
from pathlib import Path

import av
import pytest
import yaml

from bczoo.cli import main

FULL = bool(os.environ.get("BCZOO_SLOW"))
SMALL = [
    "--trainer.max_steps", "4", "--trainer.val_check_interval", "2", "--trainer.callbacks.episodes", "2",
    "--trainer.callbacks.parallel", "2", "--trainer.callbacks.video_seconds", "1",
    "--trainer.callbacks.env", "doom/basic", "--data.source.env", "doom/basic", "--data.source.episodes", "4",
    "--data.batch_size", "2",
]  # fmt: skip


def play(capfd, monkeypatch, *more) -> str:
    monkeypatch.setattr(sys, "argv", ["bczoo"])
    assert main(["fit", "--config", "quickstart", *([] if FULL else SMALL), *more]) == 0
    return capfd.readouterr().out


@pytest.mark.slow
def test_quick_start(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    out = play(capfd, monkeypatch)
    for row in ("| policy |", "| expert |", "| random |", "% of the gap" if FULL else "too few to say"):
        assert row in out
    assert (Path("runs/quickstart") / "metrics.csv").is_file() and not Path("runs/quickstart/lightning_logs").exists()
    with av.open("runs/quickstart/play.mp4") as video:
        assert sum(1 for _ in video.decode(video=0)) > 10
    recordings = sorted(p for p in Path("data/quickstart").iterdir() if not p.name.startswith("."))
    config = yaml.safe_load(Path("runs/quickstart/config.yaml").read_text())
    assert len(recordings) == config["data"]["init_args"]["source"]["init_args"]["episodes"]
    if FULL:
        closed = int(out.split("policy closes ")[1].split(" %")[0])
        assert closed >= 80
    times = {p: p.stat().st_mtime_ns for r in recordings for p in r.iterdir()}
    again = play(capfd, monkeypatch)
    assert "were already there" in again
    assert {p: p.stat().st_mtime_ns for r in recordings for p in r.iterdir()} == times
