"""What the pages in docs/ show is run: the Python page from top to bottom, docs/extending.md by the command.

The reference names what is public. The walk-throughs are in test_paths.py.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from faults.process import bczoo
from pages import REPOSITORY, block, blocks

from bczoo.cli import main

PACKAGES = [
    *("bczoo", "bczoo.data", "bczoo.games", "bczoo.imports", "bczoo.play", "bczoo.record"),
    *("bczoo.scaling", "bczoo.serve"),
]


def test_the_python_page_runs(tmp_path):
    pytest.importorskip("vizdoom")
    script = tmp_path / "page.py"
    body = textwrap.indent("\n".join(blocks("docs/python.md").values()), "    ")
    script.write_text(f"if __name__ == '__main__':\n{body}")
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "| policy |" in done.stdout and "| random |" in done.stdout
    assert "val/change_perplexity/mouse_dx" in done.stdout


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with the modules and configurations of docs/extending.md, and a few recordings."""
    import numpy as np

    from bczoo.data.recording import RecordingWriter

    folder, page = tmp_path_factory.mktemp("own"), blocks("docs/extending.md")
    for file, name in {
        "my_lstm.py": "family",
        "lstm.yaml": "family-yaml",
        "my_parts.py": "part",
        "my_metrics.py": "metric",
        "my_callbacks.py": "callback",
        "my_callbacks.yaml": "metric-yaml",
    }.items():
        (folder / file).write_text(page[name])
    rng = np.random.default_rng(0)
    for i in range(2):
        with RecordingWriter(folder / "my_game" / f"rec_{i}", size=64) as writer:
            for _ in range(40):
                writer.add(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), user={"keys": ["w"]})
    return folder


@pytest.fixture
def own_game(tmp_path, monkeypatch):
    """The game of docs/own_game.md as a module in the current folder."""
    (tmp_path / "my_module.py").write_text(block("docs/own_game.md", "game"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bczoo"])
    monkeypatch.setattr(sys, "path", [*sys.path])  # the command puts the folder on it
    yield
    sys.modules.pop("my_module", None)


@pytest.mark.parametrize("agent", ["random", "expert"])
def test_the_page_s_own_game_is_recorded_in_several_processes(own_game, agent, capsys):
    words = ["--agent", agent, "--episodes", "2", "--size", "64", "--workers", "2", "--out", agent]
    assert main(["record", "--env", "my_module:my_game", *words]) == 0
    assert len(list(Path(agent).glob("*/64x64.mp4"))) == 2
    assert agent == "random" or "mean return 1.0" in capsys.readouterr().out, "its expert reaches the goal"


def test_the_page_s_recorder_writes_what_training_reads(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(block("docs/recordings.md", "writer"), {})
    monkeypatch.setattr(sys, "argv", ["bczoo"])
    assert main(["data", "check", "my_game"]) == 0
    said = capsys.readouterr().out
    assert "my_game: 1 recordings" in said and "user 40 " in said and "w 100.0%" in said


def test_the_page_s_format_is_imported(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("my_format.py").write_text(block("docs/recordings.md", "format"))
    Path("in").mkdir()
    np.save("in/a.npy", np.zeros((30, 24, 32, 3), np.uint8))
    Path("in/a.txt").write_text("w " * 15 + "s " * 15)
    assert main(["data", "import", "my_format.MyFormat", "in", "out", "--import", "my_format"]) == 0
    assert "out: 1 recordings imported, 0.00 h, 20 steps" in capsys.readouterr().out
    assert main(["data", "check", "out"]) == 0
    assert "user 19 (95.0%)" in capsys.readouterr().out


def exported(package: str) -> dict[str, object]:
    module = importlib.import_module(package)
    return {f"{package}.{name}": getattr(module, name) for name in module.__all__ if not name.startswith("__")}


def named(path: str) -> object:
    """What a dotted path names."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def test_every_public_name_is_in_the_reference():
    pages = (REPOSITORY / "docs" / "api").glob("*.md")
    paths = [path for page in pages for path in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)]
    assert len(paths) == len(set(paths)), "each on one page"
    shown = [id(named(path)) for path in paths]
    missing = [n for package in PACKAGES for n, value in exported(package).items() if id(value) not in shown]
    assert not missing


@pytest.mark.parametrize("package", PACKAGES)
def test_type_checkers_and_the_reference_see_every_public_name(package):
    """Both read sources, where names that load on first use stand under TYPE_CHECKING."""
    source = Path(importlib.import_module(package).__file__).read_text()
    seen = re.findall(r"^    from \S+ import (\w+) as \1$", source.partition("if TYPE_CHECKING:")[2], re.MULTILINE)
    assert {f"{package}.{name}" for name in seen} == set(exported(package))


def test_the_family_is_short():
    assert len([line for line in blocks("docs/extending.md")["family"].splitlines() if line.strip()]) <= 60


def test_a_family_of_the_user_s_own_trains_and_is_exported(here):
    small = ["--trainer.max_steps", "2", "--data.batch_size", "2"]
    status, said = bczoo("fit", "--config", "lstm.yaml", *small, folder=here)
    assert status == 0, said
    status, said = bczoo("export", "runs/lstm", "out", folder=here)
    assert status == 1 and "--import my_lstm" in said and "Traceback" not in said
    status, said = bczoo("export", "runs/lstm", "out", "--import", "my_lstm", folder=here)
    assert status == 0 and (here / "out" / "model.safetensors").is_file(), said


def test_a_part_a_metric_and_a_callback_of_the_user_s_own(here):
    words = ["fit", "--config", "tiny", "--config", "my_callbacks.yaml", "--model.encoder", "my_parts.PatchEncoder"]
    words += ["--data.root", "my_game", "--data.batch_size", "2", "--trainer.max_steps", "2"]
    words += ["--trainer.val_check_interval", "2", "--trainer.default_root_dir", "runs/parts"]
    status, said = bczoo(*words, folder=here)
    assert status == 0, said
    assert re.search(r"step 2: val/loss \d", said)
    header = next((here / "runs" / "parts").rglob("metrics.csv")).read_text().splitlines()[0]
    assert "val/confidence" in header.split(",")
    status, said = bczoo("export", "runs/parts", "parts", "--import", "my_parts", folder=here)
    assert status == 0, said


def test_every_picture_is_on_a_page_that_says_what_it_shows():
    docs = REPOSITORY / "docs"
    pages = [REPOSITORY / "README.md", *docs.rglob("*.md")]
    shown = {}
    for page in pages:
        for words, target in re.findall(r"!\[([^]]*)\]\(([^)\s]+\.png)\)", page.read_text(encoding="utf-8")):
            picture = (page.parent / target).resolve()
            assert picture.exists(), f"{page} shows {target}, which is not there"
            assert len(words.split()) >= 3, f"{page} has to say what {target} shows"
            shown[picture] = page
    lonely = {path.resolve() for path in docs.rglob("*.png")} - shown.keys()
    assert not lonely, f"no page shows {sorted(lonely)}"
