"""The table of checkpoints is what its command writes, and the policies that ship in the repository play."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from bczoo import BCPolicy
from bczoo.cli import main

REPOSITORY = Path(__file__).parents[2]
SHIPPED = [p.parent for p in sorted((REPOSITORY / "checkpoints").glob("*/config.json"))]


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """The data file and the page, to break them."""
    shutil.copytree(REPOSITORY / "checkpoints", tmp_path / "checkpoints")
    shutil.copy(REPOSITORY / "checkpoints.md", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_checkpoints_md_is_up_to_date(monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    assert main(["zoo", "table", "--check", "true"]) == 0, capsys.readouterr().out


def test_a_stale_page_is_found_and_written_anew(copy, capsys):
    record = copy / "checkpoints" / "doom" / "training.json"
    content = json.loads(record.read_text())
    content["play"]["doom/basic"]["players"]["policy"]["mean"] = 12.3
    record.write_text(json.dumps(content))
    before = Path("checkpoints.md").read_text()
    assert main(["zoo", "table", "--check", "true"]) == 1
    assert "stale" in capsys.readouterr().err and Path("checkpoints.md").read_text() == before
    assert main(["zoo", "table"]) == 0
    assert "| `doom/basic` | 12.3 " in Path("checkpoints.md").read_text()
    assert main(["zoo", "table", "--check", "true"]) == 0


@pytest.mark.parametrize("section", ["trained", "reference"])
def test_an_incomplete_row_is_named(copy, capsys, section):
    path = copy / "checkpoints" / "zoo.yaml"
    zoo = yaml.safe_load(path.read_text())
    del zoo[section][0]["architecture"]
    zoo[section][0]["architcture"] = "x"
    path.write_text(yaml.safe_dump(zoo))
    assert main(["zoo", "table"]) == 1
    assert f"{section}[0] has unknown or missing entries: ['architcture', 'architecture']" in capsys.readouterr().err


def test_all_policies_that_ship_are_in_the_table():
    zoo = yaml.safe_load((REPOSITORY / "checkpoints" / "zoo.yaml").read_text())
    assert {row["folder"] for row in zoo["trained"]} == {folder.name for folder in SHIPPED}


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_shipped_policies_are_small_and_of_the_architecture_they_name(folder):
    zoo = yaml.safe_load((REPOSITORY / "checkpoints" / "zoo.yaml").read_text())
    row = next(row for row in zoo["trained"] if row["folder"] == folder.name)
    policy = BCPolicy.from_pretrained(folder)
    assert policy.config == BCPolicy.from_config(row["architecture"], pretrained=False).config
    assert sum(p.stat().st_size for p in folder.iterdir()) < 5_000_000


def test_a_shipped_policy_plays_at_once(tmp_path, capsys):
    """A score far beyond random play, whose mean return is below -100 in this game."""
    arguments = ["--env", "doom/basic", "--episodes", "8", "--compare", "false", "--threads", "1", "--seed", "7"]
    video = tmp_path / "play.mp4"
    assert main(["play", str(REPOSITORY / "checkpoints" / "doom"), *arguments, "--video", str(video)]) == 0
    out = capsys.readouterr().out
    mean = float(out.split("| policy |")[1].split("|")[0])
    assert mean > 50
    assert video.stat().st_size > 1000
