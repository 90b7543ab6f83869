"""Commands that are killed, stopped, or run out of room: nothing is lost, and the same command ends the work."""

import os
import signal
import time
from random import Random

import disk
import pytest
from process import HANG_S, Run, bczoo
from trials import check_one_line, fill, kill
from works import CHECKPOINT, leftovers

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


def test_a_folder_in_which_a_training_runs_is_refused(training, tmp_path):
    status, output = bczoo(*training.argv, folder=tmp_path)
    check_one_line(status, output, "a second fit")
    assert str(training.pid) in output, "it does not say who holds the folder"
    assert training.running
