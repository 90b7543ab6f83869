"""What commands measure goes into the record and the card of a policy, and takes no better number's place."""

import json

import numpy as np
import pytest
import tiny
import torch

from bczoo.core.errors import UserError
from bczoo.hub import measurements
from bczoo.hub.card import model_card
from bczoo.hub.measurements import keep, results_folder
from bczoo.hub.source import locate
from bczoo.play.episodes import PlayResult
from bczoo.train.run_record import play_entry, read_record

LOSS = {"step": 6, "val/loss": 1.25}


def result(*returns):
    return PlayResult("catch", list(returns), [1] * len(returns), list(range(len(returns))), 1.0)


def entry(step, *returns, **settings):
    return play_entry({"policy": result(*returns)}, seed=5, step=step, settings=settings)


def checkpoint(folder, name, step, run="a", mark="m"):
    """A checkpoint of a run as far as it is read of one."""
    policy = tiny.tiny_policy(text_dim=None)
    content = {"state_dict": policy.state_dict(), "global_step": step}
    policy.on_save_checkpoint(content)
    content["callbacks"] = {
        "RunRecord": {"run": run, "measured": {"step": step, "val/loss": 1.0}},
        "ResumableCheckpoint": {"run": mark},
    }
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    torch.save(content, folder / "checkpoints" / name)


@pytest.fixture
def run(tmp_path):
    checkpoint(tmp_path / "run", "best.ckpt", 3)
    checkpoint(tmp_path / "run", "last.ckpt", 6)
    record = {"run": "a", "training": {"steps": 6}, "metrics": LOSS, "play": {}}
    (tmp_path / "run" / "record.json").write_text(json.dumps(record))
    return tmp_path / "run"


def played(run):
    return read_record(run / "record.json")["play"]


def test_returns_go_into_the_record_of_a_run_with_their_step(run):
    said = keep(locate(run), "play", "catch", entry(3, 1.0, 2.0, temperature=0.5), 2)
    assert said == f"kept in {run / 'record.json'}"
    assert played(run)["catch"]["step"] == 3 and played(run)["catch"]["settings"] == {"temperature": 0.5}
    policy = tiny.tiny_policy(text_dim=None)
    card = model_card("p", policy, locate(run).record)
    assert "Return in `catch`, unseen games from seed 5, temperature 0.5:" in card
    of_last = model_card("p", policy, locate(run / "checkpoints" / "last.ckpt").record)
    assert "temperature 0.5 (measured at step 3, not on these weights of step 6):" in of_last
    assert keep(locate(run), "play", "catch", entry(3, 1.0), 1, wanted=False) == ""


def test_a_measurement_takes_no_better_one_s_place(run):
    best, last = locate(run), locate(run / "checkpoints" / "last.ckpt")
    keep(best, "play", "catch", entry(3, 1.0, 2.0, 3.0), 3)
    assert "it rests on 3, more than 2" in keep(best, "play", "catch", entry(3, 9.0, 9.0), 2)
    assert "which the run stands for, and this one of step 6" in keep(last, "play", "catch", entry(6, *[9.0] * 5), 5)
    assert played(run)["catch"]["players"]["policy"]["mean"] == 2.0
    keep(best, "play", "catch", entry(3, 5.0, 5.0, 5.0), 3)
    assert played(run)["catch"]["players"]["policy"]["mean"] == 5.0
    keep(last, "play", "other", entry(6, 1.0), 1)
    assert keep(best, "play", "other", entry(3, 1.0), 1).endswith("it takes the place of one of step 6")


def test_nothing_goes_into_the_record_of_another_run(run):
    checkpoint(run, "before-1.ckpt", 3, run="b")
    older = locate(run / "checkpoints" / "before-1.ckpt")
    assert keep(older, "play", "catch", entry(3, 1.0), 1) == "" and played(run) == {}
    with pytest.raises(UserError, match="nothing is known of the training"):
        keep(older, "play", "catch", entry(3, 1.0), 1, wanted=True)
    assert keep(None, "latency", "cpu", {"step": None}, 1) == ""


