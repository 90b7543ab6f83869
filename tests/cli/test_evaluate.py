"""validate, test and predict of a policy that is there: a run, a checkpoint, an exported folder."""

# ruff: noqa: F811 - fixtures are named as arguments
import json
import re
import shutil
from pathlib import Path

import pytest
from command_line import QUIET, bczoo, fit, here, own_arguments, recordings  # noqa: F401
from safetensors import safe_open


@pytest.fixture(scope="module")
def run(recordings, tmp_path_factory):
    """The folder of a finished run, and its policy exported."""
    folder = tmp_path_factory.mktemp("run")
    assert fit(recordings, "--trainer.default_root_dir", folder / "a") == 0
    assert bczoo("export", folder / "a", folder / "exported") == 0
    return folder


@pytest.fixture
def copied(run, here):
    shutil.copytree(run, here, dirs_exist_ok=True)
    return here


def losses(out, part):
    """Numbers of the metric table."""
    return re.findall(rf"{part}/(?:loss|accuracy/keys) +\| +([\d.]+)", out)


def test_a_run_is_evaluated_as_with_its_configuration(recordings, copied, capsys):
    common = ["--config", "tiny", "--data.root", recordings, "--data.batch_size", 4, *QUIET]
    assert bczoo("validate", *common, "--trainer.default_root_dir", copied / "a") == 0
    expected = losses(capsys.readouterr().out, "val")
    path = Path("a/record.json")
    record = json.loads(path.read_text())
    measured = record["metrics"]
    path.write_text(json.dumps({**record, "metrics": {"step": measured["step"], "val/loss": 0.0}}))
    assert bczoo("validate", "a", *QUIET) == 0
    assert losses(capsys.readouterr().out, "val") == expected and len(expected) == 2
    assert json.loads(path.read_text())["metrics"] == measured
    assert bczoo("test", "a/checkpoints/last.ckpt", "--data", recordings, *QUIET) == 0
    out = capsys.readouterr().out
    assert losses(out, "test") == expected and "were held out in training" in out
    assert json.loads(path.read_text())["test_metrics"]["test/loss"] == measured["val/loss"]
    assert not Path("runs").exists()


def test_all_of_another_folder_is_taken(recordings, copied, capsys):
    shutil.copytree(recordings, "others")
    assert bczoo("predict", "a", f"--data={copied / 'others'}", *QUIET) == 0
    assert "all recordings of" in capsys.readouterr().out
    with safe_open("a/predictions.safetensors", "numpy") as rows:
        assert len(set(rows.get_tensor("recording").tolist())) == 6


def test_an_exported_policy_is_evaluated_without_a_run(recordings, copied, capsys):
    assert bczoo("validate", "exported", *QUIET) == 0  # its card knows where the recordings were
    known = losses(capsys.readouterr().out, "val")
    assert bczoo("validate", "a", *QUIET) == 0
    assert losses(capsys.readouterr().out, "val") == known and len(known) == 2
    assert not Path("runs/validate-exported/record.json").exists()
    assert bczoo("validate", "exported", *QUIET, "--trainer.devices", 2) == 1
    assert "is evaluated on one device" in capsys.readouterr().err
    (copied / "exported" / "training.json").unlink()
    assert bczoo("validate", "exported", *QUIET) == 1
    assert "give --data FOLDER" in capsys.readouterr().err


def test_what_is_wrong_is_told(copied, capsys):
    assert bczoo("validate", "--import", "json", "nowhere", *QUIET) == 1
    assert "there is no policy 'nowhere'" in capsys.readouterr().err
    assert bczoo("validate", "a", "--data", *QUIET) == 1
    assert "--data needs a value behind it" in capsys.readouterr().err
    assert bczoo("validate", "a", "--data", "no_recordings", *QUIET) == 1
    assert "no_recordings" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        bczoo("validate", "--config", "tiny", "a")
    assert "A policy comes first: bczoo validate POLICY" in capsys.readouterr().err
