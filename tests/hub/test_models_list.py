"""What the zoo lists, that the names it gives can be used, and that a wheel brings all of it along."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import bczoo
from bczoo.cli import main
from bczoo.core.errors import UserError
from bczoo.hub import models, replay
from bczoo.hub.card import model_card
from bczoo.hub.folder import read_folder

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """A copy of the zoo's data whose weights have a latency of 4 ms."""
    shutil.copytree(REPOSITORY / "checkpoints", tmp_path / "zoo")
    monkeypatch.setattr(models, "CHECKPOINTS", tmp_path / "zoo")
    monkeypatch.chdir(tmp_path)
    change(tmp_path / "zoo", latency={"a processor": {"step": 3000, "dtype": "float32", "games": 1, "threads": 1,
           "steps_measured": 100, "p50": 2.5, "p99": 4.0, "budget": 50.0}})  # fmt: skip
    return tmp_path / "zoo"


def change(zoo: Path, **entries) -> None:
    path = zoo / "doom" / "training.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def rows(out: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("|")][2:]


# ---------------------------------------------------------------------------------------------------- Python


def test_names_can_be_built_or_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # not the repository
    weights, everything = bczoo.list_models(pretrained=True), bczoo.list_models()
    assert weights == ["checkpoints/doom"]
    assert everything[:1] == weights and {"tiny", "small", "150m", "bc_cnn", "doom"} <= set(everything)
    assert not {"finetune", "experiments/toy", "pixels2play-150m"} & set(everything)
    assert bczoo.from_pretrained(weights[0]).parameter_counts()["total"] == 905_136
    assert bczoo.BCPolicy.from_config("tiny", pretrained=False).parameter_counts()["total"] == 378_544


def test_a_folder_of_the_user_s_own_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints/doom").mkdir(parents=True)
    with pytest.raises(UserError, match="checkpoints/doom holds no policy"):
        bczoo.from_pretrained("checkpoints/doom")
    with pytest.raises(UserError, match="there is no policy 'checkpoints/dom'"):
        bczoo.from_pretrained("checkpoints/dom")
    assert models.shipped_weights("checkpoints/..") is None


def test_architectures_are_all_there():
    """What lists them without building them names every configuration that builds a policy."""
    listed = json.loads((REPOSITORY / "checkpoints" / models.ARCHITECTURES).read_text())
    assert list(listed) == models.architecture_names()
    assert listed["small"]["parameters"]["total"] == 5_323_752 and listed["bc_cnn"]["family"] == "bczoo.CNNPolicy"


# ---------------------------------------------------------------------------------------------------- commands


def test_the_list_says_what_each_is(zoo, capsys):
    assert main(["zoo", "list"]) == 0
    out = capsys.readouterr().out
    found = {row[0]: row[1:] for row in rows(out)}
    assert found["checkpoints/doom"] == ["weights", "0.91 M", "doom/health_gathering and 4 more", "2.5 / 4.0", "mit"]
    assert found["1.2b"] == ["architecture", "1298.88 M", "-", "-", "-"]
    assert found["pixels2play-150m"] == ["to convert", "183.21 M", "-", "-", "see the repository"]
    assert "latency: a step of one game, on a processor" in out


@pytest.mark.parametrize("game", ["doom", "doom/basic", "doom/"])
def test_by_game(zoo, capsys, game):
    assert main(["zoo", "list", "--game", game]) == 0
    out = capsys.readouterr().out
    assert [row[0] for row in rows(out)] == ["checkpoints/doom"]
    assert "left out: 10 architectures, 4 sets of weights to convert, of which no returns in games are known" in out


def test_of_a_game_that_nothing_plays_it_is_said_which_there_are(zoo, capsys):
    assert main(["zoo", "list", "--game", "doom/bas"]) == 1
    assert "no weights are known in the game 'doom/bas'; there are some for doom/basic, " in capsys.readouterr().err


@pytest.mark.parametrize(("limit", "fits"), [("10ms", True), ("0.004s", True), ("4", True), ("3.9 ms", False)])
def test_by_latency(zoo, capsys, limit, fits):
    assert main(["zoo", "list", "--max_latency", limit]) == 0
    out = capsys.readouterr().out
    assert [row[0] for row in rows(out)] == (["checkpoints/doom"] if fits else [])
    assert ("no policy is known to answer within" in out) == (not fits)
    assert "10 architectures, 4 sets of weights to convert, of which no latency is known" in out


def test_a_latency_that_is_no_time_is_told(zoo, capsys):
    assert main(["zoo", "list", "--max_latency", "fast"]) == 1
    assert "a latency is a time such as 10ms or 0.01s, got 'fast'" in capsys.readouterr().err