def test_an_exported_folder_gets_them_if_that_is_wanted_and_its_card_keeps_what_a_user_wrote(run, tmp_path):
    record = locate(run).record
    policy = tiny.tiny_policy(text_dim=None)
    out = policy.save_pretrained(tmp_path / "out", record=record)
    card = (out / "README.md").read_text().replace("# out\n", "# out\n\nMy own words.\n") + "\n## Mine\n\nThanks.\n"
    (out / "README.md").write_text(card)
    before = (out / "training.json").read_bytes()
    assert "--add_to_record true keeps this in" in keep(locate(out), "play", "catch", entry(3, 1.0, 2.0), 2)
    assert (out / "training.json").read_bytes() == before and (out / "README.md").read_text() == card
    assert f"and in {out / 'README.md'}" in keep(locate(out), "play", "catch", entry(3, 1.0, 2.0), 2, wanted=True)
    after = (out / "README.md").read_text()
    assert "Return in `catch`, unseen games from seed 5 (measured on float32):" in after
    assert "| policy | 1.5 | 1.0 to 2.0 | 2 |" in after

    def without(text):
        start = text.index("## Measured")
        return text[:start] + text[text.index("\n## ", start) :]

    assert without(after) == without(card)
    assert locate(out).load(type(policy)) is not None and read_record(out / "training.json")["play"]["catch"]
    (out / "README.md").write_text("nothing of ours")
    assert "has no section '## Measured'" in keep(locate(out), "play", "b", entry(3, 1.0), 1, wanted=True)


def test_causality_and_latency_are_in_the_card(run):
    shares = {
        "causality": {"value": 1.5, "low": None, "high": None},
        "visual_share": {"value": None, "low": None, "high": None},
    }
    scored = {"step": 3, "part": "val", "recordings": 1, "windows": 8, "metrics": shares}
    keep(locate(run), "causality", "my_game", scored, 8)
    timed = {
        "step": 3,
        "dtype": "float32",
        "games": 1,
        "threads": 1,
        "steps_measured": 9,
        "p50": 1,
        "p99": 2,
        "budget": 50,
    }
    keep(locate(run), "latency", "x CPU", timed, 9)
    card = model_card("p", tiny.tiny_policy(text_dim=None), locate(run).record)
    assert "Causality on validation recordings of `my_game` (1 recordings, 8 windows):" in card
    assert "| `causality` | 1.500 | n/a |" in card and "| `visual_share` | n/a | n/a |" in card
    assert "| x CPU | float32 | 1 | 1 | 1.00 | 2.00 | 50.00 |" in card
    assert "was not measured" not in card
    assert "it rests on 8, more than 4" in keep(locate(run), "causality", "my_game", {**scored, "windows": 4}, 4)


def test_a_card_speaks_of_decisions_as_the_readme_does():
    policy = tiny.tiny_policy(text_dim=None)
    line = "print(decision.keys, decision.mouse_buttons, decision.mouse_dx)"
    assert line in model_card("p", policy, {})
    decision = policy.agent(seed=0).step(np.zeros((64, 64, 3), np.uint8))
    exec(line, {"decision": decision})
    gamepad = model_card("p", tiny.tiny_policy(text_dim=None, action_space="gamepad"), {})
    assert "decision.keys" not in gamepad and "print(decision." in gamepad


def test_every_kind_of_measurement_can_be_weighed():
    from bczoo.train.run_record import MEASURED

    entries = {"play": entry(1, 2.0), "causality": {"windows": 3}, "latency": {"steps_measured": 4}}
    assert [measurements.amount_of(what, entries[what]) for what in MEASURED] == [1, 3, 4]


def test_results_lie_in_the_folder_of_a_run_and_beside_the_runs_otherwise(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert results_folder(str(tmp_path / "run"), "causality") == str(tmp_path / "run" / "causality")
    for policy in ("org/name", "checkpoints/doom", str(tmp_path / "run" / "checkpoints" / "last.ckpt")):
        assert results_folder(policy, "causality") == "runs/causality"
