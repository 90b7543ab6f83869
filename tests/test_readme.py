"""README.md and the pages do what they say: links lead somewhere, commands name what exists."""

from __future__ import annotations

import importlib
import inspect
import itertools
import re
import shlex
import textwrap
import tomllib

import pytest
from pages import REPOSITORY, block

from bczoo import cli
from bczoo.core import configs

PAGES = [
    "README.md",
    "CHANGELOG.md",
    "checkpoints.md",
    *sorted(str(p.relative_to(REPOSITORY)) for p in REPOSITORY.glob("docs/**/*.md")),
]
OTHER = ("--help", "COMMAND")  # words after bczoo that are no command
OWN = ("lstm.yaml", "my_callbacks.yaml", "patches.yaml")  # configurations that docs/extending.md shows
BLOCK = re.compile(r"(?:^(?: {4}.*)?\n)+", re.MULTILINE)  # indented lines, and empty ones between them


def blocks(text: str) -> list[str]:
    """The code blocks of a text, without their indentation."""
    return [textwrap.dedent(b).strip() + "\n" for b in BLOCK.findall(text) if b.strip()]


def prose(text: str) -> str:
    """A text without code."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", BLOCK.sub("\n", text))


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


def test_the_readme_is_short():
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()) < 150


@pytest.mark.parametrize("name", ["test", "quickstart"])
def test_commands_of_the_readme_name_what_exists(name):
    lines = block("README.md", name).splitlines()
    commands = [shlex.split(part) for line in lines for part in line.split("&&")]
    assert commands
    for program, *arguments in commands:
        {"pip": check_pip, "bczoo": check_bczoo, "pytest": check_pytest}[program](arguments)


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_the_pages_name_what_exists(page):
    code = "\n".join(blocks((REPOSITORY / page).read_text(encoding="utf-8"))).replace("\\\n", " ")
    for command in re.findall(r"^ *(?:bczoo) +(.*)$", code, re.MULTILINE):
        check_bczoo(shlex.split(command, comments=True))


def check_pip(words: list[str]) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert words[0] == "install"
    for extras in re.findall(r"\[(.*?)\]", " ".join(words)):
        assert set(extras.split(",")) <= set(project["optional-dependencies"])


def check_bczoo(words: list[str]) -> None:
    """The command exists, the configurations that it names, and the options of commands that are functions."""
    command = next((c for c in cli.FUNCTIONS if tuple(words[: len(c)]) == c), None)
    assert command or words[0] in cli.TRAINER or words[0] in OTHER, words
    for config in (after for word, after in itertools.pairwise(words) if word == "--config"):
        assert (REPOSITORY / config).is_file() or config in configs.names() or config in OWN, words
    if command:
        module, _, function = cli.FUNCTIONS[command][1].partition(":")
        known = inspect.signature(getattr(importlib.import_module(module), function)).parameters
        given = {re.split(r"[.+=]", word[2:])[0] for word in words if word.startswith("--")}
        assert given - {"config", "import", "help"} <= set(known), words


def check_pytest(words: list[str]) -> None:
    paths = [after for word, after in itertools.pairwise(["", *words]) if not after.startswith("-") and word != "-n"]
    assert all((REPOSITORY / path.partition("::")[0]).exists() for path in paths)
