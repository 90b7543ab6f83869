"""Training from Python: a plain Trainer, the data module, two processes."""

import lightning as L
import numpy as np
import pytest
import tiny
import torch

from bczoo import BCPolicy, RecordingDataModule
from bczoo.data.recording import RecordingWriter
from bczoo.loss import bc_loss

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Games in which the picture tells the action: bright frames walk, dark frames turn."""
    root = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(0)
    for i in range(4):
        with RecordingWriter(root / f"rec_{i}", size=tiny.SIZE) as writer:
            for _ in range(80):
                bright = rng.random() < 0.5
                frame = np.full((tiny.SIZE, tiny.SIZE, 3), 220 if bright else 30, np.uint8)
                writer.add(frame, user={"keys": ["w"] if bright else [], "mouse_dx": 0 if bright else 20})
    return root


def test_a_plain_trainer_learns_what_the_picture_tells(recordings):
    policy = tiny.tiny_policy(text_dim=None, optimizer=lambda p: torch.optim.AdamW(p, lr=3e-3))
    data = RecordingDataModule(root=str(recordings), batch_size=4, val_fraction=0.25)
    trainer = L.Trainer(max_epochs=6, **QUIET)
    trainer.fit(policy, data)
    assert trainer.callback_metrics["val/accuracy/mouse_dx"] > 0.9
    assert trainer.callback_metrics["val/perplexity/keys"] < 2
    agent = policy.agent(seed=0)
    decisions = [agent.step(np.full((64, 64, 3), level, np.uint8)) for level in (220, 30) * 10]
    walked = [d.keys == ["w"] for d in decisions]
    assert sum(w == (i % 2 == 0) for i, w in enumerate(walked)) >= 17


def test_two_processes_train_one_policy(recordings):
    policy = tiny.tiny_policy(text_dim=None)
    data = RecordingDataModule(root=str(recordings), batch_size=2, val_fraction=0.25)
    trainer = L.Trainer(max_steps=3, devices=2, strategy="ddp_spawn", val_check_interval=2, **QUIET)
    before = {k: v.clone() for k, v in policy.state_dict().items()}
    trainer.fit(policy, data)
    assert any(not torch.equal(v, before[k]) for k, v in policy.state_dict().items())
    assert 0 < trainer.callback_metrics["val/loss"] < 100


def test_metrics_weigh_steps_not_batches():
    """Perplexity is of all counted tokens of the epoch, whatever batches they came in, and never overflows."""
    policy = tiny.tiny_policy().eval()
    batch = tiny.tiny_batch(policy, batch=3)
    batch["user"][0, 1:] = False
    logits = policy(batch["frames"], batch["actions"], batch["text"])
    whole, parts = policy.metrics["val"], policy.metrics["test"]

    def update(metrics, rows, user):
        some = {k: v[rows] for k, v in logits.items()}
        actions = {k: v[rows] for k, v in batch["actions"].items()}
        metrics.update(some, actions, user[rows], bc_loss(some, actions, user[rows]).total)

    update(whole, [0, 1, 2], batch["user"])
    for rows in ([0], [1, 2]):
        update(parts, rows, batch["user"])
    update(parts, [0, 1], torch.zeros_like(batch["user"]))  # nothing counted, nothing changed
    a, b = whole.compute(), parts.compute()
    assert a.keys() == b.keys()
    for name in a.keys() - {"loss"}:  # the z-loss is a mean over all entries, so it is one per batch
        torch.testing.assert_close(a[name], b[name], msg=name, equal_nan=True)
    keys = torch.log_softmax(logits["keys"], -1).gather(-1, batch["actions"]["keys"][..., None])[..., 0]
    expected = (-keys[batch["user"]].mean()).exp()
    torch.testing.assert_close(whole.compute()["perplexity/keys"], expected)
    logits["keys"] = logits["keys"] + 50 * torch.nn.functional.one_hot((batch["actions"]["keys"] + 1) % 20, 20)
    update(whole, [0, 1, 2], batch["user"])
    assert whole.compute()["perplexity/keys"].isfinite()


def test_checkpoints_load_anywhere(recordings, tmp_path):
    policy = tiny.tiny_policy(text_dim=None)
    trainer = L.Trainer(max_steps=2, **QUIET)
    trainer.fit(policy, RecordingDataModule(root=str(recordings), batch_size=2))
    trainer.save_checkpoint(tmp_path / "policy.ckpt")
    loaded = BCPolicy.load_from_checkpoint(tmp_path / "policy.ckpt", weights_only=True)
    assert loaded.config == policy.config
    assert all(torch.equal(v, policy.state_dict()[k]) for k, v in loaded.state_dict().items())
