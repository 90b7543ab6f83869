"""One process of several dies: one line says which, and none is left."""

import signal
import subprocess
from types import SimpleNamespace

import pytest
from lightning.fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment

from bczoo.train.callbacks import ranks
from bczoo.train.callbacks.checkpoint import ResumableCheckpoint
from bczoo.train.callbacks.ranks import Ranks


@pytest.fixture
def ended(monkeypatch):
    statuses = []
    monkeypatch.setattr(ranks.os, "_exit", statuses.append)
    monkeypatch.setattr(ranks, "HEARD_S", 0.0)
    return statuses


@pytest.fixture
def others():
    started = [subprocess.Popen(["sleep", "600"]) for _ in range(2)]
    yield started
    for process in started:
        process.kill()
        process.wait()


def trainer(started, local_rank=0, environment=LightningEnvironment):
    strategy = SimpleNamespace(cluster_environment=environment(), launcher=SimpleNamespace(procs=started))
    keeper = ResumableCheckpoint()
    return SimpleNamespace(
        strategy=strategy, world_size=3, local_rank=local_rank, checkpoint_callbacks=[keeper], training=True
    )


def joined(watch):
    for thread in watch._watched:
        thread.join(60)
    return watch


def test_the_first_process_names_the_one_that_was_killed_and_ends_all(others, ended, capfd):
    watch = Ranks()
    watch.setup(trainer(others), None, "fit")
    others[1].send_signal(signal.SIGKILL)
    watch._watched[1].join(60)
    said = capfd.readouterr().err
    assert f"process 2 (pid {others[1].pid}) was killed by SIGKILL, so all 3 processes end; no checkpoint" in said
    assert ended[0] == 1 and others[0].wait(60) == -signal.SIGKILL
    joined(watch)


def test_one_that_ends_with_an_error_of_its_own_is_named_too(ended, capfd):
    process = subprocess.Popen(["false"])
    watch = Ranks()
    watch.setup(trainer([process]), None, "fit")
    joined(watch)
    said = capfd.readouterr().err
    assert "process 1" in said and "ended with the error above" in said and "kernel" not in said and ended == [1]


def test_the_others_end_with_the_first(monkeypatch, ended, capfd):
    parents = iter([7, 7, 1, 1, 1])
    monkeypatch.setattr(ranks.os, "getppid", lambda: next(parents))
    watch = Ranks()
    watch.setup(trainer([], local_rank=1), None, "fit")
    joined(watch)
    assert "process 0 (pid 7), which had started the others, was killed" in capfd.readouterr().err and ended == [1]


def test_who_ends_in_order_is_not_dead(others, ended, capfd):
    watch = Ranks()
    watch.setup(trainer(others), None, "fit")
    watch.teardown(None, None, "fit")
    others[0].kill()
    watch._watched[0].join(60)
    assert not ended and not capfd.readouterr().err


def test_torchrun_watches_its_processes_itself(others):
    watch = Ranks()
    watch.setup(trainer(others, environment=TorchElasticEnvironment), None, "fit")
    assert not watch._watched
