"""The commands of docs/compare.md that need no training are run as they stand there."""

from __future__ import annotations

import glob
import re
import shlex
import textwrap
from pathlib import Path

import pytest
from run_folders import write_curve, write_run

from bczoo.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "compare.md").read_text(encoding="utf-8")
COMMANDS = [shlex.split(line, comments=True) for line in re.findall(r"^ +bczoo ((?:compare|plot|zoo) .*)", PAGE, re.M)]


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Folders by the names that the page uses."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("a", "b", "sees_actions", "slow", "layers2", "layers4")):
        for seed in range(2):
            metrics = {"step": 300, "val/loss": 0.5 + seed / 10, "val/perplexity/mouse_dx": 9.0}
            run = write_run(tmp_path / f"runs/{name}-seed{seed}", seed, layers=number, metrics=metrics)
            curves = {"train_loss": {9: 0.7, 99: 0.6}, "val_perplexity/mouse_dx": {149: 20.0, 299: 9.0}}
            write_curve(run / "metrics.csv", {149: 0.7, 299: 0.5}, **curves)
    for number, name in enumerate("ab"):
        write_run(tmp_path / "runs" / name, layers=10 + number)


def test_the_page_has_commands():
    assert {words[0] for words in COMMANDS} == {"compare", "plot", "zoo"} and len(COMMANDS) > 8


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_of_the_page(runs, words, capsys):
    expanded = [path for word in words for path in (sorted(glob.glob(word)) if "*" in word else [word])]
    assert main(expanded) == 0
    assert len(capsys.readouterr().out) > 10


def test_the_python_of_the_page(runs):
    code = re.search(r"## From Python\n\n((?: {4}.*\n|\n)+)", PAGE)
    assert code is not None
    exec(compile(textwrap.dedent(code[1]), "docs/compare.md", "exec"), {})
    assert Path("curves.png").is_file()
