"""Features of a frozen encoder on disk: the same training as from videos, and refused where it would be another one."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from processes import several
from recordings import write_moving
from synthetic import damage
from tiny import QUIET, SIZE, tiny_cnn, tiny_policy
from torchvision.transforms import v2

from bczoo import CausalityScore, FineTune, ImageEncoder
from bczoo.core.errors import UserError
from bczoo.data import features_build
from bczoo.data.module import RecordingDataModule

pytestmark = pytest.mark.filterwarnings("ignore:.*(does not have many workers|num_workers|litlogger|logger|TPU)")
WARM = {"encoder": {"frozen": True}, "transformer": {"dropout": 0.1}}  # random numbers are drawn in training


class Losses(L.Callback):
    """Every loss of a run, as the trainer logs it."""

    def __init__(self, stop: int | None = None) -> None:
        self.train: list[float] = []
        self.val: list[float] = []
        self.stop = stop

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        assert "frames" not in batch or "features" not in batch
        self.train.append(float(outputs["loss"]))
        if trainer.global_step == self.stop:
            raise RuntimeError("power cut")

    def on_validation_end(self, trainer, pl_module):
        self.val.append(float(trainer.callback_metrics["val/loss"]))


@pytest.fixture
def one_by_one(monkeypatch):
    """Kernels round by how many frames they get, and by where one stands among them; alone it is always the same."""
    together = ImageEncoder.features
    monkeypatch.setattr(
        ImageEncoder, "features", lambda self, frames: torch.cat([together(self, one) for one in frames.split(1)])
    )


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    return write_moving(tmp_path_factory.mktemp("features") / "recordings", 4, 29, size=96)


def fit(root, cache=None, policy=None, callbacks=(), epochs=2, checkpoint=None, data=None, **options):
    policy = tiny_policy(**WARM) if policy is None else policy
    losses = Losses()
    cached = {} if cache is None else {"feature_cache": str(cache)}
    module = RecordingDataModule(str(root), batch_size=2, **{"val_fraction": 0.3} | cached | (data or {}))
    torch.manual_seed(1)
    trainer = L.Trainer(max_epochs=epochs, callbacks=[losses, *callbacks], **QUIET | options)
    trainer.fit(policy, module, ckpt_path=checkpoint)
    return losses, policy


def arrays(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("features.npy")}


def same_training(one, other) -> None:
    assert one[0].train and one[0].train == other[0].train and one[0].val == other[0].val
    for (name, a), b in zip(one[1].state_dict().items(), other[1].state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("make", [lambda: tiny_policy(**WARM), lambda: cnn(frozen=True)], ids=["bc", "cnn"])
@pytest.mark.usefixtures("one_by_one")
def test_training_is_the_same_bit_by_bit(videos, tmp_path, make):
    torch.manual_seed(0)
    plain = fit(videos, policy=make())
    torch.manual_seed(0)
    first = fit(videos, tmp_path, policy=make())
    same_training(plain, first)
    made = arrays(tmp_path)
    assert len(made) == 4
    torch.manual_seed(0)
    same_training(plain, fit(videos, tmp_path, policy=make()))
    assert arrays(tmp_path) == made  # read, not made again


def test_many_frames_at_once_are_the_same_but_for_rounding(videos, tmp_path):
    plain, kept = fit(videos)[0], fit(videos, tmp_path)[0]
    assert kept.train == pytest.approx(plain.train, rel=1e-5) and kept.val == pytest.approx(plain.val, rel=1e-5)


def cnn(**encoder):
    return tiny_cnn(
        encoder=lambda width: ImageEncoder(
            width, "test_efficientnet", frame_size=SIZE, pretrained=False, drop_path=0.0, **encoder
        )
    )


def test_no_video_is_read_in_training(videos, tmp_path, monkeypatch):
    fit(videos, tmp_path)
    monkeypatch.setattr("bczoo.data.dataset.read_into", None)
    fit(videos, tmp_path)


@pytest.mark.usefixtures("one_by_one")
def test_workers_and_bfloat16(videos, tmp_path):
    options = {"precision": "bf16-mixed", "data": {"num_workers": 2}}
    same_training(fit(videos, **options), fit(videos, tmp_path, **options))
    assert {np.load(path).dtype for path in arrays(tmp_path)} == {np.dtype(np.int16)}


def test_a_run_goes_on_from_a_checkpoint(videos, tmp_path):
    saver = {"enable_checkpointing": True, "default_root_dir": tmp_path}
    whole, _ = fit(videos)
    keep = L.pytorch.callbacks.ModelCheckpoint(tmp_path / "kept", "{step}", every_n_train_steps=3, save_top_k=-1)
    fit(videos, tmp_path / "cache", callbacks=[keep], epochs=1, **saver)
    other = tiny_policy(seed=5, **WARM)  # its frozen weights come from the checkpoint, and so do its features
    rest, _ = fit(videos, tmp_path / "cache", policy=other, checkpoint=tmp_path / "kept" / "step=3.ckpt", **saver)
    assert len(rest.train) == len(whole.train) - 3
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_other_weights_and_other_videos_have_features_of_their_own(videos, tmp_path):
    root = shutil.copytree(videos, tmp_path / "recordings")
    cache = tmp_path / "cache"
    fit(root, cache, epochs=1)
    made = arrays(cache)
    fit(root, cache, tiny_policy(seed=3, **WARM), epochs=1)
    assert len(arrays(cache)) == 2 * len(made) and len(list(cache.iterdir())) == 2
    video = next((root / "rec_0").glob("*.mp4"))
    video.write_bytes(next((root / "rec_1").glob("*.mp4")).read_bytes())
    fit(root, cache, epochs=1)
    assert len(arrays(cache)) == 2 * len(made) + 1 and made.items() <= arrays(cache).items()


@pytest.mark.usefixtures("one_by_one")
def test_unreadable_frames_count_as_without_the_cache(tmp_path):
    root = write_moving(tmp_path / "recordings", 3, 59)
    damage(next((root / "rec_1").glob("*.mp4")))
    with pytest.warns(UserWarning, match="not learned from"):
        plain = fit(root)
    with pytest.warns(UserWarning, match="recording rec_1: .*; it has no features there"):
        kept = fit(root, tmp_path / "cache")
    same_training(plain, kept)
    with pytest.warns(UserWarning, match="steps had no readable frame"):
        fit(root, tmp_path / "cache")


@pytest.mark.usefixtures("one_by_one")
def test_an_interrupted_pass_goes_on_where_it_was(videos, tmp_path, monkeypatch):
    add, calls = features_build.PartialFeatures.add, []

    def dying(self, rows, readable):
        calls.append(len(rows))
        if len(calls) == 8:  # within the third recording, which comes in three pieces
            raise KeyboardInterrupt
        add(self, rows, readable)

    monkeypatch.setattr(features_build, "CHUNK", 10)
    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, SystemExit)):
        patch.setattr(features_build.PartialFeatures, "add", dying)
        fit(videos, tmp_path)
    kept = arrays(tmp_path)
    assert len(kept) == 2 and not list(tmp_path.rglob(".*writing*"))
    same_training(fit(videos), fit(videos, tmp_path))
    assert kept.items() < arrays(tmp_path).items()


@pytest.mark.slow
def test_processes_share_the_work(videos, tmp_path):
    _, plain = fit(videos, epochs=1, **several(2))
    _, kept = fit(videos, tmp_path, epochs=1, **several(2))
    for (name, a), b in zip(plain.state_dict().items(), kept.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    assert len(arrays(tmp_path)) == 4


def test_the_causality_score_swaps_features(videos, tmp_path):
    def scored(cache):
        score = CausalityScore()
        _, policy = fit(videos, cache, callbacks=[score], epochs=1)
        return {k: float(v) for k, v in policy.trainer.callback_metrics.items() if "causality" in k or "reliance" in k}

    plain = scored(None)
    assert plain and scored(tmp_path) == pytest.approx(plain, abs=1e-6)
    with pytest.raises(UserError, match="needs the pictures themselves"):
        fit(videos, tmp_path, callbacks=[CausalityScore(["blank"])], epochs=1)


# ---------------------------------------------------------------------- refused


def test_augmented_frames_are_refused():
    with pytest.raises(UserError, match=r"data\.augment changes the frames.*--data\.augment null"):
        RecordingDataModule("nowhere", augment=[v2.ColorJitter()], feature_cache="features")


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (lambda: tiny_policy(), r"weight tensors in ImageEncoder are trained.*--model\.encoder\.frozen true"),
        (lambda: tiny_cnn(), r"ConvNeXtEncoder has no features_by\(\)"),
        (lambda: BoringModel(), "a BoringModel, which has no feature_encoder"),
        (lambda: half_frozen(), "in ImageEncoder is in training mode"),
    ],
    ids=["trained", "one part", "no encoder", "statistics"],
)
def test_an_encoder_that_changes_is_refused(videos, tmp_path, policy, said):
    with pytest.raises(UserError, match=said):
        fit(videos, tmp_path / "cache", policy())
    assert not (tmp_path / "cache").exists()


def half_frozen():
    policy = tiny_policy()
    policy.encoder.backbone.requires_grad_(False)
    return policy


@pytest.mark.usefixtures("one_by_one")
def test_fine_tuning_keeps_features_of_what_it_never_trains(videos, tmp_path):
    source = tiny_policy()
    source.save_pretrained(tmp_path / "source")

    def tuned(**options):
        return FineTune(str(tmp_path / "source"), **options)

    plain = fit(videos, policy=tuned(freeze={"encoder": True}))
    same_training(plain, fit(videos, tmp_path / "cache", tuned(freeze={"encoder": True})))
    with pytest.raises(UserError, match="now or later in this run"):
        fit(videos, tmp_path / "cache", tuned(freeze={"encoder": 3}))


def test_no_room_is_told_before_anything_is_computed(videos, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    with pytest.raises(UserError, match=r"the features of 120 frames take .* GB, and .* has 1e-06 GB left; free space"):
        fit(videos, tmp_path)
    assert not arrays(tmp_path)


def test_a_broken_file_is_named(videos, tmp_path):
    fit(videos, tmp_path, epochs=1)
    for path in arrays(tmp_path):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        UserError, match=r"the features of recording rec_\d in .* cannot be read .*; remove that folder"
    ):
        fit(videos, tmp_path, epochs=1)
