"""Training from Python: a plain Trainer, the data module, two processes."""

import json
from functools import partial

import lightning as L
import numpy as np
import pytest
import tiny
import torch
from processes import several
from recordings import write_telling

from bczoo import ActionDecoder, ActionSpace, BCPolicy, CausalityScore, RecordingDataModule
from bczoo.data.index import open_index
from bczoo.data.recording import USER, RecordingWriter
from bczoo.data.windows import Plan
from bczoo.train.loss import bc_loss

GROUPS = ("keys", "mouse_buttons", "mouse_dx", "mouse_dy")
DETERMINISTIC = {"text_dim": None, "encoder": {"frozen": True}, "decoder": partial(ActionDecoder, dropout=0.0)}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    return write_telling(tmp_path_factory.mktemp("recordings"), 4, 80)


def test_a_plain_trainer_learns_what_the_picture_tells(recordings):
    policy = tiny.tiny_policy(text_dim=None, optimizer=lambda p: torch.optim.AdamW(p, lr=3e-3))
    data = RecordingDataModule(root=str(recordings), batch_size=4, val_fraction=0.25)
    trainer = L.Trainer(max_epochs=6, **tiny.QUIET)
    trainer.fit(policy, data)
    assert trainer.callback_metrics["val/accuracy/mouse_dx"] > 0.9
    assert trainer.callback_metrics["val/perplexity/keys"] < 2
    agent = policy.agent(seed=0)
    decisions = [agent.step(np.full((64, 64, 3), level, np.uint8)) for level in (220, 30) * 10]
    walked = [d.keys == ["w"] for d in decisions]
    assert sum(w == (i % 2 == 0) for i, w in enumerate(walked)) >= 17


class NoteWeights(L.Callback):
    """Writes a rank's weights and how its batches read to a file, after every step."""

    def __init__(self, folder):
        self.folder, self.seen = folder, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append((batch["recording"].tolist(), batch["start"].tolist()))
        weights = torch.cat([p.detach().flatten() for p in pl_module.parameters()])
        torch.save((weights, self.seen), self.folder / f"{trainer.global_rank}.pt")


def test_two_processes_train_one_policy(recordings, tmp_path):
    """Both have the same weights after every step, each has seen windows of its own, and the policy got them back."""
    policy = tiny.tiny_policy(text_dim=None)
    data = RecordingDataModule(root=str(recordings), batch_size=2, val_fraction=0.25)
    trainer = L.Trainer(
        max_steps=3, val_check_interval=2, callbacks=[NoteWeights(tmp_path)], **several(2), **tiny.QUIET
    )
    before = torch.cat([p.detach().flatten() for p in policy.parameters()])
    trainer.fit(policy, data)
    (one, seen), (other, elsewhere) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert torch.equal(one, other) and (one - before).abs().max() > 1e-5
    assert torch.equal(one, torch.cat([p.detach().flatten() for p in policy.parameters()]))
    windows = [{w for batch in part for w in zip(*batch, strict=True)} for part in (seen, elsewhere)]
    assert len(seen) == len(elsewhere) == 3 and not windows[0] & windows[1]
    assert 0 < trainer.callback_metrics["val/loss"] < 100


@pytest.fixture(scope="module")
def corrections(tmp_path_factory):
    """Recordings in which somebody acts all the time, at a few moments, or hardly ever; windows of 5 steps."""
    root = tmp_path_factory.mktemp("corrections")
    rng = np.random.default_rng(1)
    for i, often in enumerate((1.0, 0.05, 0.02, 0.3, 0.02, 0.9)):
        with RecordingWriter(root / f"rec_{i}", size=tiny.SIZE) as writer:
            for _ in range(33 + 3 * i):
                frame = np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
                acts = rng.random() < often
                user = {"keys": [str(rng.choice(["w", "a"]))], "mouse_dx": int(rng.integers(-9, 10))}
                writer.add(frame, user=user if acts else None)
    return root


class NoteLoss(L.Callback):
    """Writes what is logged after every step to a file."""

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        logged = {k: v.item() for k, v in trainer.callback_metrics.items() if k.startswith("train/")}
        if trainer.is_global_zero:
            with self.path.open("a") as file:
                file.write(json.dumps(logged) + "\n")


def learn(recordings, path, processes, batch_size):
    """What is logged step by step, and the weights in the end."""
    policy = tiny.tiny_policy(**DETERMINISTIC, optimizer=partial(torch.optim.SGD, lr=0.3))
    data = RecordingDataModule(root=str(recordings), batch_size=batch_size, val_fraction=0)
    trainer = L.Trainer(max_steps=6, callbacks=[NoteLoss(path)], **several(processes), **tiny.QUIET)
    trainer.fit(policy, data)
    return [json.loads(line) for line in path.read_text().splitlines()], policy.state_dict()


