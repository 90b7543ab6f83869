"""``bczoo export``: a run becomes a folder with a card that shows no number of other weights as its own."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from exported import (
    assert_same_state,
    bczoo,
    bomb,
    checkpoint_of,
    files,
    weights_in,
)
from huggingface_hub import ModelCard, metadata_load

from bczoo import (
    BCPolicy,
    FineTune,
    LoRA,
)
from bczoo.cli import main
from bczoo.hub.state import read_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread", "offline")


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        bomb("[", "]", 400_000),
        b'{"play": {"doom": {}}}',
        b'{"metrics": 5}',
        b'{"metrics": {"step": 1, "val/loss": 1' + b"0" * 400 + b"}}",
        b'{"init_from": 5}',
    ],
    ids=["half", "list", "bomb", "play", "metrics", "number", "source"],
)
def test_a_broken_record_is_told_and_does_not_keep_a_policy_from_playing(
    content, folder, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(sys, "argv", ["bczoo"])
    (folder / "training.json").write_bytes(content)
    BCPolicy.from_pretrained(folder)
    assert main(["export", str(folder), str(tmp_path / "out")]) == 1
    assert "training.json" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def runs(recordings, tmp_path_factory):
    """Three runs in the same place: three steps, the last one not validated any more, then four, and other four."""
    here = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        for seed, (steps, kept) in enumerate([(3, "first"), (4, "second"), (4, "third")]):
            assert bczoo(
                "fit", "--config", "tiny", "--seed_everything", seed, "--data.root", recordings, "--data.batch_size", 2,
                "--data.val_fraction", 0.5, "--trainer.max_steps", steps,
                "--trainer.val_check_interval", 2, "--trainer.limit_val_batches", 2,
                "--trainer.num_sanity_val_steps", 0, "--trainer.accelerator", "cpu", "--trainer.logger", "false",
                "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false",
            ) == 0  # fmt: skip
            shutil.copytree("runs/tiny", kept)
    return here


def exported(folder: Path) -> tuple[str, dict, dict]:
    """The card's text and head, and the record."""
    card = folder / "README.md"
    record = folder / "training.json"
    head = metadata_load(card)
    assert head == ModelCard.load(card).data.to_dict() and head["library_name"] == "bczoo"
    return card.read_text(), head, json.loads(record.read_text()) if record.exists() else {}


def cell(key: str, record: dict) -> str:
    return f"| `{key}` | {record['metrics'][key]:.4f} |"


