"""The walk-throughs of three users, command by command as the pages show them, at the size of ``transcripts.SMALL``."""

from __future__ import annotations

import json
import sys

import pytest
from pages import REPOSITORY, block
from transcripts import Shell

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="commands are forked")
DOOM = "doom/basic"  # episodes of a few seconds


@pytest.fixture
def shell(tmp_path):
    """Makes a shell in a folder that holds what the repository's top folder does."""
    shells = []

    def make(*small):
        shells.append(Shell(tmp_path, *small))
        return shells[-1]

    (tmp_path / "checkpoints").symlink_to(REPOSITORY / "checkpoints")
    yield make
    for one in shells:
        one.close()


def test_a_student_s_first_run(shell, tmp_path):
    pytest.importorskip("vizdoom")
    said = shell(
        (
            "fit --config quickstart",
            f"--trainer.callbacks.env {DOOM} --data.source.env {DOOM} --data.source.episodes 4",
        ),
        ("play", f"--env {DOOM}"),
    ).run("docs/first_run.md", "path")
    for row in ("| policy |", "| expert |", "| random |"):
        assert said.count(row) == 3, "fit, and play twice"
    assert "data/quickstart: 4 recordings" in said and "nothing is broken" in said
    for video in ("runs/quickstart/play.mp4", "runs/quickstart/again.mp4", "shipped.mp4"):
        assert (tmp_path / video).stat().st_size
    assert "causality, swap" in said and (tmp_path / "runs/quickstart/causality/causality.png").stat().st_size


def test_a_tokenizer(shell, tmp_path):
    pytest.importorskip("vizdoom")
    small = f"--data.source.env {DOOM} --data.source.episodes 4 --trainer.max_steps 2 --trainer.val_check_interval 2"
    said = shell(("fit --config vqvae_small", small)).run("docs/tokenizers.md", "path")
    assert "ids of" in said and "of its codes are used" in said
    assert (tmp_path / "runs/vqvae_small/reconstructions.png").stat().st_size
    assert len(list((tmp_path / "data/vqvae_small").rglob("tokens.npy"))) == 4
    assert "image tokenizer" in (tmp_path / "my_tokenizer/README.md").read_text()


def test_an_engineer_s_own_game(shell, tmp_path):
    (tmp_path / "my_module.py").write_text(block("docs/own_game.md", "game"))
    path = shell()
    said = path.run("docs/own_game.md", "path")
    assert "4 episodes of my_module:my_game in my_game; mean return 1.0" in said, "its expert reaches the goal"
    assert "my_game: 4 recordings" in said and "missed deadlines" in said
    assert (tmp_path / "clip.mp4").stat().st_size and (tmp_path / "runs/my_game/play.mp4").stat().st_size
    said = path.run("docs/own_game.md", "path-serve")
    assert "10 frames of 96 x 96 as fast as answered: 10 answered, 0 dropped, 0 errors, 0 lost" in said
    assert "1 connections, 1 played" in path.runs[-2].output, "the server ended in order"
    path.run("docs/own_game.md", "path-finetune")
    assert (tmp_path / "my_policy" / "model.safetensors").is_file()
    assert json.loads((tmp_path / "my_policy" / "training.json").read_text())["init_from"]


def test_a_researcher_s_own_part_in_several_runs(shell, tmp_path):
    pytest.importorskip("vizdoom")
    for file, name in {"my_parts.py": "part", "patches.yaml": "part-yaml"}.items():
        (tmp_path / file).write_text(block("docs/extending.md", name))
    path = shell(
        ("fit --config quickstart", f"--trainer.callbacks.env {DOOM}"),
        ("record", f"--env {DOOM}"),
        ("play", f"--env {DOOM}"),
    )
    path.run("docs/extending.md", "path")
    runs = sorted(p.parent.name for p in (tmp_path / "runs").glob("*/record.json"))
    assert runs == ["conv-0", "conv-1", "conv-2", "patches-0", "patches-1", "patches-2"]
    assert (tmp_path / "patches" / "model.safetensors").is_file()
    config = json.loads((tmp_path / "patches" / "config.json").read_text())
    assert "my_parts.PatchEncoder" in json.dumps(config)
    assert len(list((tmp_path / "runs").glob("*/causality/causality.json"))) == 2
