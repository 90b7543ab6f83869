"""The README does what it says: its game runs, its links lead somewhere, its commands name what exists."""

from __future__ import annotations

import itertools
import re
import shlex
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

from bczoo import cli
from bczoo.core import configs

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PAGES = ["README.md", "checkpoints.md", "docs/finetuning.md"]
BLOCK = re.compile(r"(?:^(?: {4}.*)?\n)+", re.MULTILINE)  # indented lines, and empty ones between them


def marked(name: str) -> str:
    """What stands between ``<!-- name:begin -->`` and ``<!-- name:end -->``."""
    found = re.findall(rf"<!-- {name}:begin -->\n(.*?)<!-- {name}:end -->", README, re.DOTALL)
    assert len(found) == 1, f"README.md has to have one pair of markers {name}:begin and {name}:end"
    return found[0]


def blocks(text: str) -> list[str]:
    """The code blocks of a text, without their indentation."""
    return [textwrap.dedent(b).strip() + "\n" for b in BLOCK.findall(text) if b.strip()]


def prose(text: str) -> str:
    """A text without code."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", BLOCK.sub("\n", text))


@pytest.fixture
def my_module(tmp_path, monkeypatch):
    """The README's game as a module; returns the arguments of the README's command."""
    game, command = blocks(marked("game"))
    (tmp_path / "my_module.py").write_text(game, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bczoo"])
    words = shlex.split(command)
    assert words[:2] == ["PYTHONPATH=.", "bczoo"]
    yield words[2:]
    sys.modules.pop("my_module", None)


def test_the_readme_s_game_is_recorded_at_random(my_module):
    assert my_module[:3] == ["record", "--env", "my_module:my_game"]
    out = ["--episodes", "1", "--size", "64", "--out", "random"]
    assert cli.main([*my_module[:3], "--agent", "random", *out]) == 0
    (recording,) = Path("random").iterdir()
    assert (recording / "annotation.proto").stat().st_size and (recording / "64x64.mp4").stat().st_size


def test_the_readme_s_command_plays_its_game_in_several_processes(my_module, capsys):
    assert cli.main([*my_module, "--episodes", "2", "--size", "64", "--workers", "2"]) == 0
    assert len(list(Path("my_game").iterdir())) == 2
    assert "mean return 1.0" in capsys.readouterr().out, "its expert reaches the goal"


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_lead_somewhere(page):
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    targets = [t for t in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"[a-z]+:|#", t)]
    missing = [t for t in targets if not (REPOSITORY / page).parent.joinpath(t.partition("#")[0]).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES)
def test_no_placeholders_are_left(page):
    text = prose((REPOSITORY / page).read_text(encoding="utf-8"))
    assert not re.findall(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b", text)


def test_code_is_told_from_prose():
    text = "Here A_PLACEHOLDER\n\n    IN_CODE = 1\n\n    MORE_CODE = 2\n\nand `INLINE_CODE`\n"
    assert blocks(text) == ["IN_CODE = 1\n\nMORE_CODE = 2\n"]
    assert re.findall(r"[A-Z]+_[A-Z]+", prose(text)) == ["A_PLACEHOLDER"]


@pytest.mark.parametrize("name", ["test", "quickstart", "game"])
def test_commands_name_what_exists(name):
    lines = blocks(marked(name))[-1].strip().splitlines()
    commands = [shlex.split(part) for line in lines for part in line.split("&&")]
    assert commands
    for command in commands:
        program, *arguments = (word for word in command if not re.match(r"[A-Z]+=", word))
        {"pip": check_pip, "bczoo": check_bczoo, "pytest": check_pytest}[program](arguments)


def check_pip(words: list[str]) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert words[0] == "install"
    for extras in re.findall(r"\[(.*?)\]", " ".join(words)):
        assert set(extras.split(",")) <= set(project["optional-dependencies"])


def check_bczoo(words: list[str]) -> None:
    assert words[0] in cli.TRAINER or any(words[: len(c)] == list(c) for c in cli.FUNCTIONS)
    for config in (after for word, after in itertools.pairwise(words) if word == "--config"):
        assert (REPOSITORY / config).is_file() or config in configs.names()


def check_pytest(words: list[str]) -> None:
    paths = [after for word, after in itertools.pairwise(["", *words]) if not after.startswith("-") and word != "-n"]
    assert all((REPOSITORY / path.partition("::")[0]).exists() for path in paths)
