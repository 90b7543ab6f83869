"""Paths that nothing can be written to are told at once, before anything is loaded, played or measured."""

# ruff: noqa: F811 - fixtures are named as arguments
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_line import bczoo, fit, here, own_arguments, recordings  # noqa: F401

from bczoo.core.errors import UserError
from bczoo.core.files import require_file_target, require_folder_target
from bczoo.train.callbacks.play import PlayGame

FILES = [
    ("data view {rec}/rec_0 --out folder", "--out folder is a folder; name a file in it, such as folder/clip.mp4"),
    ("data view {rec}/rec_0 --out .", "--out . is a folder; name a file in it, such as clip.mp4"),
    ("data view {rec}/rec_0 --out file/x.mp4", "file is no folder"),
    ("data check {rec} --json folder", "--json folder is a folder; name a file in it, such as folder/report.json"),
    ("play no_policy --env doom/basic --video folder", "--video folder is a folder; name a file in it"),
    ("play no_policy --env doom/basic --video file/x.mp4", "file is no folder"),
    ("play no_policy --env doom/basic --video x.avi", "--video: a video is an mp4 file, got 'x.avi'"),
    ("zoo table --data no_data --out folder", "--out folder is a folder; name a file in it"),
]
FOLDERS = [
    "export no_policy file",
    "causality no_policy --data {rec} --out file",
    "attention no_policy --data {rec} --out file",
    "gap no_policy --env doom/basic --out file",
    "study toy --out file",
    "study confusion --size smoke --out file",
    "convert open-p2p no_policy file",
    "convert to-open-p2p no_policy file",
    "pull org/name --out file",
    "record --env doom/basic --agent random --out file",
]


@pytest.mark.parametrize(("command", "line"), FILES)
def test_a_file_that_cannot_be_written(command, line, recordings, here, capsys):
    Path("folder").mkdir()
    Path("file").touch()
    assert bczoo(*command.format(rec=recordings).split()) == 1
    (told,) = capsys.readouterr().err.strip().splitlines()
    assert line in told
    assert sorted(p.name for p in here.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("command", FOLDERS)
def test_a_folder_that_is_a_file(command, recordings, here, capsys):
    Path("file").touch()
    assert bczoo(*command.format(rec=recordings).split()) == 1
    (told,) = capsys.readouterr().err.strip().splitlines()
    assert "file" in told and "no_policy" not in told


def test_paths_that_can_be_written_are_left_alone(tmp_path):
    require_file_target(tmp_path / "a" / "b" / "c.json", "--out", "c.json")
    require_folder_target(tmp_path / "a", "--out")
    assert not list(tmp_path.iterdir())


def test_a_folder_without_the_right_to_write(tmp_path, monkeypatch):
    monkeypatch.setattr("bczoo.core.files.os.access", lambda path, mode: False)
    with pytest.raises(UserError, match=r"cannot be written to; give another path, or yourself the right"):
        require_folder_target(tmp_path / "a", "--out")


def test_the_video_after_a_training_is_looked_at_before_it(tmp_path, monkeypatch):
    monkeypatch.setattr("bczoo.train.callbacks.play.check_playable", lambda *_: None)
    with pytest.raises(UserError, match=r"PlayGame's video .* is a folder"):
        trainer = SimpleNamespace(default_root_dir=".", callbacks=[])
        PlayGame("doom/basic", video=str(tmp_path)).setup(trainer, SimpleNamespace(input_spec=None), "fit")


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_a_checkpoint_that_is_a_folder(command, recordings, here, capsys):
    Path("run/checkpoints").mkdir(parents=True)
    common = ["--config", "tiny", "--data.root", recordings, "--trainer.logger", "false"]
    assert bczoo(command, *common, "--ckpt_path", "run") == 1
    assert "bczoo: --ckpt_path run is a folder; give it a .ckpt file, or last" in capsys.readouterr().err
    Path("run/checkpoints/last.ckpt").touch()
    assert bczoo(command, *common, "--ckpt_path", "run") == 1
    assert "is a folder; name the file, --ckpt_path run/checkpoints/last.ckpt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "line"),
    [
        ("--trainer.accelerator", "gpus", "bczoo: trainer: You selected an invalid accelerator name"),
        ("--trainer.max_steps", -5, "bczoo: trainer: `max_steps` must be a non-negative integer or -1"),
    ],
)
def test_what_the_trainer_refuses_is_told_in_one_line(option, value, line, recordings, here, capsys):
    assert fit(recordings, option, value) == 1
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith(line)
