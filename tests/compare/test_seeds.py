"""Several seeds by one command: their folders, what is kept, what is refused, and that a signal ends all of them."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from command_line import QUIET, here, own_arguments, recordings  # noqa: F401
from run_folders import write_run

from bczoo.cli import main
from bczoo.compare import seeds

OWN = ["fit", "--config", "own.yaml", "--data.root", "my_game"]


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Commands that would have been run, each of which leaves a finished run; 9 fails."""
    commands = []

    def run(command):
        commands.append(list(command))
        seed = int(seeds._without(command, seeds.SEED)[0])
        if seed == 9:
            return 3
        folder = Path(seeds._without(command, seeds.ROOT)[0])
        write_run(folder, seed, 0.5 + seed / 10, command=shlex.join(["bczoo", *command, "--import", "my_parts"]))
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints/last.ckpt").write_bytes(b"weights")
        (folder / "checkpoints/finished").write_text("")
        return 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(seeds, "_run", run)
    Path("own.yaml").write_text("seed_everything: 7\ntrainer: {default_root_dir: runs/own}\n")
    return commands


def test_every_seed_has_a_folder_and_they_are_compared(trained, capsys):
    assert main([*OWN, "--seeds", "2"]) == 0
    assert trained == [
        [*OWN, "--seed_everything", str(s), "--trainer.default_root_dir", f"runs/own-seed{s}"] for s in (7, 8)
    ]
    out = capsys.readouterr().out
    assert "| runs/own | 7, 8 " in out and "| val/loss " in out and "1.25 |" in out


def test_what_is_finished_is_not_trained_again(trained, capsys):
    assert main([*OWN, "--seeds", "2"]) == 0
    assert main([*OWN, "--seeds=2", "--seed_everything", "6"]) == 0
    assert [command[command.index("--seed_everything") + 1] for command in trained] == ["7", "8", "6"]
    assert "seed 7: runs/own-seed7 has finished" in capsys.readouterr().out


def test_another_command_does_not_pass_for_the_same(trained, capsys):
    assert main([*OWN, "--seeds", "1"]) == 0
    assert main([*OWN, "--trainer.max_steps", "9", "--seeds", "1"]) == 1
    error = capsys.readouterr().err
    assert "runs/own-seed7 holds a run of another command (bczoo fit --config own.yaml" in error
    assert len(trained) == 1


def test_a_training_that_fails_ends_all(trained, capsys):
    assert main([*OWN, "--seeds", "4"]) == 3
    assert len(trained) == 3 and "seed 9 ended with status 3; the same command goes on" in capsys.readouterr().err


def test_given_options_count_over_those_of_configurations(trained):
    Path("over.yaml").write_text("trainer: {default_root_dir: runs/over}\n")
    assert main([*OWN, "--trainer.default_root_dir", "mine", "--config=over.yaml", "--seeds", "1"]) == 0
    assert main([*OWN, "--config=over.yaml", "--trainer.default_root_dir=mine/", "--seeds", "1"]) == 0
    assert [command[-1] for command in trained] == ["runs/over-seed7", "mine-seed7"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seeds", "none"], "--seeds is how many trainings there are to be, a number from 1 on, got 'none'"),
        (["--seeds", "0"], "a number from 1 on, got '0'"),
        (["--seeds", "2", "--seed_everything", "true"], "counts up from --seed_everything, which has to be a number"),
        (["--seeds", "2", "--trainer.default_root_dir", ""], "say after which run with --trainer.default_root_dir"),
    ],
)
def test_what_cannot_be_counted_is_told(trained, words, said, capsys):
    assert main([*OWN, *words]) == 1
    assert said in capsys.readouterr().err and not trained


def test_seeds_are_of_fit(trained, capsys):
    assert main(["validate", "--config", "own.yaml", "--seeds", "2"]) == 1
    assert "an option of bczoo fit and not of bczoo validate" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_training_and_all_that_would_follow(tmp_path, monkeypatch, request, number):
    """The training gets it once, and is waited for while it saves."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background ignores
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    child = """
import pathlib, signal, sys, time
got = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *caught: got.append(caught[0]))
pathlib.Path("ready").touch()
while not got:
    time.sleep(0.01)
time.sleep(0.3)
pathlib.Path("saved").write_text(str(got))
sys.exit(5)
"""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(seeds, "BCZOO", (sys.executable, "-c", child))
    Path("own.yaml").write_text("trainer: {default_root_dir: runs/own}\n")

    def interrupt():
        while not Path("ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    status = main(["fit", "--config", "own.yaml", "--seeds", "3"])
    thread.join()
    assert status == 128 + number
    assert Path("saved").read_text() == f"[{int(number)}]"
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_two_small_trainings_are_told_apart_by_their_seed_alone(recordings, here, capfd):  # noqa: F811
    words = ["fit", "--config", "tiny", "--data.root", str(recordings), "--data.batch_size", "4", "--seeds", "2"]
    words += ["--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--model.window", "4", *QUIET]
    assert main(words) == 0
    out = capfd.readouterr().out
    assert "| runs/tiny | 0, 1 " in out and "`-`" not in out
    assert main(words) == 0
    assert "seed 1: runs/tiny-seed1 has finished" in capfd.readouterr().out
