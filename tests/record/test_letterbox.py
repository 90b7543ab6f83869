"""Wide pictures between black bars: as they are recorded, as they are learned from, and as they are played."""

from __future__ import annotations

import re
import warnings

import gymnasium
import lightning as L
import numpy as np
import pytest
import tiny

from bczoo import RecordingDataModule
from bczoo.core.frames import resize
from bczoo.data.video import read_frames
from bczoo.games import DiscreteBindings, Game
from bczoo.record import record


class Wide(gymnasium.Env):
    """A picture of 128 x 64 px, white, and red at its left quarter."""

    action_space = gymnasium.spaces.Discrete(2)
    observation_space = gymnasium.spaces.Box(0, 255, (64, 128, 3), np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.frame(), {}

    def step(self, action):
        self.steps += 1
        return self.frame(), 0.0, False, False, {}

    def frame(self):
        frame = np.full((64, 128, 3), 255, np.uint8)
        frame[:, :32] = 255, 0, self.steps
        return frame


def wide():
    return Game("wide", env=Wide, bindings=DiscreteBindings({"a": 1}, none=0), time_limit_s=1.0)


def recorded(folder, fit):
    (path,) = record(wide(), str(folder), agent="random", episodes=1, size=64, workers=1, fit=fit)
    return path


def test_a_picture_keeps_its_proportions_between_black_bars():
    frame = Wide().reset()[0]
    boxed = resize(frame, 64, "letterbox")
    assert boxed.shape == (64, 64, 3)
    assert not boxed[:16].any() and not boxed[48:].any(), "bars above and below"
    assert (boxed[16:48, 20:] == 255).all() and (boxed[16:48, :12] == (255, 0, 0)).all()
    tall = resize(np.ascontiguousarray(frame.transpose(1, 0, 2)), 64, "letterbox")
    np.testing.assert_array_equal(tall, boxed.transpose(1, 0, 2))
    assert resize(boxed, 64, "letterbox") is boxed
    thin = resize(np.full((4, 1000, 3), 255, np.uint8), 64, "letterbox")
    assert (thin.any(axis=(1, 2))).sum() == 1, "at least one row is seen"


def test_recordings_hold_what_the_policy_sees_in_play(tmp_path, capsys):
    boxed, squashed = recorded(tmp_path / "boxed", "letterbox"), recorded(tmp_path / "squashed", "squash")
    said = capsys.readouterr().out
    assert "frames 128 x 64 stored as 64 x 64, between black bars; train with --model.resize letterbox" in said
    assert "frames 128 x 64 stored as 64 x 64, squashed (--size, --fit)" in said
    policy = tiny.tiny_policy(resize="letterbox", text_dim=None)
    frame = Wide().reset()[0]
    (seen,) = policy.agent().pixels([frame]).permute(0, 2, 3, 1).numpy()
    for path, agrees in ((boxed, True), (squashed, False)):
        video = read_frames(f"{path}/64x64.mp4", 0, 1, 64, filter="letterbox")[0]
        assert (np.abs(video.astype(int) - seen).mean() < 5) == agrees


@pytest.mark.parametrize(
    ("fit", "by", "said"),
    [
        ("letterbox", "hamming", "lie between black bars, and this policy squashes .* --model.resize letterbox"),
        ("squash", "letterbox", "are squashed, and this policy puts black bars .* record with --fit letterbox"),
        ("letterbox", "letterbox", None),
        ("squash", "hamming", None),
    ],
)
def test_who_trains_on_the_other_kind_is_told(fit, by, said, tmp_path):
    recorded(tmp_path, fit)
    data = RecordingDataModule(root=str(tmp_path), batch_size=1, val_fraction=0)
    policy = tiny.tiny_policy(resize=by, text_dim=None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        L.Trainer(max_steps=1, **tiny.QUIET).fit(policy, data)
    told = [str(w.message) for w in caught if "the pictures of" in str(w.message)]
    assert len(told) == (said is not None)
    assert said is None or re.search(said, told[0])


def test_the_policy_is_rebuilt_with_its_bars(tmp_path):
    policy = tiny.tiny_policy(resize="letterbox", text_dim=None)
    policy.save_pretrained(tmp_path / "policy")
    assert type(policy).from_pretrained(tmp_path / "policy").input_spec.resize == "letterbox"


def test_one_of_the_other_kind_among_many_is_told(tmp_path):
    for seed, fit in ((0, "squash"), (1, "squash"), (2, "letterbox")):
        record(wide(), str(tmp_path), agent="random", episodes=1, seed=seed, size=64, workers=1, fit=fit)
    data = RecordingDataModule(root=str(tmp_path), batch_size=1, window=5, val_fraction=0)
    data.prepare_data()
    with pytest.warns(UserWarning, match="lie between black bars"):
        data.setup()
