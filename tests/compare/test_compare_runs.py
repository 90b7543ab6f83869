"""Runs side by side: what is read, what belongs together, what intervals are, what is said where something lacks."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from run_folders import options, record, write_curve, write_run

from bczoo.cli import main
from bczoo.compare.command import compare
from bczoo.compare.groups import UNSET, differing_options, group_by_seed
from bczoo.compare.intervals import (
    Estimate,
    difference_of_intervals,
    mean_over_seeds,
    paired_difference,
    student_quantile,
    welch_difference,
)
from bczoo.compare.runs import flatten, read_curves, read_run
from bczoo.core.errors import UserError


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def two(here):
    """Two configurations with three seeds each: the second is better by 0.1, give or take."""
    for seed, (a, b) in enumerate([(0.50, 0.40), (0.52, 0.43), (0.55, 0.45)]):
        write_run(here / f"runs/a-seed{seed}", seed, a)
        write_run(here / f"runs/b-seed{seed}", seed, b, layers=4, played=9.0)
    return [f"runs/{name}-seed{seed}" for name in "ab" for seed in range(3)]


# ---------------------------------------------------------------------------------------------------- intervals


@pytest.mark.parametrize(("df", "known"), [(1, 12.706), (2, 4.3027), (4, 2.7764), (2.5, 3.57465), (30, 2.0423)])
def test_quantiles_are_those_of_the_tables(df, known):
    """2.5 is of scipy.stats.t.ppf(0.975, df)."""
    assert student_quantile(df) == pytest.approx(known, rel=2e-5)


def test_an_interval_over_three_seeds_holds_the_mean_as_often_as_it_says():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(400):
        found = mean_over_seeds(rng.normal(3, 2, 3))
        hits += found.low < 3 < found.high
    assert 0.92 < hits / 400 < 0.98


def test_pairs_are_told_apart_where_means_are_not():
    values, first = [1.1, 5.1, 9.2], [1.0, 5.0, 9.0]
    paired, means = paired_difference(values, first), welch_difference(values, first)
    assert paired.value == pytest.approx(means.value) == pytest.approx(0.4 / 3)
    assert means.side == "no" and means.high - means.low > 10 * (paired.high - paired.low)
    assert paired_difference([1.2, 5.2, 9.2001], first).side == "higher"
    assert paired_difference(first, [1.2, 5.2, 9.2001]).side == "lower"


def test_welch_is_that_of_scipy():
    """ttest_ind(..., equal_var=False).confidence_interval()"""
    found = welch_difference([27.5, 21.0, 19.0, 23.6], [27.1, 22.0, 20.8, 23.4, 23.4])
    assert found.value == pytest.approx(-0.565, abs=1e-6)
    assert (found.low, found.high) == (pytest.approx(-6.037235, abs=1e-5), pytest.approx(4.907235, abs=1e-5))


def test_intervals_of_single_runs_are_combined():
    found = difference_of_intervals(Estimate(5, 4, 7, 1, "games"), Estimate(1, 0, 4, 1, "games"))
    assert (found.value, found.low, found.high) == (4, 4 - math.hypot(1, 3), 4 + math.hypot(2, 1))
    assert difference_of_intervals(Estimate(5), Estimate(1, 0, 4)).low is None


def test_one_run_has_no_interval():
    assert mean_over_seeds([2.0]) == Estimate(2.0) and Estimate(2.0).side == ""


# ---------------------------------------------------------------------------------------------------- reading


def test_options_are_flat_and_parts_go_by_their_class():
    part = {"class_path": "bczoo.PlayGame", "init_args": {"env": "doom/basic"}}
    encoder = {"class_path": "bczoo.ImageEncoder", "init_args": {"tokens": 2}}
    model = {"class_path": "bczoo.BCPolicy", "init_args": {"encoder": encoder, "window": 8}}
    assert flatten({"trainer": {"callbacks": [part, part], "max_steps": 3}, "model": model, "betas": [0.9, 0.95]}) == {
        "trainer.callbacks.PlayGame": "bczoo.PlayGame",
        "trainer.callbacks.PlayGame.env": "doom/basic",
        "trainer.callbacks.PlayGame2": "bczoo.PlayGame",
        "trainer.callbacks.PlayGame2.env": "doom/basic",
        "trainer.max_steps": 3,
        "model": "bczoo.BCPolicy",
        "model.encoder": "bczoo.ImageEncoder",
        "model.encoder.tokens": 2,
        "model.window": 8,
        "betas": "[0.9, 0.95]",
    }


def test_runs_of_one_configuration_differ_in_seed_and_place_alone(two):
    runs = [read_run(run) for run in two]
    assert runs[0].options == runs[1].options and runs[0].seed == 0 and runs[1].seed == 1
    assert runs[0].options["trainer.callbacks.PlayGame.video"] == "<run>/play.mp4"
    first, second = group_by_seed(runs)
    assert (first.name, first.seeds) == ("runs/a", [0, 1, 2]) and second.name == "runs/b"
    assert differing_options([first, second]) == {"model.transformer.layers": [2, 4]}


def test_a_repeated_seed_and_an_unfinished_run_have_rows_of_their_own(here):
    write_run(here / "a", 0)
    write_run(here / "again", 0)
    write_run(here / "short", 1, steps=120)
    groups = group_by_seed([read_run(name) for name in ("a", "again", "short")])
    assert [group.name for group in groups] == ["a", "again", "short"]
    comparison = compare(["a", "again", "short"])
    assert "a and again are of one configuration" in "\n".join(comparison.notes)
    assert "short is at step 120 of 300: it has not finished" in comparison.notes


def test_a_part_of_another_class_differs_as_a_whole(here):
    """Its arguments differ with it and would fill the table."""
    for name, scheduler in (("a", None), ("b", {"class_path": "bczoo.WarmupCosine", "init_args": {"warmup": 0.1}})):
        write_run(here / name)
        (here / name / "config.yaml").write_text(yaml.safe_dump(options(here / name, 0, lr_scheduler=scheduler)))
    groups = group_by_seed([read_run(name) for name in ("a", "b")])
    assert differing_options(groups) == {"lr_scheduler": ["null", "bczoo.WarmupCosine"]}


def test_an_option_that_only_one_has_is_unset_in_the_other(here):
    for name, more in (("a", {}), ("b", {"extra": 3})):
        write_run(here / name)
        (here / name / "config.yaml").write_text(yaml.safe_dump(options(here / name, 0, **more)))
    assert differing_options(group_by_seed([read_run("a"), read_run("b")])) == {"extra": [UNSET, 3]}


def test_a_run_of_an_earlier_bczoo_is_read(here):
    """Logs in Lightning's folders; of two that overlap, the later one is that of the resumed run."""
    logs = here / "old" / "lightning_logs"
    for version, losses in ((0, {49: 3.0, 99: 2.0, 149: 9.0}), (2, {149: 1.5, 199: 1.0}), (10, {249: 0.5})):
        write_curve(logs / f"version_{version}" / "metrics.csv", losses)
        (logs / f"version_{version}" / "config.yaml").write_text(yaml.safe_dump(options(here / "old", version)))
    (here / "old" / "record.json").write_text(json.dumps(record(10, 0.25)))
    run = read_run("old")
    assert run.seed == 10
    steps, losses = run.curves["val/loss"]
    assert steps.tolist() == [49, 99, 149, 199, 249] and losses.tolist() == [3.0, 2.0, 1.5, 1.0, 0.5]
    assert run.measures["val/loss"].value == 0.25  # the record is newer than what was logged


