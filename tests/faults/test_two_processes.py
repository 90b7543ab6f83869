"""Trainings of two processes that are killed or stopped, and folders that cannot be written to."""

import os
import signal
import socket
from functools import cache

import pytest
import torch
from process import Run, bczoo, new_folder
from recordings import write_moving
from works import BEST, CHECKPOINT, QUIET, leftovers

from bczoo.hub.state import is_checkpoint, load_tensors
from bczoo.train.metrics_file import read_metrics

SLOW = os.environ.get("BCZOO_SLOW") == "1"
STRATEGIES = {
    "ddp": ["--trainer.strategy", "ddp"],
    "sharded": ["--trainer.strategy", "sharded"],
    "folders": ["--trainer.strategy", "bczoo.Sharded", "--trainer.strategy.sharded_checkpoints", "true"],
}
MOMENTS = {
    "step": ["step", 4],
    "writing": ["writing", 0],
    "validation": ["validation", 3],
    "SIGTERM to one": ["step", 4, int(signal.SIGTERM), 1],
}
ALL = [(moment, strategy, workers) for moment in MOMENTS for strategy in STRATEGIES for workers in (0, 1)]
SOME = [("writing", "folders", 1), ("SIGTERM to one", "ddp", 0)]


def command(strategy, workers=0, more=()):
    return [
        "fit", "--config", "tiny", "--data.root", "data", "--data.batch_size", 2, "--data.num_workers", workers,
        "--trainer.max_steps", 6, "--trainer.val_check_interval", 3, "--trainer.callbacks.every_n_train_steps", 2,
        "--trainer.accelerator", "cpu", "--trainer.devices", 2, *STRATEGIES[strategy], *more, *QUIET,
    ]  # fmt: skip


def two(folder, words, **options):
    """Run a command as two processes, as a cluster would start them; their exit statuses and what they printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "OMP_NUM_THREADS": "1"}
    runs = [Run(words, folder, environment={**common, "LOCAL_RANK": str(rank)}, **options) for rank in (0, 1)]
    try:
        first = runs[0].wait()
        if first == -signal.SIGKILL:
            runs[1].signal(signal.SIGKILL)  # all of them, as when a node fails
        return (first, runs[1].wait()), "".join(run.output for run in runs)
    finally:
        for run in runs:
            run.end()


@cache
def undisturbed(strategy, workers):
    folder = new_folder(strategy)
    write_moving(folder / "data", 4, 60)
    statuses, output = two(folder, command(strategy, workers))
    assert statuses == (0, 0), output
    return folder


def learned(folder):
    return [load_tensors(folder / path, optimizer=True) for path in (CHECKPOINT, BEST)]


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "strategy", "workers"), ALL if SLOW else SOME)
def test_what_was_disturbed_goes_on_as_if_it_had_not_been(moment, strategy, workers, tmp_path):
    write_moving(tmp_path / "data", 4, 60)
    kill = ["--trainer.callbacks+=crash.KillAt"]
    for name, value in zip(("where", "step", "number", "rank"), MOMENTS[moment], strict=False):
        kill += [f"--trainer.callbacks.{name}", value]
    statuses, output = two(tmp_path, command(strategy, workers, kill))
    assert statuses == ((143, 143) if "SIGTERM" in moment else (-9, -9)), output
    load_tensors(tmp_path / CHECKPOINT)
    assert (tmp_path / CHECKPOINT).is_dir() == (strategy == "folders")
    statuses, output = two(tmp_path, command(strategy, workers))
    assert statuses == (0, 0) and "resuming the interrupted run" in output, output
    for ours, theirs in zip(learned(tmp_path), learned(undisturbed(strategy, workers)), strict=True):
        assert ours["global_step"] == theirs["global_step"]
        torch.testing.assert_close(ours["state_dict"], theirs["state_dict"], atol=0, rtol=0)
        states = [[g["state"] for g in c.get("optimizer_states", [])] for c in (ours, theirs)]
        torch.testing.assert_close(*states, atol=0, rtol=0)
    losses = [
        [(row["step"], row["val/loss"]) for row in read_metrics(folder / "runs/tiny/metrics.csv")[1] if row["val/loss"]]
        for folder in (tmp_path, undisturbed(strategy, workers))
    ]
    assert losses[0] == losses[1]
    assert not [path for path in leftovers(tmp_path) if not path.endswith("ckpt/.metadata")]


@pytest.mark.parametrize("strategy", ["ddp", "folders"])
def test_a_disk_without_room_ends_all_before_the_first_step(strategy, tmp_path):
    """None is left waiting for the one that found out."""
    write_moving(tmp_path / "data", 4, 60)
    statuses, output = two(tmp_path, command(strategy, more=["--trainer.callbacks+=crash.FullDisk"]))
    assert statuses[0] == 1 and statuses[1] > 0, output
    assert "the weights alone take" in output and not is_checkpoint(tmp_path / CHECKPOINT)


def test_a_place_that_cannot_be_written_to_ends_all_before_another_process_is_started(tmp_path):
    write_moving(tmp_path / "data", 4, 60)
    (tmp_path / "runs").write_text("a file where the folder of runs is to be")
    status, output = bczoo(*command("ddp"), folder=tmp_path)
    assert status == 1 and len(output.splitlines()) == 1
    assert "cannot be written to" in output and "Not a directory" in output
