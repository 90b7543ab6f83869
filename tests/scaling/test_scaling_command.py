"""`bczoo scaling fit` and `plan`: tables and runs in, a report, a file and a picture out."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from points import CHINCHILLA, curves, isoflop_points

from bczoo.cli import main
from bczoo.scaling import ScalingFit, fit_frontier
from bczoo.train.flops import PEAK

SIZES = np.geomspace(1e7, 1e9, 5)


def write_table(path, rows, head=("run", "params", "tokens", "loss")):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)
    return str(path)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    rows = [
        (f"run{i}", n, d, y)
        for i, (n, ds, ys) in enumerate(curves(CHINCHILLA, SIZES))
        for d, y in zip(ds, ys, strict=True)
    ]
    return write_table(tmp_path_factory.mktemp("table") / "points.csv", rows)


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """A file with the fit of Chinchilla's law."""
    path = tmp_path_factory.mktemp("fit") / "fit.json"
    n, d, y = isoflop_points(CHINCHILLA, noise=0.003)
    rows = write_table(path.with_name("points.csv"), zip(n, 6 * n * d, y, strict=True), ("N", "C", "L"))
    words = ["--columns", "params=N,flops=C,loss=L", "--method", "parametric", "--resamples", "30"]
    assert main(["scaling", "fit", rows, *words, "--out", str(path)]) == 0
    return str(path)


def test_a_table_is_fitted_drawn_and_kept(table, tmp_path, capsys):
    out = tmp_path / "fit.json"
    words = ["--skip", "0", "--resamples", "20", "--out", str(out)]
    assert main(["scaling", "fit", table, *words]) == 0
    said = capsys.readouterr().out
    assert (
        "| frontier, crossings |" in said and "N_opt = a0 C^a" in said and "flagged: intervals are over blocks" in said
    )
    kept = json.loads(out.read_text())
    assert {"a", "b", "E", "A", "B", "alpha", "beta", "intervals", "dropped", "flags", "refused"} <= kept.keys()
    assert kept["a"] == pytest.approx(CHINCHILLA.a, rel=1e-3) and kept["A"] is None
    assert kept["intervals"]["a"][0] < kept["a"] < kept["intervals"]["a"][1]
    assert out.with_suffix(".png").stat().st_size > 10_000
    again = ScalingFit.read(out)
    assert again.a == kept["a"] and again.n_opt(1e20) == pytest.approx(CHINCHILLA.a0 * 1e20**CHINCHILLA.a, rel=0.05)


def test_other_columns_flops_for_tokens_and_no_runs(known):
    found = ScalingFit.read(known)
    assert found.alpha == pytest.approx(CHINCHILLA.alpha, rel=0.05)
    assert any("D = C / 6 N" in flag for flag in found.flags) and any("no column run" in flag for flag in found.flags)


def test_auto_takes_the_law_where_curves_do_not_cross(tmp_path, capsys):
    n, d, y = isoflop_points(CHINCHILLA, sizes=9)
    table = write_table(tmp_path / "points.csv", zip(range(len(n)), n, d, y, strict=True))
    assert main(["scaling", "fit", table, "--resamples", "0"]) == 0
    said = capsys.readouterr().out
    assert "| parametric, huber |" in said and "refused: frontier: a and b cannot be identified" in said
    assert main(["scaling", "fit", table, "--resamples", "0", "--method", "isoflop"]) == 0
    assert "isoflop" in capsys.readouterr().out


