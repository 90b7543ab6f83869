"""The `small` configuration: of the size that it says, and it trains on any recordings."""

from __future__ import annotations

import json
from pathlib import Path

from command_line import QUIET, here, own_arguments  # noqa: F401
from recordings import write_moving

from bczoo import BCPolicy
from bczoo.cli import main


def test_small_trains_on_recordings_of_another_size(here):  # noqa: F811
    write_moving(here / "my_game", count=3, steps=40, size=96)
    words = ["--config", "small", "--data.root", "my_game", "--data.batch_size", "2", "--data.num_workers", "0", *QUIET]
    assert main(["fit", *words, "--trainer.max_steps", "2", "--trainer.val_check_interval", "2"]) == 0
    record = json.loads(Path("runs/small/record.json").read_text())
    assert record["training"]["steps"] == 2 and record["metrics"]["val/loss"] > 0
    counts = BCPolicy.from_pretrained("runs/small").parameter_counts()
    assert 2_000_000 < counts["total"] < 8_000_000 and counts["total"] == 5_323_752
