"""Every family plays, records and is measured from the command line, with nothing trained."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import pytest
import tiny
from pages import block

from bczoo import CNNPolicy, ConvNeXtEncoder
from bczoo.cli import IMPORT, main
from bczoo.data.recording import SYSTEM, USER, known_action, read_annotation

pytestmark = pytest.mark.usefixtures("one_thread")
ENCODER = partial(ConvNeXtEncoder, frame_size=tiny.SIZE, channels=[4, 8, 8], blocks=1)


@pytest.fixture(autouse=True)
def user(tmp_path, monkeypatch):
    """Somebody in a folder with a family of their own, which is imported nowhere yet."""
    (tmp_path / "my_lstm.py").write_text(block("docs/extending.md", "family"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv(IMPORT, "")
    monkeypatch.delitem(sys.modules, "my_lstm", raising=False)
    yield
    sys.modules.pop("my_lstm", None)


def export(family: str) -> list[str]:
    """Write a tiny policy of a family to ``policy``; what the command line has to be told of it."""
    if family == "cnn":
        CNNPolicy(partial(ENCODER, embedding=16), 32, 2, 4, window=5).save_pretrained("policy")
        return []
    sys.path.append(str(Path.cwd()))
    module = __import__("my_lstm")
    module.LSTMPolicy(ENCODER, 16, window=5).save_pretrained("policy")
    del sys.modules["my_lstm"]
    return ["--import", "my_lstm"]


@pytest.mark.parametrize("family", ["cnn", "lstm"])
def test_it_plays_records_and_is_measured(family, capsys, monkeypatch):
    imported = export(family)
    monkeypatch.setattr("bczoo.play.bench.MEASURED_BYTES", 1 << 20)
    played = ["play", "policy", "--env", "tiny_game:short", "--episodes", "2", "--compare", "false"]
    assert main([*played, *imported]) == 0, capsys.readouterr().err
    assert ("| policy | " in (said := capsys.readouterr().out) and "| encode |" in said) or "| backbone |" in said
    corrected = ["record", "--env", "tiny_game:catch", "--out", "out", "--policy", "policy", "--expert", "expert"]
    assert main([*corrected, "--takeover", "0.2", "--episodes", "1", "--size", "64", *imported]) == 0
    (folder,) = Path("out").iterdir()
    kinds = {known_action(frame)[0] for frame in read_annotation(folder).frame_annotations[1:]}
    assert kinds == {SYSTEM, USER} and folder.name.startswith("tiny_game-catch_policy-")
    assert main(["bench", "latency", "policy", "--steps", "3", "--warm_up", "1", *imported]) == 0
    assert "| 3 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command",
    [
        ["play", "policy", "--env", "tiny_game:short"],
        ["record", "--env", "tiny_game:catch", "--out", "out", "--policy", "policy"],
        ["serve", "policy", "--tcp", "127.0.0.1:0"],
        ["bench", "latency", "policy"],
    ],
    ids=lambda command: command[0],
)
def test_a_family_that_nobody_imported_is_named_with_the_option_that_does(command, capsys):
    export("cnn")
    config = json.loads(Path("policy/config.json").read_text())
    config["policy"]["class_path"] = "never_imported.LSTMPolicy"  # what has been imported in this process stays known
    Path("policy/config.json").write_text(json.dumps(config))
    assert main(command) == 1
    assert "--import never_imported" in capsys.readouterr().err
