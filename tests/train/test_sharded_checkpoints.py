"""Checkpoints that are folders: written by two processes, read by two, by one, and by every command."""

from __future__ import annotations

import json
import os
import pickle
import shutil

import pytest
import torch
from processes import in_two_processes
from test_sharded import FAMILIES, fit, free_port, recordings  # noqa: F401

from bczoo.core.errors import UserError
from bczoo.hub.checkpoint_folder import INDEX, is_folder_checkpoint
from bczoo.hub.source import locate
from bczoo.hub.state import damaged_part, fingerprint, kept_by, load_tensors
from bczoo.models.policy import Policy
from bczoo.train.sharded import Sharded


def train_all(rank, port, recordings, folder):  # noqa: F811
    """A training with files, the same with folders, and the rest of one that ended behind its third step."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test"}
    seen = {}
    for name, of_parts, steps, resume in (
        ("file", False, 6, None),
        ("cut", True, 3, None),
        ("folder", True, 6, "cut"),
        ("again", False, 6, "cut"),
    ):
        if name == "folder":
            shutil.copytree(folder / "cut", folder / name) if rank == 0 else None
            resume = "folder"
        strategy = Sharded(sharded_checkpoints=of_parts)
        from_ = None if resume is None else folder / resume / "last.ckpt"
        torch.distributed.barrier() if torch.distributed.is_initialized() else None
        note, _, _ = fit("reference", recordings, folder / name, 2, steps, from_, devices=2, strategy=strategy)
        seen[name] = note.losses
    if rank == 0:
        (folder / "seen.json").write_text(json.dumps(seen))


@pytest.fixture(scope="module")
def two(recordings, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("two")
    in_two_processes(train_all, free_port(), recordings, folder)
    return folder, json.loads((folder / "seen.json").read_text())


def test_a_folder_holds_what_a_file_does_and_both_are_resumed_alike(two):
    folder, seen = two
    assert seen["cut"] + seen["folder"] == seen["cut"] + seen["again"] == seen["file"]
    for name in ("last.ckpt", "best.ckpt"):
        one, other = folder / "file" / name, folder / "folder" / name
        assert one.is_file() and is_folder_checkpoint(other)
        whole, parts = load_tensors(one), load_tensors(other, optimizer=True)
        assert whole.keys() == parts.keys() and whole["state_dict"].keys() == parts["state_dict"].keys()
        assert all(torch.equal(tensor, parts["state_dict"][k]) for k, tensor in whole["state_dict"].items())
    assert sorted(p.name for p in (folder / "folder" / "last.ckpt").iterdir()) == [
        ".metadata", "__0_0.distcp", "__1_0.distcp", "checksums.json", "meta.pt",
    ]  # fmt: skip
    assert not [p for p in (folder / "folder").iterdir() if ".writing-" in p.name]


def test_a_folder_is_a_policy_wherever_a_file_is(two, tmp_path):
    folder, _ = two
    parts = folder / "folder" / "last.ckpt"
    policy, other = Policy.from_pretrained(parts), Policy.from_pretrained(folder / "file" / "last.ckpt")
    assert all(torch.equal(t, other.state_dict()[k]) for k, t in policy.state_dict().items())
    assert locate(folder / "folder").path.name == "best.ckpt"
    assert kept_by(parts, "ResumableCheckpoint")["run"] and fingerprint(parts) == fingerprint(
        shutil.copytree(parts, tmp_path / "copy.ckpt")
    )


def test_one_process_goes_on_from_a_folder(recordings, two, tmp_path):  # noqa: F811
    folder, seen = two
    run = shutil.copytree(folder / "cut", tmp_path / "run")
    note, _, _ = fit("reference", recordings, run, 4, resume=run / "last.ckpt")
    assert note.losses == pytest.approx(seen["file"][3:], rel=1e-4)
    assert (run / "last.ckpt").is_file() and (run / "best.ckpt").exists(), "files take the folders' places"
    other = shutil.copytree(folder / "cut", tmp_path / "other")
    fit("reference", recordings, other, 4, steps=2)
    (kept,) = other.glob("before-*.ckpt")
    assert is_folder_checkpoint(kept) and load_tensors(kept)["global_step"] == 3
    assert len(list(other.glob("best-before-*.ckpt"))) == 1


def test_a_damaged_folder_is_refused(two, tmp_path):
    path = shutil.copytree(two[0] / "cut" / "last.ckpt", tmp_path / "last.ckpt")
    (part, *_) = sorted(path.glob("*.distcp"))
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    assert damaged_part(path) == part.name
    with pytest.raises(UserError, match=f"last.ckpt is damaged: its checksum of {part.name}"):
        load_tensors(path)
    part.unlink()
    assert damaged_part(path) == part.name


class Evil:
    def __reduce__(self):
        return os.system, ("echo executed",)


def test_nothing_in_a_folder_is_executed(two, tmp_path):
    path = shutil.copytree(two[0] / "cut" / "last.ckpt", tmp_path / "last.ckpt")
    evil = pickle.dumps(Evil())
    (path / INDEX).write_bytes(evil)
    sums = json.loads((path / "checksums.json").read_text())
    from bczoo.hub.checkpoint_folder import _checksum

    sums[INDEX] = _checksum(path / INDEX)
    (path / "checksums.json").write_text(json.dumps(sums))
    with pytest.raises(UserError, match="system, which does not belong there"):
        load_tensors(path)
