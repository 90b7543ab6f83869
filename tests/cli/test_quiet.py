"""A training says what concerns it, and nothing else."""

# ruff: noqa: F811 - fixtures are named as arguments
import os
import subprocess
import sys
import warnings

from command_line import here, own_arguments, recordings  # noqa: F401

from bczoo.cli.quiet import IRRELEVANT, quieten


def test_a_training_has_few_lines_and_no_noise(recordings, here):
    command = [
        sys.executable, "-m", "bczoo", "fit", "--config", "tiny", "--data.root", str(recordings), "--trainer.max_steps",
        "4", "--trainer.val_check_interval", "4", "--trainer.accelerator", "cpu", "--model.encoder.frozen", "true",
        "--data.num_workers", str((os.cpu_count() or 1) + 1), "--data.batch_size", "4",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=here, check=True)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) < 15 and "\r" not in done.stdout and not any("FLOPs" in line for line in lines)
    starts = [line.split()[0] for line in lines]
    for start in ("data", "model", "training", "step", "Epoch"):
        assert start in starts, done.stdout
    assert any("encoder" in line and "of them learn" in line for line in lines)


def test_warnings_that_tell_something_stay():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        quieten()
        warnings.warn("3 recordings are broken", stacklevel=1)
        warnings.warn("Found 12 module(s) in eval mode at the start of training.", stacklevel=1)
        warnings.warn("isinstance(treespec, LeafSpec) is deprecated", FutureWarning, stacklevel=1)
    assert [str(w.message) for w in seen] == ["3 recordings are broken"]
    assert all(IRRELEVANT.values())
