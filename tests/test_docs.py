"""What the pages in docs/ show is run: the Python page from top to bottom, docs/extending.md by the command."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"


def blocks(page: str) -> dict[str, str]:
    """The marked blocks of a page by name, in order, without their indentation."""
    text = (DOCS / page).read_text(encoding="utf-8")
    found = re.findall(r"<!-- ([\w-]+):begin -->\n(.*?)<!-- \1:end -->", text, re.DOTALL)
    return {name: textwrap.dedent(code).strip() + "\n" for name, code in found}


def test_the_python_page_runs(tmp_path):
    pytest.importorskip("vizdoom")
    script = tmp_path / "page.py"
    body = textwrap.indent("\n".join(blocks("python.md").values()), "    ")
    script.write_text(f"if __name__ == '__main__':\n{body}")
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "| policy |" in done.stdout and "| random |" in done.stdout
    assert "val/change_perplexity/mouse_dx" in done.stdout


def bczoo(*words: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "bczoo", *words], cwd=cwd, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with the modules and configurations of docs/extending.md, and a few recordings."""
    import numpy as np

    from bczoo.data.recording import RecordingWriter

    folder, page = tmp_path_factory.mktemp("own"), blocks("extending.md")
    for file, block in {
        "my_lstm.py": "family",
        "lstm.yaml": "family-yaml",
        "my_parts.py": "part",
        "my_metrics.py": "metric",
        "my_callbacks.py": "callback",
        "my_callbacks.yaml": "metric-yaml",
    }.items():
        (folder / file).write_text(page[block])
    rng = np.random.default_rng(0)
    for i in range(2):
        with RecordingWriter(folder / "my_game" / f"rec_{i}", size=64) as writer:
            for _ in range(40):
                writer.add(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), user={"keys": ["w"]})
    return folder


def test_the_family_is_short():
    assert len([line for line in blocks("extending.md")["family"].splitlines() if line.strip()]) <= 60


def test_a_family_of_the_user_s_own_trains_and_is_exported(here):
    done = bczoo("fit", "--config", "lstm.yaml", "--trainer.max_steps", "2", "--data.batch_size", "2", cwd=here)
    assert done.returncode == 0, done.stderr[-3000:]
    refused = bczoo("export", "runs/lstm", "out", cwd=here)
    assert refused.returncode == 1 and "--import my_lstm" in refused.stderr and "Traceback" not in refused.stderr
    done = bczoo("export", "runs/lstm", "out", "--import", "my_lstm", cwd=here)
    assert done.returncode == 0 and (here / "out" / "model.safetensors").is_file(), done.stderr[-3000:]


def test_a_part_a_metric_and_a_callback_of_the_user_s_own(here):
    words = ["fit", "--config", "tiny", "--config", "my_callbacks.yaml", "--model.encoder", "my_parts.PatchEncoder"]
    words += ["--data.root", "my_game", "--data.batch_size", "2", "--trainer.max_steps", "2"]
    words += ["--trainer.val_check_interval", "2", "--trainer.default_root_dir", "runs/parts"]
    done = bczoo(*words, cwd=here)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"step 2: val/loss \d", done.stdout)
    header = next((here / "runs" / "parts").rglob("metrics.csv")).read_text().splitlines()[0]
    assert "val/confidence" in header.split(",")
    done = bczoo("export", "runs/parts", "parts", "--import", "my_parts", cwd=here)
    assert done.returncode == 0, done.stderr[-3000:]


def test_every_picture_is_on_a_page_that_says_what_it_shows():
    root = DOCS.parent
    pages = [root / "README.md", *DOCS.rglob("*.md")]
    shown = {}
    for page in pages:
        for words, target in re.findall(r"!\[([^]]*)\]\(([^)\s]+\.png)\)", page.read_text(encoding="utf-8")):
            picture = (page.parent / target).resolve()
            assert picture.exists(), f"{page} shows {target}, which is not there"
            assert len(words.split()) >= 3, f"{page} has to say what {target} shows"
            shown[picture] = page
    lonely = {path.resolve() for path in DOCS.rglob("*.png")} - shown.keys()
    assert not lonely, f"no page shows {sorted(lonely)}"