def test_info_of_weights(zoo, capsys):
    metric = {"value": 0.25, "low": 0.2, "high": 0.3}
    scored = {"step": 3000, "part": "all", "windows": 9, "recordings": 2, "metrics": {"causality": metric}}
    change(zoo, causality={"held_out": scored})
    assert main(["zoo", "info", "checkpoints/doom"]) == 0
    out = capsys.readouterr().out
    assert "checkpoints/doom: weights, 905,136 parameters" in out and "licence mit" in out
    assert "    bczoo play checkpoints/doom\n" in out
    assert "training: 3000 steps in 29.3 min on cpu" in out
    assert "latency of a step on a processor: 2.50 ms (p50), 4.00 ms (p99)" in out
    assert ["held_out", "0.250", "0.200 to 0.300"] in rows(out)
    assert ["doom/basic", "91.2", "92.4", "-182.1", "20"] in rows(out)
    assert "known flaws:\n- deadly_corridor" in out


def test_info_of_what_does_not_ship_says_how_to_get_it(zoo, capsys):
    assert main(["zoo", "info", "pixels2play-150m"]) == 0
    out = capsys.readouterr().out
    assert "    hf download elefantai/open-p2p --include '150M/*'" in out
    assert "    bczoo convert open-p2p open-p2p/150M pixels2play-150m" in out
    assert main(["zoo", "info", "doom"]) == 0
    out = capsys.readouterr().out
    assert "bczoo fit --config doom" in out and "weights of this architecture: checkpoints/doom" in out


def test_info_of_nothing(zoo, capsys):
    assert main(["zoo", "info", "checkpoints/dom"]) == 1
    assert "the zoo has no policy 'checkpoints/dom'; did you mean 'checkpoints/doom'?" in capsys.readouterr().err


def test_an_installation_without_the_data_is_told(zoo, capsys):
    (zoo / "architectures.json").unlink()
    assert main(["zoo", "list"]) == 1
    assert "architectures.json is missing; install bczoo anew" in capsys.readouterr().err


def test_a_wheel_brings_the_zoo_along(tmp_path):
    """Listed without torch, away from the repository; the weights play."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    code = (
        "import sys, bczoo; from bczoo.cli import main; from bczoo.hub import models\n"
        f"assert str(models.CHECKPOINTS).startswith({str(installed)!r}), models.CHECKPOINTS\n"
        "main(['zoo', 'list', '--game', 'doom']); print('torch' in sys.modules)\n"
        "print(bczoo.from_pretrained(bczoo.list_models(pretrained=True)[0]).input_spec.frame_size)"
    )
    environment = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.splitlines()[-2:] == ["False", "96"] and "| checkpoints/doom | weights |" in done.stdout


# ---------------------------------------------------------------------------------------------------- replay


def test_a_replay_lies_beside_the_weights_and_in_the_card(zoo, monkeypatch, capsys):
    pytest.importorskip("vizdoom")
    from bczoo.data.video import iterate_frames

    folder = zoo / "doom"
    (folder / "replay.mp4").unlink(missing_ok=True)
    before = (folder / "model.safetensors").read_bytes()
    assert main(["zoo", "replay", str(folder), "--env", "doom/basic", "--seconds", "0.5", "--size", "96"]) == 0
    frames = [np.asarray(frame) for frame in iterate_frames(folder / "replay.mp4")]
    assert 1 <= len(frames) <= 10
    record, card = read_folder(folder).record, (folder / "README.md").read_text()
    assert record["replay"]["env"] == "doom/basic" and record["replay"]["step"] == 3000
    assert "[replay.mp4](replay.mp4): `doom/basic`, the game of seed 1000000, with the keys" in card
    assert "| policy | 91.2 |" in card and (folder / "model.safetensors").read_bytes() == before
    monkeypatch.setattr(replay, "LARGEST", 100)
    kept = (folder / "replay.mp4").read_bytes()
    assert main(["zoo", "replay", str(folder), "--env", "doom/basic", "--seconds", "0.5"]) == 1
    assert "bytes, more than 100; give less --seconds or --size" in capsys.readouterr().err
    assert (folder / "replay.mp4").read_bytes() == kept


def test_a_replay_of_older_weights_says_so():
    exported = read_folder(REPOSITORY / "checkpoints/doom")
    shown = {"video": "replay.mp4", "env": "doom/basic", "seed": 1, "return": 2.0, "step": 17}
    card = model_card("doom", exported.model, exported.record | {"replay": shown})
    assert "the game of seed 1 (measured at step 17, not on these weights of step 3000)" in card
    assert "## Replay" not in model_card("doom", exported.model, {})


@pytest.mark.parametrize(
    "folder", sorted((REPOSITORY / "checkpoints").glob("*/config.json")), ids=lambda p: p.parent.name
)
def test_cards_of_weights_that_ship_say_what_they_cost_and_show_a_game(folder):
    exported = read_folder(folder.parent)
    record, card = exported.record, (folder.parent / "README.md").read_text()
    assert {"replay", "causality", "latency", "play", "training"} <= record.keys()
    assert (folder.parent / record["replay"]["video"]).stat().st_size < 1_000_000
    assert record["replay"]["step"] == record["training"]["steps"]
    for heading in ("## Replay", "Causality on", "Latency of a step", "## Training", "## Known flaws"):
        assert heading in card
    assert card == model_card(folder.parent.name, exported.model, record), "written by a command, not by hand"
