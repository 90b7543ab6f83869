"""The study of labels: which recordings each policy learns from, what is compared, and a study in small."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest

from bczoo.cli import main
from bczoo.core.errors import UserError
from bczoo.data.recording import (
    ANNOTATION_FILE,
    PSEUDO,
    UNKNOWN,
    RecordingWriter,
    known_action,
    read_annotation,
    write_action,
)
from bczoo.data.schema import annotation as pb
from bczoo.studies import labels, labels_report
from bczoo.studies.labels import PLANS, Reader, Trial, hide, readers, study_labels, trials
from bczoo.studies.labels_report import compare, tables, verdict, worth

PLAN = replace(PLANS["smoke"], few=(1, 3), more=5, seeds=2)


def rows(by_way, measure="loss", spread=0.01):
    """Policies of three seeds whose numbers lie around those of each way, by n: all ways of a seed off by the same."""
    out = []
    for way, values in by_way.items():
        for few, value in values.items():
            for seed in range(3):
                recordings = few + 20 * (way == "true")
                row = {"way": way, "few": few, "seed": seed, "recordings": recordings}
                out.append(row | {measure: value + spread * (seed - 1) + 0.001 * seed * (way == "guessed")})
    return out


LOSSES = {"labelled": {1: 0.9, 3: 0.7}, "guessed": {1: 0.6, 3: 0.55}, "true": {1: 0.5, 3: 0.5}}


def test_a_plan_has_every_way_of_every_n_and_seed():
    assert len(set(trials(PLAN))) == 2 * 2 * 3 and len(set(readers(PLAN))) == 4
    assert {trial.seed for trial in trials(PLAN)[:6]} == {0}


def test_the_hidden_truth_is_gone_and_the_guesses_stay(tmp_path):
    both = tmp_path / "both"
    with RecordingWriter(both, size=32) as writer:
        for i in range(4):
            action = {"keys": ["w"]}
            kinds = {"user": action} if i else {"system": action, "expert": action}
            writer.add(np.full((32, 32, 3), 9 * i, np.uint8), **kinds)
        writer.add(np.zeros((32, 32, 3), np.uint8))
    message = pb.VideoAnnotation.FromString((both / ANNOTATION_FILE).read_bytes())
    for frame in message.frame_annotations[1:]:
        write_action({"keys": ["d"]}, frame.pseudo_action)
        frame.pseudo_confidence = 0.5
    (both / ANNOTATION_FILE).write_bytes(message.SerializeToString())
    for _ in range(2):  # the second time it is there
        hide(both, tmp_path / "hidden")
    frames = read_annotation(tmp_path / "hidden").frame_annotations
    assert [known_action(frame)[0] for frame in frames] == [UNKNOWN] + [PSEUDO] * 4
    assert not any(frame.expert_action.is_known for frame in frames)
    assert [list(frame.pseudo_action.keyboard.keys) for frame in frames[1:]] == [["d"]] * 4
    assert (tmp_path / "hidden" / "32x32.mp4").read_bytes() == (both / "32x32.mp4").read_bytes()


def test_each_way_learns_from_its_recordings(tmp_path, monkeypatch):
    seen = {}

    class StopError(Exception):
        pass

    def data(folder, roots, seed, batch, pseudo=False):
        seen[way] = [str(root).removeprefix(f"{tmp_path}/") for root in roots], pseudo
        raise StopError

    monkeypatch.setattr(labels, "_data", data)
    for way in labels.WAYS:
        with pytest.raises(StopError):
            labels.run_trial(Trial(way, 3, 1), PLAN, str(tmp_path))
    known = ["data/seed1/to1", "data/seed1/to3"]
    assert seen == {
        "labelled": (known, False),
        "guessed": ([*known, "readers/n3-seed1/guessed"], True),
        "true": ([*known, "data/seed1/more"], False),
    }


def test_what_is_won_back_is_the_gain_over_the_gap():
    one, three = compare(rows(LOSSES), "loss")
    assert one["gain"]["mean"] == pytest.approx(0.3 - 0.001) and one["gap"]["mean"] == pytest.approx(0.4)
    assert one["won_back"] == pytest.approx(0.75, abs=0.01) and three["won_back"] == pytest.approx(0.75, abs=0.01)
    returns = {way: {1: 10 - 10 * values[1]} for way, values in LOSSES.items()}
    assert compare(rows(returns, "return"), "return")[0]["won_back"] == pytest.approx(0.75, abs=0.01)
    flat = {way: {1: 0.5} for way in LOSSES}
    assert compare(rows(flat), "loss")[0]["won_back"] is None


@pytest.mark.parametrize(("guessed", "answer"), [(0.6, "reproduced"), (1.2, "contradicted"), (0.899, "undecided")])
def test_verdicts(guessed, answer):
    found = verdict(compare(rows(LOSSES | {"guessed": {1: guessed, 3: 0.5}}), "loss"))
    assert found["n = 1"] == found["all"] == answer and found["n = 3"] == "reproduced"


def test_one_seed_decides_nothing():
    one = [row for row in rows(LOSSES) if row["seed"] == 0]
    assert verdict(compare(one, "loss")) == {"n = 1": "undecided", "n = 3": "undecided", "all": "undecided"}
    assert compare(one, "loss")[0]["won_back"] is None


def test_guesses_are_worth_the_labels_that_give_their_loss():
    one, three = worth(rows(LOSSES, spread=0))
    assert 3 < one["labelled"] < three["labelled"] < 21 and one["at"] == "within"  # 0.6 is between 3 and 21 recordings
    assert worth(rows(LOSSES | {"guessed": {1: 1.5, 3: 0.6}}))[0]["at"] == "less"
    better = worth(rows(LOSSES | {"guessed": {1: 0.1, 3: 0.6}}))[0]
    assert better == {"few": 1, "labelled": pytest.approx(23), "at": "more"}


def content():
    policies = [{**loss, "return": 20 - 10 * loss["loss"], "name": "p"} for loss in rows(LOSSES)]
    readings = [{"few": n, "seed": s, "name": "r", "joint": 0.6, "joint_copy": 0.3} for n in (1, 3) for s in range(3)]
    compared = {measure: compare(policies, measure) for measure in labels_report.BETTER}
    return {
        "plan": {"env": "doom/x", "minutes": 0.5, "more": 20, "seeds": 3, "games": 2},
        "processor": "a processor",
        "policies": policies,
        "readers": readings,
        "baselines": {"expert": 20.0, "random": 1.0},
        "compared": compared,
        "worth": worth(policies),
        "verdict": {measure: verdict(rows) for measure, rows in compared.items()},
    }


def test_the_tables_and_the_words(tmp_path):
    told = content()
    assert "75%" in tables(told) and "0.600" in tables(told)
    words = labels_report.sentences(told)
    assert "guesses improve the held-out loss: reproduced (n = 1 reproduced, n = 3 reproduced)" in words
    assert "half of the gap or more is won back, by return in play, from 1 labelled recordings on" in words
    (tmp_path / "labels.json").write_text(json.dumps(told))
    assert main(["study", "redraw", str(tmp_path)]) == 0
    assert (tmp_path / "labels.png").stat().st_size > 10_000


def test_what_is_asked_wrong_is_said(tmp_path):
    with pytest.raises(UserError, match="one of smoke, cpu"):
        study_labels("night", str(tmp_path))
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(UserError, match="another size or version"):
        study_labels("smoke", str(tmp_path))


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("BCZOO_SLOW"), reason="records and trains for minutes; BCZOO_SLOW=1 runs it")
def test_a_study_runs_and_goes_on(tmp_path, capsys):
    pytest.importorskip("vizdoom")
    command = ["study", "labels", "--size", "smoke", "--seeds", "1", "--workers", "1", "--out", str(tmp_path)]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "6/6 true-n2-seed0: loss" in told and "undecided" in told
    (tmp_path / "policies" / "true-n2-seed0" / "row.json").unlink()
    assert main(command) == 0
    assert "6 policies, 5 of them are already there" in capsys.readouterr().out
    row = json.loads((tmp_path / "readers" / Reader(1, 0).name / "row.json").read_text())
    assert 0 <= row["joint"] <= 1