def test_what_the_record_lacks_comes_from_the_log(here):
    write_run(here / "a", loss=0.5)
    content = json.loads((here / "a/record.json").read_text())
    del content["metrics"]
    (here / "a/record.json").write_text(json.dumps(content))
    measure = read_run("a").measures["val/loss"]
    assert (measure.value, measure.step) == (0.5, 299)


def test_a_table_that_was_spoilt_is_told_with_its_line(here):
    write_curve(here / "metrics.csv", {1: 0.5})
    with (here / "metrics.csv").open("a") as file:
        file.write("0,2,many\n")
    with pytest.raises(UserError, match=r"metrics.csv, line 3: .*'many'; correct or delete that line"):
        read_curves([here / "metrics.csv"])


@pytest.mark.parametrize("content", ["a: [", "- 1\n", "just words"])
def test_a_configuration_that_was_spoilt_is_told(here, content):
    write_run(here / "a")
    (here / "a/config.yaml").write_text(content)
    with pytest.raises(
        UserError, match=r"a/config.yaml (is not YAML|holds no options).*restore it or leave this run out"
    ):
        read_run("a")


def test_what_is_no_run_is_told_with_a_way_out(two):
    with pytest.raises(UserError, match=r"there is no folder nowhere; give runs such as"):
        read_run("nowhere")
    with pytest.raises(UserError, match=r"runs is no run.*it holds the runs a-seed0.*give runs/\*"):
        read_run("runs")
    with pytest.raises(UserError, match=r"runs/a-seed0 is given twice"):
        compare(["runs/a-seed0", "runs/b-seed0", "runs/../runs/a-seed0"])


