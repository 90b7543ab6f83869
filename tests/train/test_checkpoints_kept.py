"""Which checkpoints a training keeps, and that it goes on while they are written."""

import copy
import threading

import lightning as L
import pytest
import tiny
import torch

from bczoo.core import files
from bczoo.core.errors import UserError
from bczoo.hub.source import locate
from bczoo.hub.state import load_tensors
from bczoo.train.callbacks.checkpoint import ResumableCheckpoint
from bczoo.train.callbacks.checkpoint_io import snapshot


def train(folder, *callbacks, steps=8, resume=None, seed=0, **options):
    policy = tiny.tiny_policy(seed=seed, text_dim=None)
    keeper = ResumableCheckpoint(str(folder), monitor=None, **options)
    quiet = tiny.QUIET | {"enable_checkpointing": True}
    trainer = L.Trainer(max_steps=steps, default_root_dir=folder, callbacks=[*callbacks, keeper], **quiet)
    data = [tiny.tiny_batch(policy, seed=i) for i in range(8)]
    trainer.fit(policy, torch.utils.data.DataLoader(data, batch_size=None), ckpt_path=resume)
    return policy


def numbered(folder):
    return sorted(path.name for path in folder.glob("step-*.ckpt"))


def step(path):
    return load_tensors(path)["global_step"]


def test_the_newest_and_a_series_are_kept(tmp_path):
    train(tmp_path / "newest", every_n_train_steps=2, keep=2)
    assert numbered(tmp_path / "newest") == ["step-6.ckpt", "step-8.ckpt"]
    train(tmp_path / "series", every_n_train_steps=4, series_every_n_train_steps=3)
    assert numbered(tmp_path / "series") == ["step-3.ckpt", "step-6.ckpt"] and step(tmp_path / "series/last.ckpt") == 8
    train(tmp_path / "both", every_n_train_steps=2, series_every_n_train_steps=3, keep=2)
    assert numbered(tmp_path / "both") == [f"step-{n}.ckpt" for n in (3, 4, 6, 8)]
    assert [step(tmp_path / "both" / name) for name in numbered(tmp_path / "both")] == [3, 4, 6, 8]
    train(tmp_path / "both", every_n_train_steps=2, steps=10, resume=tmp_path / "both/last.ckpt")
    assert numbered(tmp_path / "both") == ["step-3.ckpt", "step-6.ckpt"], "the series stays, whatever is asked for now"
    source = locate(tmp_path / "both/step-3.ckpt")
    assert source.load(type(tiny.tiny_policy())).input_spec.window and source.spec
    with pytest.raises(UserError, match="keep must be a whole number from 1"):
        ResumableCheckpoint(keep=0)


def test_another_run_sets_them_aside_and_the_same_one_goes_on(tmp_path):
    train(tmp_path, every_n_train_steps=2, keep=2, steps=4)
    (tmp_path / "step-4.ckpt").unlink()  # killed between the checkpoint and its second name
    train(tmp_path, every_n_train_steps=2, keep=3, steps=6, resume=tmp_path / "last.ckpt")
    assert numbered(tmp_path) == ["step-2.ckpt", "step-4.ckpt", "step-6.ckpt"]
    train(tmp_path, every_n_train_steps=2, keep=2, steps=2)
    assert numbered(tmp_path)[0] == "step-2-before" + numbered(tmp_path)[0].removeprefix("step-2-before")
    assert sum("before" in name for name in numbered(tmp_path)) == 3 and (tmp_path / "step-2.ckpt").is_file()


class SlowDisk(L.Callback):
    """Holds back the writing of the checkpoint of step 4 until step 6 has been learned from."""

    def __init__(self, monkeypatch):
        self.writes, self.flush, self.reached = 0, files.flush, threading.Event()
        self.steps, self.waited = [], []
        monkeypatch.setattr(files, "flush", self)

    def __call__(self, path):
        if "last.ckpt" in path.name:
            self.writes += 1
            if self.writes == 2:
                self.waited.append(self.reached.wait(60))
        self.flush(path)

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step == 4:
            self.weights = copy.deepcopy(pl_module.state_dict())
        if trainer.global_step == 5:
            self.steps.append(step(trainer.checkpoint_callback.path))
            self.reached.set()


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    disk = SlowDisk(monkeypatch)
    train(tmp_path, disk, every_n_train_steps=2, keep=9)
    assert disk.waited == [True] and disk.steps == [2], "the older one was not there while the new one was written"
    kept = load_tensors(tmp_path / "step-4.ckpt")
    assert kept["global_step"] == 4 and all(torch.equal(t, disk.weights[k]) for k, t in kept["state_dict"].items())
    disk = SlowDisk(monkeypatch)
    disk.reached.wait = lambda _: disk.reached.is_set()
    train(tmp_path / "waiting", disk, every_n_train_steps=2, background=False)
    assert disk.waited == [False] and disk.steps == [4]


def test_a_snapshot_shares_what_was_shared():
    one = torch.zeros(4)
    content = {"a": one, "b": [one, one[:2]], "c": (1, {"d": torch.ones(2)})}
    taken = snapshot(content)
    one += 1
    assert taken["a"].sum() == 0 and taken["b"][0] is taken["a"] and taken["b"][1].sum() == 0 and taken["c"][0] == 1
