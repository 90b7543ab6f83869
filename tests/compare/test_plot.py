"""Curves of runs: what is drawn, and what is said where nothing can be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from run_folders import write_curve, write_run

from bczoo.cli import main
from bczoo.compare.command import compare
from bczoo.compare.plot import at_common_steps, plot
from bczoo.core.errors import UserError


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed in range(2):
        write_run(tmp_path / f"a-seed{seed}", seed, 0.5 + seed)
    write_run(tmp_path / "b", layers=4)
    return ["a-seed0", "a-seed1", "b"]


@pytest.fixture
def drawn(monkeypatch):
    """The figure, as it is just before it is written."""
    figures = []
    monkeypatch.setattr("bczoo.core.style.write_figure", lambda figure, path, **_: figures.append(figure))
    return figures


def test_a_picture_is_written(runs, capsys):
    assert main(["plot", *runs, "--metric", "val/loss,train/loss", "--out", "pictures/curves.png"]) == 0
    assert capsys.readouterr().out.strip() == "pictures/curves.png"
    assert Path("pictures/curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_seeds_are_a_line_with_a_band(runs, drawn):
    plot(runs)
    (panel,) = drawn[0].axes
    seeds, single = panel.get_lines()
    assert seeds.get_label() == "a (2 seeds)" and single.get_label() == "b"
    assert seeds.get_xdata().tolist() == [149, 299] and seeds.get_ydata().tolist() == pytest.approx([1.2, 1.0])
    (band,) = panel.collections
    assert band.get_datalim(panel.transData).intervaly == pytest.approx([0.5, 1.7])


def test_a_panel_for_every_metric_and_none_left_over(runs, drawn):
    plot(runs, ["val", "train"])
    titles = [panel.get_title(loc="left") for panel in drawn[0].axes if panel.get_visible()]
    assert titles == ["val/loss", "train/loss"]
    plot(runs[2:], ["val"])
    assert len(drawn[1].axes) == 1


@pytest.mark.parametrize(
    ("seconds", "unit", "last"), [(90.0, "seconds", 90), (600.0, "minutes", 10), (9000.0, "hours", 2.5)]
)
def test_time_is_in_a_unit_that_fits(runs, drawn, seconds, unit, last):
    content = json.loads(Path("b/record.json").read_text())
    content["training"] |= {"seconds": seconds, "steps": 299}
    Path("b/record.json").write_text(json.dumps(content))
    plot(["b"], x="seconds")
    (panel,) = drawn[0].axes
    assert panel.get_xlabel() == f"{unit} of training"
    assert panel.get_lines()[0].get_xdata()[-1] == pytest.approx(last)


def test_curves_meet_where_both_were_logged():
    steps, values = at_common_steps(
        [(np.array([0, 10, 20]), np.array([0.0, 1.0, 2.0])), (np.array([5, 15]), np.array([5.0, 6.0]))]
    )
    assert steps.tolist() == [5, 10, 15] and values.tolist() == [[0.5, 1.0, 1.5], [5.0, 5.5, 6.0]]
    with pytest.raises(UserError, match="do not meet"):
        at_common_steps([(np.array([0]), np.array([0.0])), (np.array([5]), np.array([5.0]))])


def test_what_cannot_be_drawn_is_told(runs, capsys):
    assert main(["plot", *runs, "--metric", "val/los"]) == 1
    assert "'val/los' was not logged in these runs; did you mean 'val/loss'?" in capsys.readouterr().err
    write_curve(Path("b/metrics.csv"), {1: 0.5}, train_own={1: 2.0})
    plot(runs, "train")
    assert "a-seed0 did not log train/own" in capsys.readouterr().out
    Path("b/record.json").unlink()
    with pytest.raises(UserError, match="b has no record of how long it trained; plot it over steps"):
        plot(["b"], x="seconds")


def test_a_folder_in_the_place_of_a_file_is_told_before_anything_is_read(tmp_path):
    for call, option in (
        (lambda: plot(["nowhere"], out=str(tmp_path)), "--out"),
        (lambda: compare(["nowhere"], csv=str(tmp_path)), "--csv"),
        (lambda: compare(["nowhere"], json=str(tmp_path)), "--json"),
    ):
        with pytest.raises(UserError, match=f"{option} .* is a folder; name a file in it"):
            call()
