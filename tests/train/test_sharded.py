"""Weights spread over two processes: the losses, the validation and the checkpoints of one process."""

from __future__ import annotations

import json
import os
import socket
from functools import partial

import lightning as L
import numpy as np
import pytest
import tiny
import torch
from processes import in_two_processes

from bczoo import (
    ActionDecoder,
    AttentionMaskCheck,
    CausalityScore,
    FiniteCheck,
    RecordingDataModule,
    ResumableCheckpoint,
)
from bczoo.data.recording import RecordingWriter
from bczoo.models.policy import Policy
from bczoo.train.sharded import Sharded, whole

STEPS = 6
FAMILIES = {
    "reference": partial(
        tiny.tiny_policy, text_dim=None, encoder={"frozen": True}, decoder=partial(ActionDecoder, dropout=0.0)
    ),
    "cnn": tiny.tiny_cnn,
    "tokens": tiny.tiny_token_policy,
}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """In some of which somebody acts all the time, in some hardly ever."""
    root = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(1)
    for i, often in enumerate((1.0, 0.05, 0.02, 0.3, 0.02, 0.9, 0.5)):
        with RecordingWriter(root / f"rec_{i}", size=tiny.SIZE) as writer:
            for _ in range(33 + 3 * i):
                frame = np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
                user = {"keys": [str(rng.choice(["w", "a"]))], "mouse_dx": int(rng.integers(-9, 10))}
                writer.add(frame, user=user if rng.random() < often else None)
    return root


class Note(L.Callback):
    """Keeps what is logged after every step and every validation."""

    def __init__(self):
        self.losses, self.validations = [], []

    def on_train_batch_end(self, trainer, *_):
        self.losses.append(trainer.callback_metrics["train/loss"].item())

    def on_validation_end(self, trainer, pl_module):
        self.validations.append({k: v.item() for k, v in trainer.callback_metrics.items() if k.startswith("val/")})


def fit(family, recordings, folder, batch_size, steps=STEPS, resume=None, **options):
    """Train; what was noted, the trainer, the policy."""
    torch.manual_seed(0)
    policy = FAMILIES[family](optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9))
    data = RecordingDataModule(root=str(recordings), batch_size=batch_size, val_fraction=0.3)
    note = Note()
    callbacks = [note, FiniteCheck(), AttentionMaskCheck(), CausalityScore(), ResumableCheckpoint(str(folder))]
    quiet = tiny.QUIET | {"enable_checkpointing": True, "num_sanity_val_steps": 0, "gradient_clip_val": 1.0}
    trainer = L.Trainer(max_steps=steps, val_check_interval=3, callbacks=callbacks, **quiet, **options)
    trainer.fit(policy, data, ckpt_path=resume)
    return note, trainer, policy


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def train_all(rank, port, recordings, folder):
    """What torchrun would start: everything that is to be seen of sharded training, written down by the first."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test"}
    seen = {}
    for family in FAMILIES:
        two = {"devices": 2, "strategy": "sharded"}
        note, trainer, policy = fit(family, recordings, folder / family, 2, **two)
        assert isinstance(trainer.strategy, Sharded)
        mine = sum(p.to_local().numel() for p in policy.parameters())
        twin = whole(policy)
        assert (twin is not None) == (rank == 0)
        if rank == 0:
            torch.save(twin.state_dict(), folder / f"{family}.pt")
            assert mine < 0.6 * sum(p.numel() for p in twin.parameters())
        seen[family] = {"losses": note.losses, "validations": note.validations}
        fit(family, recordings, folder / f"{family}-cut", 2, steps=3, **two)
        cut = folder / f"{family}-cut" / "last.ckpt"
        note, _, _ = fit(family, recordings, folder / f"{family}-rest", 2, resume=cut, **two)
        seen[family]["rest"] = note.losses
    if rank == 0:
        (folder / "seen.json").write_text(json.dumps(seen))


@pytest.fixture(scope="module")
def sharded(recordings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    in_two_processes(train_all, free_port(), recordings, folder)
    return folder, json.loads((folder / "seen.json").read_text())


@pytest.mark.parametrize("family", FAMILIES)
def test_two_processes_with_half_the_weights_follow_one(family, recordings, sharded, tmp_path):
    folder, seen = sharded
    note, _, policy = fit(family, recordings, tmp_path / "one", 4)
    assert seen[family]["losses"] == pytest.approx(note.losses, rel=1e-4)
    assert len(note.validations) == len(seen[family]["validations"]) == 2
    for theirs, ours in zip(seen[family]["validations"], note.validations, strict=True):
        assert theirs == pytest.approx(ours, rel=1e-3, abs=1e-6, nan_ok=True)
    assert note.losses[-1] < note.losses[0]
    ours = policy.state_dict()
    for name, theirs in torch.load(folder / f"{family}.pt").items():
        torch.testing.assert_close(theirs, ours[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sharded_training_is_resumed_where_it_was(family, sharded):
    _, seen = sharded
    assert seen[family]["rest"] == seen[family]["losses"][3:]


@pytest.mark.parametrize("family", FAMILIES)
def test_its_checkpoint_is_like_any_other(family, recordings, sharded, tmp_path):
    """It loads as a policy, and one process goes on from it."""
    folder, seen = sharded
    policy = Policy.from_pretrained(folder / family / "last.ckpt")
    assert type(policy) is type(FAMILIES[family]())
    for name, value in torch.load(folder / f"{family}.pt").items():
        torch.testing.assert_close(policy.state_dict()[name], value, atol=0, rtol=0, msg=name)
    note, _, _ = fit(family, recordings, tmp_path / "one", 4, resume=folder / f"{family}-cut" / "last.ckpt")
    assert note.losses == pytest.approx(seen[family]["losses"][3:], rel=1e-4)