def test_two_processes_learn_what_one_with_twice_the_batch_learns(corrections, tmp_path):
    """Also where one of them counts many steps and the other few or none (BatchNorm aside, which is frozen)."""
    index = open_index(corrections, ActionSpace.keyboard_mouse(), 20.0, None)
    ranks = [Plan(index, index.usable, 5, 2, True, rank=r, world_size=2).epoch(0) for r in range(2)]
    counts = np.array(
        [
            [
                sum(int((index.steps(r)[1][s + 1 : s + 6] == USER).sum()) for r, s in zip(*batch, strict=True))
                for batch in zip(*epoch, strict=True)
            ][:6]
            for epoch in ranks
        ]
    )
    assert (counts.min(axis=0) == 0).any() and (counts.max(axis=0) >= 3 * counts.min(axis=0)).any()

    one, weights = learn(corrections, tmp_path / "one", processes=1, batch_size=4)
    two, others = learn(corrections, tmp_path / "two", processes=2, batch_size=2)
    assert len(one) == len(two) == 6 and one[0].keys() == {"train/loss", *(f"train/{g}_ce" for g in GROUPS)}
    for step, (a, b) in enumerate(zip(one, two, strict=True)):
        assert b == pytest.approx(a, rel=1e-4, abs=1e-6), step
    before = tiny.tiny_policy(**DETERMINISTIC).state_dict()
    moved = max((weights[name] - value).abs().max() for name, value in before.items())
    assert moved > 0.01
    for name, value in weights.items():
        torch.testing.assert_close(others[name], value, atol=1e-5, rtol=1e-4, msg=name)


def test_the_loss_of_shares_is_on_average_the_loss_of_the_whole():
    policy = tiny.tiny_policy(text_dim=None).eval()
    batch = tiny.tiny_batch(policy, batch=4)
    counted = batch["user"]
    counted[0, 1:] = counted[2:] = False  # 1 + 5 steps in the first share, none in the second
    logits = policy(batch["frames"], batch["actions"])
    whole = bc_loss(logits, batch["actions"], counted)
    shares = []
    for rows in (slice(0, 2), slice(2, 4)):
        some, ids = ({k: v[rows] for k, v in x.items()} for x in (logits, batch["actions"]))
        shares.append(bc_loss(some, ids, counted[rows], steps=counted.sum() / 2))
    torch.testing.assert_close((shares[0].total + shares[1].total) / 2, whole.total)
    for name, value in whole.cross_entropy.items():
        torch.testing.assert_close((shares[0].cross_entropy[name] + shares[1].cross_entropy[name]) / 2, value)
    nothing = bc_loss(logits, batch["actions"], torch.zeros_like(counted), steps=torch.tensor(0.0))
    assert nothing.total == 0


def evaluated(recordings, processes, batch_size, **arguments):
    """All that a validation logs, causality included."""
    policy = tiny.tiny_policy(text_dim=None)
    with torch.no_grad():
        for parameter in policy.parameters():  # a policy that has opinions
            parameter.mul_(1.5)
    data = RecordingDataModule(root=str(recordings), val_root=str(recordings), batch_size=batch_size)
    trainer = L.Trainer(callbacks=[CausalityScore(["swap", "noise"])], **several(processes), **tiny.QUIET, **arguments)
    (logged,) = trainer.validate(policy, data, verbose=False)
    return logged


def test_a_validation_does_not_depend_on_the_batch_size_or_the_number_of_processes(corrections):
    expected = evaluated(corrections, processes=1, batch_size=2)
    assert {"val/loss", "val/causality", "val/causality_noise", "val/action_reliance"} <= expected.keys()
    assert expected["val/causality"] > 0 and expected["val/action_reliance"] > 0
    for processes, batch_size in ((1, 3), (1, 8), (2, 3)):
        logged = evaluated(corrections, processes, batch_size)
        assert logged == pytest.approx(expected, rel=1e-4, abs=1e-7, nan_ok=True), (processes, batch_size)
    # of a part it is the same as long as the part has as many windows
    expected = evaluated(corrections, processes=1, batch_size=6, limit_val_batches=1)
    for processes, batch_size, limit in ((1, 2, 3), (2, 3, 1)):
        logged = evaluated(corrections, processes, batch_size, limit_val_batches=limit)
        assert logged == pytest.approx(expected, rel=1e-4, abs=1e-7, nan_ok=True), (processes, batch_size)


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
        metrics.update(some, actions, user[rows])

    update(whole, [0, 1, 2], batch["user"])
    for rows in ([0], [1, 2]):
        update(parts, rows, batch["user"])
    empty = [torch.zeros_like(batch["user"]), torch.zeros(3, dtype=torch.bool)]
    parts.update(logits, batch["actions"], *empty)  # windows that only fill up a batch change nothing
    a, b = whole.compute(), parts.compute()
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], msg=name, equal_nan=True)
    torch.testing.assert_close(a["loss"], bc_loss(logits, batch["actions"], batch["user"], policy.z_loss).total)
    keys = torch.log_softmax(logits["keys"], -1).gather(-1, batch["actions"]["keys"][..., None])[..., 0]
    expected = (-keys[batch["user"]].mean()).exp()
    torch.testing.assert_close(whole.compute()["perplexity/keys"], expected)
    logits["keys"] = logits["keys"] + 50 * torch.nn.functional.one_hot((batch["actions"]["keys"] + 1) % 20, 20)
    update(whole, [0, 1, 2], batch["user"])
    assert whole.compute()["perplexity/keys"].isfinite()


def test_checkpoints_load_anywhere(recordings, tmp_path):
    policy = tiny.tiny_policy(text_dim=None)
    trainer = L.Trainer(max_steps=2, **tiny.QUIET)
    trainer.fit(policy, RecordingDataModule(root=str(recordings), batch_size=2))
    trainer.save_checkpoint(tmp_path / "policy.ckpt")
    loaded = BCPolicy.load_from_checkpoint(tmp_path / "policy.ckpt", weights_only=True)
    assert loaded.config == policy.config
    assert all(torch.equal(v, policy.state_dict()[k]) for k, v in loaded.state_dict().items())