def test_a_run_is_exported_with_its_numbers(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    out = tmp_path / "my-policy"
    assert bczoo("export", "second", out, "--license", "mit", "--flaws", '["It only walks."]') == 0
    assert str(out) in capsys.readouterr().out
    checkpoint = read_checkpoint(runs / "second" / "checkpoints" / "last.ckpt")
    policy = BCPolicy.from_pretrained(out)
    assert_same_state(policy.state_dict(), checkpoint.state)
    assert policy.config == BCPolicy.from_pretrained(runs / "second").config
    text, head, record = exported(out)
    known = json.loads((runs / "second" / "record.json").read_text())
    assert record == known | {"license": "mit", "flaws": ["It only walks."]}
    metrics = [k for k in known["metrics"] if k != "step"]
    assert "val/loss" in metrics and "val/perplexity/keys" in metrics and len(metrics) > 8
    assert all(cell(k, known) in text for k in metrics)
    assert "not on these weights" not in text and "4 steps in" in text
    for what, count in policy.parameter_counts().items():
        assert f"{count:,}" in text, what
    assert text.splitlines().count("# my-policy") == 1 and "mit" in text and "- It only walks." in text
    assert head["license"] == "mit" and "bczoo" in head["tags"] and "model-index" not in head
    for number in re.findall(r"[\d,]{6,} parameters", text):
        assert number == f"{policy.parameter_counts()['total']:,} parameters"


def test_a_checkpoint_is_exported_by_its_path_and_in_another_type(runs, tmp_path):
    path = runs / "second" / "checkpoints" / "last.ckpt"
    assert bczoo("export", path, tmp_path / "policy", "--dtype", "bfloat16") == 0
    stored = weights_in(tmp_path / "policy")
    expected = {k: v.bfloat16() if v.is_floating_point() else v for k, v in read_checkpoint(path).state.items()}
    assert_same_state(stored, expected)
    text, head, record = exported(tmp_path / "policy")
    assert record == json.loads((runs / "second" / "record.json").read_text()) | {"rounded_to": "bfloat16"}
    assert "saved as bfloat16" in text and "measured before the weights were rounded" in text
    assert "license" not in head and "No licence was stated" in text
    assert bczoo("export", tmp_path / "policy", tmp_path / "again", "--license", "cc-by-4.0") == 0  # a folder, too
    assert_same_state(weights_in(tmp_path / "again"), expected)
    assert exported(tmp_path / "again")[1]["license"] == "cc-by-4.0"


def test_numbers_of_an_earlier_step_say_so(runs, tmp_path):
    """A run that ended at step 3 and, as earlier versions left it, was last validated at step 2."""
    run = Path(shutil.copytree(runs / "first", tmp_path / "run"))
    record = json.loads((run / "record.json").read_text())
    assert record["training"]["steps"] == record["metrics"]["step"] == 3, "every run validates at its end"
    record["metrics"]["step"] = 2
    (run / "record.json").write_text(json.dumps(record))
    assert bczoo("export", run / "checkpoints" / "last.ckpt", tmp_path / "policy") == 0
    text, _, record = exported(tmp_path / "policy")
    assert cell("val/loss", record) in text and "measured at step 2, not on these weights of step 3" in text


@pytest.mark.parametrize("interrupted", [False, True])
def test_numbers_of_another_checkpoint_say_so(interrupted, runs, tmp_path):
    """A checkpoint of step 3 beside the record of a run of four: an earlier run's, or that of a run not yet ended."""
    run = Path(shutil.copytree(runs / "second", tmp_path / "run"))
    (kept,) = (run / "checkpoints").glob("before-*.ckpt")
    if interrupted:
        kept.replace(run / "checkpoints" / "last.ckpt")
    source = run if interrupted else kept
    assert bczoo("export", source, tmp_path / "policy") == 0
    text, _, record = exported(tmp_path / "policy")
    assert "4 steps in" not in text
    if record.get("metrics", {}).get("step", 3) != 3:
        assert f"measured at step {record['metrics']['step']}, not on these weights of step 3" in text


def test_numbers_of_another_run_are_not_taken_for_those_of_a_kept_checkpoint(runs, tmp_path):
    """The third run has as many steps as the second one, whose checkpoint it kept."""
    (kept,) = (p for p in (runs / "third" / "checkpoints").glob("before-*.ckpt") if read_checkpoint(p).step == 4)
    assert_same_state(read_checkpoint(kept).state, read_checkpoint(runs / "second" / "checkpoints" / "last.ckpt").state)
    assert bczoo("export", kept, tmp_path / "policy") == 0
    text, _, _ = exported(tmp_path / "policy")
    theirs = json.loads((runs / "third" / "record.json").read_text())
    assert theirs["metrics"]["step"] == 4
    assert cell("val/loss", theirs) not in text or "not on these weights" in text


def test_returns_in_play_are_shown_for_the_weights_they_were_measured_on(runs, tmp_path):
    run = Path(shutil.copytree(runs / "second", tmp_path / "run"))
    record = json.loads((run / "record.json").read_text())
    players = {
        name: {"mean": mean, "low": mean - 1, "high": mean + 1, "episodes": 10}
        for name, mean in (("policy", 123.456), ("expert", 200.0))
    }
    for step, mine in ((4, True), (3, False)):
        record["play"] = {"doom/basic": {"seed": 1000, "step": step, "players": players}}
        (run / "record.json").write_text(json.dumps(record))
        assert bczoo("export", run, tmp_path / f"at-{step}") == 0
        text, head, _ = exported(tmp_path / f"at-{step}")
        assert "| policy | 123.5 | 122.5 to 124.5 | 10 |" in text and "| expert | 200.0 |" in text
        assert ("measured at step 3, not on these weights of step 4" in text) != mine
        assert ("model-index" in head) == mine
    (result,) = ModelCard.load(tmp_path / "at-4" / "README.md").data.eval_results
    assert (result.dataset_name, result.metric_value) == ("doom/basic", 123.46)


def test_a_run_without_a_record_is_exported_without_numbers(runs, tmp_path):
    run = Path(shutil.copytree(runs / "second", tmp_path / "run"))
    (run / "record.json").unlink()
    assert bczoo("export", run, tmp_path / "policy", "--license", "mit") == 0
    text, head, record = exported(tmp_path / "policy")
    assert "Nothing was measured" in text and "val/" not in text and "## Training" not in text
    assert head["license"] == "mit" and record == {"license": "mit"}


def test_a_merged_lora_run_is_exported_as_a_plain_policy(plain, tmp_path):
    tuned = FineTune(str(plain[1]), lora=LoRA(rank=2))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    checkpoint_of(tuned, tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert bczoo("export", tmp_path / "run", tmp_path / "policy") == 0
    tuned.save_pretrained(tmp_path / "direct")
    stored = weights_in(tmp_path / "policy")
    assert_same_state(stored, weights_in(tmp_path / "direct"))
    moved = {k for k, v in weights_in(plain[1]).items() if not torch.equal(stored[k], v)}
    assert moved == {
        k for k in stored if re.fullmatch(r"transformer\.blocks\.\d\.\w+\.(qkv|out|gate_up|down)\.weight", k)
    }


@pytest.mark.parametrize("source", ["nowhere", "empty", "thesis.txt"])
def test_what_cannot_be_exported_is_told_in_one_line(source, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("thesis.txt").write_text("years of work")
    before = files(tmp_path)
    assert bczoo("export", source, "out") == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("bczoo: ") and source in line
    assert files(tmp_path) == before
