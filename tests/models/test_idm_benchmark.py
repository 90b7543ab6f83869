"""benchmarks/inverse_dynamics.py: which recordings each policy learns from, and the numbers of its table."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
from pages import REPOSITORY
from test_idm_label import guesses, write

from bczoo.data.recording import PSEUDO, UNKNOWN, known_action, read_annotation
from bczoo.models.idm.label import label

SCRIPT = REPOSITORY / "benchmarks" / "inverse_dynamics.py"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which the script sets for its own processes
    spec = importlib.util.spec_from_file_location("inverse_dynamics", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_hidden_truth_is_gone_and_the_guesses_stay(benchmark, tmp_path):
    from test_idm import tiny_idm

    tiny_idm().save_pretrained(tmp_path / "idm")
    for i in range(3):
        write(tmp_path / "all" / f"rec-{i}", 41, known=True, seed=i)
    few = benchmark.first_minutes(tmp_path / "all", tmp_path / "few", 3 / 60)  # of 2 s each
    assert [folder.name for folder in benchmark.recordings(few)] == ["rec-0", "rec-1"]
    label(str(tmp_path / "idm"), str(few), str(tmp_path / "guessed"))
    benchmark.hide(tmp_path / "guessed", tmp_path / "hidden")
    for name in ("rec-0", "rec-1"):
        frames = read_annotation(tmp_path / "hidden" / name).frame_annotations
        assert [known_action(frame)[0] for frame in frames] == [UNKNOWN] + [PSEUDO] * 40
        assert guesses(tmp_path / "hidden" / name) == guesses(tmp_path / "guessed" / name)


def test_the_table_tells_what_was_won_back(benchmark):
    returns = {benchmark.ALONE: 100, benchmark.GUESSED: 160, benchmark.GUESSED_ALONE: 150, benchmark.TRUE: 200}
    measures = {"event_f1/keys": 0.5, "joint": 0.6, "joint_copy": 0.3, "r2/mouse_dx": 0.9}
    seeds = {}
    for seed in (0, 1):
        played = {way: [mean + seed, mean - seed] for way, mean in returns.items()}
        seeds[seed] = {"2": {"returns": played, "measures": measures}}
    text = benchmark.tables(seeds)
    assert "| 60% |" in " ".join(text.replace("      ", " ").split()) and "160 (160 to 160)" in text
    assert "0.500" in text and "0.900" in text


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("BCZOO_SLOW"), reason="records and trains for minutes; BCZOO_SLOW=1 runs it")
def test_it_runs_and_runs_again(tmp_path):
    pytest.importorskip("vizdoom")
    command = [sys.executable, SCRIPT, "--smoke", "--out", "out"]
    first, again = (subprocess.run(command, cwd=tmp_path, capture_output=True, text=True) for _ in range(2))
    assert first.returncode == 0, first.stderr[-3000:]
    assert again.returncode == 0 and first.stdout[-400:] == again.stdout[-400:]
    assert "won back" in first.stdout and "the trained policy" not in again.stdout
