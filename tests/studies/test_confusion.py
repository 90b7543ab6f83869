"""The study of causal confusion: what it trains, and whether its findings follow from its rows."""

import json

import numpy as np
import pytest
import torch
from torchmetrics.functional import spearman_corrcoef

from bczoo import BCPolicy
from bczoo.cli import main
from bczoo.core.errors import UserError
from bczoo.studies.confusion import PLANS, make_policy, study_confusion, trials
from bczoo.studies.confusion_report import (
    PREDICTORS,
    advantage,
    centred_ranks,
    correlation,
    find,
    reliability,
    scaling_sentences,
)


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr("bczoo.studies.confusion_report.RESAMPLES", 200)


def made_up(count, seed=0, **columns):
    """Rows of random policies; ``columns`` replaces measures by functions of the row's number."""
    rng = np.random.default_rng(seed)
    keys = {*PREDICTORS, "return", "parameters"}
    rows = []
    for i in range(count):
        row = {key: float(rng.normal()) for key in keys}
        row |= {"decoder": "decoder", "past_actions": True, "fraction": (0.1, 1.0)[i % 2], "size": "sm"[i // 2 % 2]}
        row |= {"returns": [row["return"], row["return"] + 1]}
        rows.append(row | {key: make(i) for key, make in columns.items()})
    return rows


def test_a_plan_has_every_size_on_every_fraction_and_every_decoder_with_and_without_past_actions():
    plan = PLANS["cpu"]
    found = trials(plan)
    assert len({t.name for t in found}) == len(found) == plan.seeds * len(plan.worlds) * (3 * 3 + 6 - 1)
    first = [t for t in found if t.seed == 0]
    assert found[: len(first)] == first  # a study that is stopped early is whole for its first seeds
    one = [t for t in first if t.world == plan.worlds[0]]
    published = {(t.size, t.fraction) for t in one if t.decoder == "decoder" and t.past_actions}
    assert published == {(s, f) for s in plan.sizes for f in plan.fractions}
    ablated = {(t.decoder, t.past_actions) for t in one if (t.size, t.fraction) == ("s", 1.0)}
    assert len(ablated) == 6


def test_policies_of_a_trial_differ_in_what_the_trial_says():
    plan = PLANS["smoke"]
    for trial in trials(plan):
        policy = make_policy(trial, plan)
        assert policy.layout.past_actions == trial.past_actions
        assert policy.layout.causal_actions == (trial.decoder == "no decoder")
        assert policy.input_spec.window == plan.window
    names = {type(make_policy(t, plan).decoder).__name__ for t in trials(plan)}
    assert names == {"ActionDecoder", "BackboneHeads", "IndependentHeads"}


def test_ranks_share_ties_and_correlate_as_spearman_does():
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 6, 40).astype(float), rng.normal(size=40)
    rows = made_up(40, size=str, causality=lambda i: x[i], **{"return": lambda i: y[i]})
    expected = spearman_corrcoef(torch.from_numpy(x), torch.from_numpy(y)).item()
    assert correlation(rows, "causality", "return", 1)["rho"] == pytest.approx(expected, abs=1e-6)
    assert correlation(rows, "causality", "return", -1)["rho"] == pytest.approx(-expected, abs=1e-6)
    assert centred_ranks(np.array([3.0, 1.0, 3.0, 2.0]), np.zeros(4, int)).tolist() == [1.0, -1.5, 1.0, -0.5]


def test_within_leaves_out_what_another_cause_does():
    """The measure falls with size at each fraction, but large sizes come with large fractions, which raise it more."""
    rows = made_up(
        40,
        fraction=lambda i: i // 10,
        parameters=lambda i: i,
        causality=lambda i: 100 * (i // 10) - i % 10,
        size=str,
    )
    assert correlation(rows, "parameters", "causality", 1)["rho"] > 0.8
    assert correlation(rows, "parameters", "causality", 1, within="fraction")["rho"] == pytest.approx(-1)


def test_findings_say_what_made_up_policies_were_made_to_show():
    noise = np.random.default_rng(3).normal(size=60)
    rows = made_up(60, size=str, causality=lambda i: i, loss=lambda i: noise[i], **{"return": lambda i: 2.0 * i})
    findings = find(rows)
    assert findings["return"]["causality"]["rho"] == pytest.approx(1)
    assert abs(findings["return"]["loss"]["rho"]) < 0.4
    assert "does causality predict play better than loss? yes" in scaling_sentences(findings)
    other = find([row | {"causality": row["loss"], "loss": -row["causality"]} for row in rows])
    assert "does causality predict play better than loss? no, worse" in scaling_sentences(other)
    equal = find([row | {"causality": -row["loss"]} for row in rows])
    assert advantage(rows, "causality", "loss", "return")["low"] > 0
    assert "does causality predict play better than loss? undecided" in scaling_sentences(equal)
    assert "causality with size" in scaling_sentences(findings)


def test_luck_of_the_games_is_told_from_policies_that_differ():
    rng = np.random.default_rng(0)

    def rows(spread):
        skill = spread * rng.normal(size=400)
        games = skill[:, None] + rng.normal(size=(400, 4))
        return [{"return": g.mean(), "returns": g.tolist()} for g in games]

    assert reliability(rows(1.0)) == pytest.approx(1 / (1 + 1 / 4), abs=0.05)
    assert reliability(rows(0.0)) < 0.15 and reliability(rows(5.0)) > 0.95


def test_seeds_of_one_kind_of_policy_are_drawn_together():
    """Ten copies of each row add no evidence, so the interval must stay as wide as it is."""
    few = made_up(12, causality=lambda i: i, size=str, **{"return": lambda i: i + 8 * (i % 3)})
    one, ten = (correlation(r, "causality", "return", 1) for r in (few, [row for row in few for _ in range(10)]))
    assert ten["rho"] == pytest.approx(one["rho"], abs=0.02)
    assert ten["high"] - ten["low"] > 0.8 * (one["high"] - one["low"])


def test_measures_that_are_missing_or_alike_give_no_correlation():
    rows = made_up(10, causality=lambda i: None if i else 1.0, habit=lambda i: None, loss=lambda i: 1.0, size=str)
    assert correlation(rows, "causality", "return", 1) is None
    assert correlation(rows, "loss", "return", -1) is None  # all the same: nothing to rank


def test_the_smoke_study_from_start_to_end_and_again(tmp_path, capsys):
    out = tmp_path / "study"
    assert main(["study", "confusion", "--size", "smoke", "--out", str(out), "--workers", "1"]) == 0
    told = capsys.readouterr().out
    report = json.loads((out / "report.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert len(report["rows"]) == len(trials(PLANS["smoke"])) == 6
    for row in report["rows"]:
        assert row["loss"] > 0 and row["causality"] >= 0 and len(row["returns"]) == PLANS["smoke"].worlds[0].games
        assert 0 <= row["intervention_accuracy"] <= 1
        assert (row["action_reliance"] > 1e-9) == (row["past_actions"])
        policy = BCPolicy.from_pretrained(out / "policies" / row["name"])
        assert policy.layout.past_actions == row["past_actions"]
    assert "### basic" in (out / "report.md").read_text() and "| xs |" in told
    assert all((out / f"{name}.png").stat().st_size > 5000 for name in ("scaling", "prediction"))
    for name in ("scaling", "prediction"):
        (out / f"{name}.png").rename(out / f"first-{name}.png")
    assert main(["study", "redraw", str(out)]) == 0 and f"{out}/scaling.png" in capsys.readouterr().out
    for name in ("scaling", "prediction"):
        assert (out / f"{name}.png").read_bytes() == (out / f"first-{name}.png").read_bytes()
    kept = {p: p.stat().st_mtime_ns for p in (out / "policies").rglob("row.json")}
    study_confusion("smoke", str(out), workers=1)
    assert "6 policies, 6 of them are already there" in capsys.readouterr().out
    assert kept == {p: p.stat().st_mtime_ns for p in (out / "policies").rglob("row.json")}

    again = report["rows"][0]
    row = out / "policies" / again["name"] / "row.json"
    row.unlink()
    study_confusion("smoke", str(out), workers=1)  # the policy is there, so it is measured and not trained
    assert json.loads(row.read_text()) == again
    with pytest.raises(UserError, match="holds a study of another size"):
        study_confusion("cpu", str(out))


def test_sizes_that_there_are_not_are_named():
    with pytest.raises(UserError, match=r"smoke, cpu, gpu, got 'huge'"):
        study_confusion("huge")
    with pytest.raises(UserError, match="seeds is at least 1"):
        study_confusion("smoke", seeds=0)
