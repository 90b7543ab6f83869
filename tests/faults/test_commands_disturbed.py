"""Commands that are killed, stopped, or run out of room: nothing is lost, and the same command ends the work."""

import os
import shutil
import signal
import time
from random import Random

import disk
import pytest
from process import HANG_S, Run, bczoo
from trials import check_one_line, fill, kill
from works import CHECKPOINT, GAME, leftovers

WORKS = ("fit", "fit with 2 workers", "record", "export", "index")


@pytest.fixture(params=WORKS)
def work(request, bench):
    return next(work for work in bench.works if work.name == request.param)


def test_killed_again_and_again_it_ends_as_if_it_had_not_been(work, tmp_path):
    kill(work, Random(1), tmp_path, times=2)


def test_on_a_full_disk_it_says_so_and_ends_once_there_is_room(work, tmp_path):
    fill(work, Random(1), tmp_path)


def test_a_limit_on_the_size_of_files_stands_in_where_nothing_can_be_mounted(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "_mount", lambda *arguments: False)
    fill(bench.export, Random(1), tmp_path)


@pytest.mark.parametrize("command", ["data view", "play"])
def test_a_video_that_finds_no_room_is_one_line_and_the_older_one_stays(command, bench, tmp_path):
    """Tried under a limit on the size of files; plots and tables go the same way (tests/test_files.py)."""
    shutil.copytree(bench.fit.undisturbed.folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "clip.mp4").write_text("older")
    words = {
        "data view": ["data", "view", "data/rec_0", "--out", "clip.mp4"],
        "play": [
            "play", "runs/tiny", "--env", GAME, "--episodes", 1, "--parallel", 1, "--compare", "false",
            "--video", "clip.mp4",
        ],
    }[command]  # fmt: skip
    status, output = bczoo(*words, folder=tmp_path, largest_file=8000)
    check_one_line(status, output, command)
    assert "clip.mp4" in output and (tmp_path / "clip.mp4").read_text() == "older" and not leftovers(tmp_path)


def wait_for(condition, run):
    end = time.monotonic() + HANG_S
    while not condition():
        assert run.running and time.monotonic() < end, run
        time.sleep(0.01)


@pytest.fixture
def training(tmp_path, bench):
    """A fit that has saved a checkpoint and has much to do yet."""
    work = bench.works[1]
    work.prepare(tmp_path)
    longer = [100_000 if word == 6 else word for word in work.argv]
    run = Run(longer, tmp_path)
    wait_for((tmp_path / CHECKPOINT).exists, run)
    yield run
    run.end()


def group_lives(pid):
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_training_that_is_stopped_ends_with_its_workers(training, tmp_path, number, status):
    training.signal(number)
    assert training.wait() == status, training
    assert "Traceback" not in training.output, training
    end = time.monotonic() + HANG_S
    while group_lives(training.pid):
        assert time.monotonic() < end, "workers are left"
        time.sleep(0.05)
    assert not leftovers(tmp_path)


def test_sigterm_in_the_closing_games_ends_them_and_the_same_command_plays_them(tmp_path, bench):
    bench.fit.prepare(tmp_path)
    words = [str(word) for word in bench.fit.argv]
    words[words.index("--trainer.callbacks.episodes") + 1] = "123456"
    run = Run(words, tmp_path)
    try:
        wait_for(lambda: "123456 unseen games of" in run.output, run)
        run.signal(signal.SIGTERM)
        assert run.wait() == 143, run
    finally:
        run.end()
    assert "closing games" in run.output and "Traceback" not in run.output, run
    status, output = bczoo(*bench.fit.argv, folder=tmp_path)
    assert status == 0 and "resuming" in output, output
    bench.fit.check_done(tmp_path)


def test_a_folder_in_which_a_training_runs_is_refused(training, tmp_path):
    status, output = bczoo(*training.argv, folder=tmp_path)
    check_one_line(status, output, "a second fit")
    assert str(training.pid) in output, "it does not say who holds the folder"
    assert training.running