def test_what_is_refused_is_told_in_a_line_and_kept(tmp_path, capsys):
    d = np.geomspace(1e8, 1e10, 30)
    table = write_table(tmp_path / "one.csv", [("a", 1e8, x, CHINCHILLA.loss(1e8, x)) for x in d])
    out = tmp_path / "fit.json"
    assert main(["scaling", "fit", table, "--out", str(out)]) == 1
    told = capsys.readouterr().err
    assert "parametric: A, alpha and E cannot be identified with one size" in told and "Traceback" not in told
    kept = json.loads(out.read_text())
    assert kept["a"] is None and set(kept["refused"]) == {"frontier", "parametric"}
    assert main(["scaling", "plan", str(out), "--flops", "1e20"]) == 1
    assert "holds no fit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nothing"], "there is no nothing"),
        (["{table}", "--target", "los"], "no column 'los'; did you mean 'loss'?"),
        (["{table}", "--columns", "size=N"], "--columns takes name=column"),
        (["{table}", "--columns", "run=model"], "no column 'model'"),
        (["{table}", "--flops", "measured"], "no column for --flops measured"),
        (["{table}", "--params", "without"], "no column 'params_without_embeddings'"),
        (["{table}", "--skip", "1"], "--skip is a share"),
        (["{folder}"], "has no scaling.csv"),
    ],
)
def test_bad_input_is_one_line(words, told, table, tmp_path, capsys):
    words = [word.format(table=table, folder=tmp_path) for word in words]
    assert main(["scaling", "fit", *words]) == 1
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


def test_a_measure_that_rises_is_compared_by_its_largest_value(tmp_path, capsys):
    rows = [
        (f"run{i}", n, d, 500 - 100 * y)
        for i, (n, ds, ys) in enumerate(curves(CHINCHILLA, SIZES))
        for d, y in zip(ds, ys, strict=True)
    ]
    table = write_table(tmp_path / "points.csv", rows, ("run", "params", "tokens", "return"))
    words = ["--target", "return", "--skip", "0", "--resamples", "0"]
    assert main(["scaling", "fit", table, *words]) == 0
    said = capsys.readouterr().out
    assert "return rises with compute" in said and "refused: E, c, c0" in said and " 0.512" in said


def test_the_largest_size_is_held_out(table, capsys):
    assert main(["scaling", "fit", table, "--skip", "0", "--resamples", "0", "--holdout", "true"]) == 0
    assert "held out N = 1e+09" in capsys.readouterr().out


def test_a_plan_for_a_budget(known, capsys):
    assert main(["scaling", "plan", known, "--flops", "1e21", "--tokens", "1e10"]) == 0
    said = capsys.readouterr().out
    fit = ScalingFit.read(known)
    assert f"{fit.n_opt(1e21):.5g}" in said and f"{fit.loss_opt(1e21):.5g}" in said
    assert "the recordings at hand are not enough: 1e+10 tokens" in said and "Other sizes at the same compute" in said
    assert main(["scaling", "plan", known, "--flops", "1e21", "--tokens", "1e12"]) == 0
    assert "at hand are enough" in capsys.readouterr().out
    assert main(["scaling", "plan", known, "--flops", "1e25"]) == 0
    said = capsys.readouterr().out
    assert "nobody has tried" in said and "outside of the sizes that were trained" in said


def test_a_plan_for_gpus(known, capsys):
    from bczoo.scaling import plan

    made = plan(known, gpus=8, hours=70, mfu=0.4, device="H100")
    assert made.flops == pytest.approx(8 * 70 * 3600 * 0.4 * PEAK["H100 SXM"])
    assert made.sizes[3][3] == pytest.approx(0, abs=1e-9) and min(more for *_, more in made.sizes) > -1e-9
    low, high = made.intervals["loss"]
    assert low < made.loss < high
    capsys.readouterr()
    for words, told in (
        ([], "say how much compute"),
        (["--gpus", "8"], "belong together"),
        (["--gpus", "8", "--hours", "1", "--device", "Z80"], "its peak is not known"),
        (["--flops", "1e20", "--tokens", "5", "--data", "x"], "not both"),
        (["--flops", "1e20", "--data", "x"], "--tokens_per_frame"),
    ):
        assert main(["scaling", "plan", known, *words]) == 1
        assert told in capsys.readouterr().err


def test_a_fit_is_the_same_after_it_was_kept(tmp_path):
    found = fit_frontier(curves(CHINCHILLA, SIZES, noise=0.002), resamples=20)
    again = ScalingFit.from_dict(json.loads(json.dumps(found.to_dict())))
    assert again.interval_of("loss_opt", 1e20) == pytest.approx(found.interval_of("loss_opt", 1e20), rel=1e-4)
    assert again.to_dict() == found.to_dict()
