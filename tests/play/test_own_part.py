"""A part of the user's own, in a module of the current folder: every command takes the policy that it is in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pages import block
from recordings import write_moving

from bczoo.cli import main

TESTS = str(Path(__file__).parents[1])
GROWING = """

SIZES = iter(range(1, 100))


class Growing(PatchEncoder):
    def __init__(self, width: int) -> None:
        super().__init__(width, 64, 8 * next(SIZES))  # a shape that its arguments do not tell
"""
SAVE = """
import sys
sys.path.append(".")
import tiny
from functools import partial
from bczoo import ActionDecoder, BCPolicy, PolicyTransformer
from my_parts import PatchEncoder
transformer = PolicyTransformer(width=32, layers=2, heads=4, dropout=0.0)
BCPolicy(transformer, partial(PatchEncoder, patch=32), ActionDecoder, window=5, text_dim=None).save_pretrained("policy")
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the module, recordings, and a policy that another process has saved."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "my_parts.py").write_text(block("docs/extending.md", "part") + GROWING)
    write_moving(folder / "my_game", 2, 16, size=64)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((TESTS, os.environ.get("PYTHONPATH", "")))}
    subprocess.run([sys.executable, "-c", SAVE], cwd=folder, env=environment, check=True)
    return folder


@pytest.fixture(autouse=True)
def here(made, monkeypatch):
    monkeypatch.chdir(made)
    monkeypatch.setattr(sys, "argv", ["bczoo"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr("bczoo.play.bench.MEASURED_BYTES", 1 << 20)


@pytest.mark.parametrize(
    "command",
    [
        ["play", "policy", "--env", "tiny_game:short", "--episodes", "1", "--compare", "false"],
        ["record", "--env", "tiny_game:short", "--out", "out", "--policy", "policy", "--episodes", "1", "--size", "64"],
        ["causality", "policy", "--data", "my_game", "--limit", "1", "--out", "causality"],
        ["attention", "policy", "--data", "my_game", "--out", "attention"],
        ["bench", "latency", "policy", "--steps", "2", "--warm_up", "0"],
        ["gap", "policy", "--env", "tiny_game:catch", "--episodes", "1", "--crf", "23", "--out", "gap"],
    ],
    ids=lambda command: command[0],
)
def test_every_command_takes_it(command, capsys):
    assert main([*command, "--import", "my_parts"]) == 0, capsys.readouterr().err


def test_a_part_that_cannot_be_rebuilt_is_refused_before_training(capsys):
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    command = ["fit", "--config", "tiny", "--model.encoder", "my_parts.Growing", "--model.text_dim", "null"]
    command += ["--data.root", "my_game", "--data.batch_size", "2", "--trainer.max_steps", "1", *quiet]
    assert main([*command, "--trainer.accelerator", "cpu"]) == 1
    told = capsys.readouterr().err
    assert "this policy cannot be rebuilt from its arguments, so nothing could load what is trained" in told
    assert "encoder.patches.weight" in told
    assert not list(Path("runs").rglob("*.ckpt"))
