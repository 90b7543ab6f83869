"""A wheel in a clean environment: everything is in it, and its commands work where no repository can be imported."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from pages import REPOSITORY, block

from bczoo import Policy
from bczoo.hub.source import locate

SMALL = "--trainer.max_steps 2 --trainer.val_check_interval 2 --trainer.enable_progress_bar false --data.batch_size 2"
COMMANDS = f"""
record --env my_module:my_game --agent expert --episodes 4 --size 96 --workers 1 --out my_game
fit --config 600m --print_config
fit --config tiny --data.root my_game {SMALL}
play runs/tiny --env my_module:my_game --episodes 1 --watch true --watch_port 0
play checkpoints/doom --env my_module:my_game --episodes 1 --compare false
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    words = ["pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder), str(REPOSITORY)]
    subprocess.run([sys.executable, "-m", *words], check=True, capture_output=True)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A new environment with the wheel; what it depends on is this environment's, editable installs left out."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    words = ["pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, "-m", *words], check=True, capture_output=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    ours = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "ours.pth").write_text("\n".join(ours))  # a .pth file that lies in one of these is not followed
    return folder


def test_everything_is_in_the_wheel(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, there in {"bczoo": "bczoo", "configs": "bczoo/configs", "checkpoints": "bczoo/checkpoints"}.items():
        files = [p for p in (REPOSITORY / folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts]
        assert files and {f"{there}/{p.relative_to(REPOSITORY / folder).as_posix()}" for p in files} <= names


@pytest.mark.skipif(sys.platform == "win32", reason="environments have another layout")
def test_its_commands_work_without_the_repository(installed, tmp_path):
    (tmp_path / "my_module.py").write_text(block("docs/own_game.md", "game"))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def run(program: str, *words: str) -> str:
        done = subprocess.run(
            [installed / "bin" / program, *words], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{words}: {done.stderr[-3000:]}"
        return done.stdout

    where = run("python", "-c", "import bczoo, sys; print(bczoo.__file__, *sys.path, sep='\\n')").splitlines()
    assert Path(where[0]).is_relative_to(installed) and str(REPOSITORY) not in where
    assert "usage: bczoo" in run("bczoo", "--help")
    said = [run("bczoo", *command.split()) for command in COMMANDS.strip().splitlines()]
    assert "4 episodes of my_module:my_game" in said[0]
    assert "width: 2048" in said[1]
    assert (tmp_path / "runs" / "tiny" / "checkpoints" / "last.ckpt").is_file()
    assert "| policy |" in said[3] and "watch at http://" in said[3]
    assert "| policy |" in said[4]


def test_policies_that_ship_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert locate("checkpoints/doom").path == REPOSITORY / "checkpoints" / "doom"
    own = tmp_path / "checkpoints" / "doom"
    locate("checkpoints/doom").load(Policy).save_pretrained(own)
    assert locate("checkpoints/doom").path.resolve() == own, "a folder of one's own goes first"
