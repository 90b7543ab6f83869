"""Checkpoints whose bytes were changed, which run a file ``finished`` speaks of, and folders replaced while read."""

import os
import shutil

import lightning as L
import pytest
import tiny
import torch

from bczoo.core.errors import UserError
from bczoo.hub import folder as published
from bczoo.hub.state import damaged_part, fingerprint, load_tensors
from bczoo.train.callbacks.checkpoint import ResumableCheckpoint
from bczoo.train.callbacks.lock import FolderLock


def save(path, seed=0):
    torch.manual_seed(seed)
    torch.save({"state_dict": {"a": torch.randn(1000)}}, path)
    return path


def flip(path, where):
    content = bytearray(path.read_bytes())
    content[where] ^= 1
    path.write_bytes(content)


def test_a_changed_weight_is_noticed_and_a_whole_checkpoint_offered(tmp_path):
    path, older = save(tmp_path / "last.ckpt"), save(tmp_path / "before-1.ckpt", 1)
    load_tensors(path)
    flip(path, path.read_bytes().index(torch.load(path)["state_dict"]["a"].numpy().tobytes()) + 1234)
    with pytest.raises(UserError, match=rf"last.ckpt is damaged: its checksum of .*data/0.*{older.name} beside it"):
        load_tensors(path)
    flip(older, 2000)
    newer = save(tmp_path / "before-2.ckpt", 2)
    os.utime(newer, (0, 0))  # the damaged one is the latest
    with pytest.raises(UserError, match=f"{newer.name} beside it is whole"):
        load_tensors(path)
    newer.unlink()
    with pytest.raises(UserError, match="no whole one beside it"):
        load_tensors(path)


def test_a_compressed_checkpoint_is_not_unpacked(tmp_path):
    import zipfile

    path = tmp_path / "last.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(1 << 20))
    assert damaged_part(path) == "a compressed entry"


def test_finished_speaks_of_one_checkpoint_only(tmp_path):
    keeper = ResumableCheckpoint(str(tmp_path))
    save(keeper.path)
    assert not keeper.finished and keeper.to_resume() == keeper.path
    (tmp_path / "finished").write_text(fingerprint(keeper.path))
    assert keeper.finished and keeper.to_resume() is None
    copied = ResumableCheckpoint(str(shutil.copytree(tmp_path, tmp_path / "copy")))
    assert copied.finished, "a copy of the folder is finished too"
    save(keeper.path, seed=1)  # a new run, killed before it could remove the file
    assert not keeper.finished and keeper.to_resume() == keeper.path
    (tmp_path / "finished").write_text("")
    assert keeper.finished, "as earlier versions wrote it"


def test_a_run_sweeps_what_killed_ones_left(tmp_path):
    left = tmp_path / ".config.yaml.writing-000000-1-00000000"  # of another computer, so it has to be old
    left.touch()
    os.utime(left, (0, 0))
    (tmp_path / "config.yaml").touch()
    trainer = L.Trainer(default_root_dir=tmp_path, logger=False, accelerator="cpu", barebones=False)
    ResumableCheckpoint().claim(trainer)
    FolderLock(tmp_path / "checkpoints").release()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "config.yaml"]


def test_a_policy_that_is_replaced_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    tiny.tiny_policy(seed=0).save_pretrained(tmp_path / "policy")
    other, read, reads = tiny.tiny_policy(seed=1), published.read_weights, []

    def late(*arguments):
        if not reads:
            other.save_pretrained(tmp_path / "policy")
        reads.append(arguments[0].spec)
        return read(*arguments)

    monkeypatch.setattr(published, "read_weights", late)
    loaded = published.load_folder(tmp_path / "policy").state_dict()
    assert len(reads) == 2 and all(torch.equal(tensor, loaded[name]) for name, tensor in other.state_dict().items())
