"""Models that learn without a user's actions, without any actions, or without frames."""

from __future__ import annotations

import lightning as L
import numpy as np
import pytest
import tiny
import torch
from synthetic import SIZE, number_of, numbered, write_recordings

from bczoo.core.actions import ActionSpace
from bczoo.core.errors import UserError
from bczoo.core.spec import InputSpec, loss_mask
from bczoo.data import dataset as dataset_module
from bczoo.data.module import RecordingDataModule
from bczoo.data.recording import RecordingWriter
from bczoo.models.model import Model
from bczoo.models.policy import Policy
from bczoo.train.loss import Loss

pytestmark = pytest.mark.filterwarnings("ignore:.*(does not have many workers|num_workers|litlogger|logger|TPU)")
QUIET = tiny.QUIET | {"num_sanity_val_steps": 0}


class Autoencoder(Model):
    """Paints a frame from four numbers: no actions, and so no action space."""

    supervision = "none"

    def __init__(self, width: int = 4) -> None:
        spec = InputSpec(None, frame_size=SIZE, window=6, text_dim=None)
        super().__init__(spec, lambda parameters: torch.optim.SGD(parameters, 0.1))
        self.down, self.up = torch.nn.Linear(3 * SIZE * SIZE, width), torch.nn.Linear(width, 3 * SIZE * SIZE)
        self.seen: list[dict] = []

    def loss(self, batch):
        self.seen.append(batch)
        frames = batch["frames"].flatten(2) / 255
        mask = loss_mask(batch, self.supervision)
        errors = (self.up(self.down(frames)) - frames).square().mean(-1)
        return Loss((errors * mask).sum() / mask.sum(), {})


class ActionPrior(Model):
    """How often each id comes up, whoever acts: needs no frames."""

    supervision = "any"
    fields = ()

    def __init__(self, space: str = "keyboard_mouse") -> None:
        spec = InputSpec(ActionSpace.of(space), frame_size=SIZE, window=6, text_dim=None)
        super().__init__(spec, lambda parameters: torch.optim.SGD(parameters, 0.1))
        self.logits = torch.nn.Parameter(torch.zeros(self.input_spec.actions.groups[0].choices))
        self.seen: list[dict] = []

    def loss(self, batch):
        self.seen.append(batch)
        ids = batch["actions"][self.input_spec.actions.groups[0].name][loss_mask(batch, self.supervision)]
        return Loss(-self.logits.log_softmax(-1)[ids].mean(), {})


def watched(root, count=3, n=20, **action):
    """Recordings without any action, or with one in every step."""
    for r in range(count):
        with RecordingWriter(root / f"rec-{r}", size=SIZE) as writer:
            for i in range(n):
                writer.add(numbered(100 * r + i), **action)
    return root


def fit(model, root, **arguments):
    trainer = L.Trainer(max_steps=2, val_check_interval=1, **QUIET)
    trainer.fit(model, RecordingDataModule(str(root), **{"batch_size": 2, "val_fraction": 0.4} | arguments))
    return trainer


def test_frames_alone_are_learned_from(tmp_path):
    """Recordings of somebody else's play, in which no action is known."""
    root, model = watched(tmp_path / "recordings"), Autoencoder()
    before = model.up.bias.clone()
    trainer = fit(model, root)
    assert not torch.equal(model.up.bias, before)
    assert trainer.callback_metrics["val/loss"].isfinite()
    batch = model.seen[0]
    assert batch["actions"] == {} and "text" not in batch and not (batch["user"] | batch["system"]).any()
    for recording, start, frames, valid in zip(
        *(batch[k] for k in ("recording", "start", "frames", "valid")), strict=True
    ):
        shown = [number_of(frame) for frame in frames[valid].permute(0, 2, 3, 1).numpy()]
        assert shown == [100 * int(recording) + int(start) + t for t in range(len(shown))]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_without_frames_no_video_is_decoded(tmp_path, monkeypatch, num_workers):
    def read_into(*arguments, **options):
        raise AssertionError("a video was opened")

    monkeypatch.setattr(dataset_module, "read_into", read_into)
    model = ActionPrior()
    fit(model, write_recordings(tmp_path / "recordings"), num_workers=num_workers)
    assert "frames" not in model.seen[0] and model.seen[0]["valid"].any()
    assert model.logits.abs().max() > 0


def test_any_counts_a_policys_own_actions_too(tmp_path):
    root = watched(tmp_path / "recordings", system={"keys": ["w"], "mouse_dx": 3})
    model = ActionPrior()
    fit(model, root)
    batch = model.seen[0]
    assert torch.equal(loss_mask(batch, "any"), batch["system"] & batch["valid"]) and loss_mask(batch, "any").any()
    assert not loss_mask(batch).any()
    assert torch.equal(loss_mask(batch, "none"), batch["valid"])

    class OfUsers(ActionPrior):
        supervision = "user"

    with pytest.raises(UserError, match="none of the 2 training recordings holds an action of a user"):
        fit(OfUsers(), root)
    with pytest.raises(UserError, match="none of the 2 training recordings holds a known action"):
        fit(ActionPrior(), watched(tmp_path / "silent"))


def test_what_a_model_asks_for_in_vain_is_refused(tmp_path):
    root = watched(tmp_path / "recordings")

    class WithSounds(Autoencoder):
        fields = ("frames", "sounds")

    class Odd(Autoencoder):
        supervision = "both"

    with pytest.raises(UserError, match="WithSounds asks for batches with sounds; recordings give frames"):
        fit(WithSounds(), root)
    with pytest.raises(UserError, match="supervision"):
        fit(Odd(), root)
    with pytest.raises(UserError, match="Policy is a policy, so its InputSpec needs an action_space"):
        Policy(InputSpec(None))
    with pytest.raises(UserError, match="predicts no actions"):
        _ = Autoencoder().input_spec.actions


def test_it_is_published_as_any_model(tmp_path):
    folder = Autoencoder().save_pretrained(tmp_path / "out")
    assert "- no actions" in (folder / "README.md").read_text()


def test_the_action_space_decides_which_index_is_read(tmp_path):
    """One without actions and one with them lie beside each other."""
    root = write_recordings(tmp_path / "recordings")
    fit(Autoencoder(), root)
    model = ActionPrior()
    fit(model, root)
    assert len(list((root / ".bczoo" / "index").iterdir())) == 2
    keys = np.unique(model.seen[0]["actions"]["keys"].numpy())
    assert len(keys) > 1