# ---------------------------------------------------------------------------------------------------- the command


def test_seeds_form_one_row_and_differences_are_taken_seed_by_seed(two, capsys):
    assert main(["compare", *two]) == 0
    out = capsys.readouterr().out
    lines = {tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in out.splitlines() if line.startswith("|")}
    assert ("runs/a", "0, 1, 2", "2", "300", "10.0 min", "cpu, 2 threads, x86_64") in lines
    difference = paired_difference([0.40, 0.43, 0.45], [0.50, 0.52, 0.55])
    ends = f"{difference.low:.4g} to {difference.high:.4g}"
    mean = mean_over_seeds([0.40, 0.43, 0.45])
    own = f"{mean.low:.4g} to {mean.high:.4g}"
    assert ("val/loss", "runs/b", "0.4267", own, "-0.09667", ends, "lower") in lines
    assert ("play/doom/basic", "runs/b", "9", "9 to 9", "+4", "4 to 4", "higher") in lines
    assert "pairs of seeds" in out


def test_seeds_that_do_not_match_are_compared_by_their_means(two):
    write_run(Path("runs/b-seed7"), 7, 0.47, layers=4)
    comparison = compare(["runs/a-seed0", "runs/a-seed1", "runs/b-seed2", "runs/b-seed7"], "val/loss")
    (row,) = [row for row in comparison.rows if row.difference is not None]
    assert row.difference == welch_difference([0.45, 0.47], [0.50, 0.52])


def test_single_runs_are_compared_by_their_games(two):
    comparison = compare(["runs/a-seed0", "runs/b-seed1"])
    rows = {row.measure: row for row in comparison.rows if row.difference is not None}
    played = rows["play/doom/basic"]
    assert played.estimate == Estimate(9, 8, 10, 1, "games") and played.difference.side == "higher"
    assert rows["val/loss"].difference.low is None and rows["val/loss"].difference.side == ""
    assert any("`bczoo fit --seeds 3`" in note for note in comparison.notes)


def test_what_is_missing_is_a_dash_with_a_note(here, capsys):
    write_run(here / "a")
    scored = {"step": 300, "part": "all", "windows": 3, "recordings": 2}
    scored["metrics"] = {"causality": {"value": 0.5, "low": 0.4, "high": 0.6}}
    write_run(here / "b", layers=4, play={}, causality={"held_out": scored})
    comparison = compare(["a", "b"])
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("| play/doom/basic ") and "| b " in line)
    assert [cell.strip() for cell in line.split("|")[3:-1]] == ["-"] * 5
    assert "`-`: b did not measure play/doom/basic" in out
    assert "`-`: a did not measure causality on held_out" in out
    (row,) = [row for row in comparison.rows if row.measure == "causality on held_out" and row.group.name == "b"]
    assert row.estimate == Estimate(0.5, 0.4, 0.6, 1, "recordings")


def test_a_number_of_other_weights_says_so(here):
    write_run(here / "a", metrics={"step": 200, "val/loss": 0.5})
    assert "a: val/loss measured at step 200, its policy is of step 300" in "\n".join(compare(["a"]).notes)


def test_a_run_is_measured_by_its_best_weights(here):
    best = {"monitor": "val/loss", "mode": "min", "value": 0.3, "step": 200, "metrics": {"step": 200, "val/loss": 0.3}}
    write_run(here / "a", loss=0.5, best=best, play={})
    run = read_run("a")
    assert (run.steps, run.policy_step, run.measures["val/loss"].value) == (300, 200, 0.3)
    assert "a: val/perplexity/keys measured at step 300, its policy is of step 200" in compare(["a"]).notes


def test_many_options_get_a_table_of_their_own(here, capsys):
    for name in ("a", "b"):
        write_run(here / name)
        more = {f"option{i}": name for i in range(6)}
        (here / name / "config.yaml").write_text(yaml.safe_dump(options(here / name, 0, **more)))
    compare(["a", "b"])
    out = capsys.readouterr().out
    assert "| option  | a | b |" in out and "| option3 | a | b |" in out


def test_an_exported_folder_stands_beside_a_run(here, capsys):
    write_run(here / "a")
    (here / "weights").mkdir()
    transformer = {"class_path": "bczoo.PolicyTransformer", "init_args": {"width": 64, "layers": 8}}
    policy = {"class_path": "bczoo.BCPolicy", "init_args": {"transformer": transformer}}
    (here / "weights/config.json").write_text(json.dumps({"format_version": 2, "policy": policy}))
    (here / "weights/training.json").write_text(json.dumps(record(3, 0.4)))
    comparison = compare(["a", "weights"])
    assert comparison.options == {"model.transformer.layers": [2, 8]}  # and nothing of what it cannot know
    assert comparison.groups[1].seeds == [3]
    assert "weights has no config.yaml" in capsys.readouterr().out


def test_json_and_csv_hold_the_same(two, capsys):
    assert main(["compare", *two, "--json", "out/all.json", "--csv", "all.csv", "--metric", "val/loss,play"]) == 0
    content = json.loads(Path("out/all.json").read_text())
    rows = list(csv.DictReader(Path("all.csv").read_text().splitlines()))
    assert [row["measure"] for row in rows] == ["val/loss"] * 2 + ["play/doom/basic"] * 2
    assert rows[1]["run"] == "runs/b" and rows[1]["seeds"] == "0 1 2" and rows[1]["model.transformer.layers"] == "4"
    assert rows[1]["apart"] == "lower" and float(rows[1]["difference"]) == pytest.approx(-0.29 / 3)
    assert content["rows"][1]["difference"]["low"] == float(rows[1]["difference_low"])
    assert content["groups"][1]["measures"]["val/loss"] == [0.40, 0.43, 0.45]
    assert content["groups"][0]["runs"] == two[:3] and content["compared_with"] == "runs/a"


def test_an_unknown_metric_gets_a_suggestion(two, capsys):
    assert main(["compare", *two, "--metric", "val/los"]) == 1
    assert "'val/los' was not measured in these runs; did you mean 'val/loss'?" in capsys.readouterr().err


def test_comparing_needs_nothing_heavy(two):
    code = "import sys; from bczoo.cli import main; main(['compare', 'runs/a-seed0']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")
