"""What a training starts with: sizes, no-ops, frames that never change, and warnings where nothing can be learned."""

from __future__ import annotations

import time

import lightning as L
import numpy as np
import pytest
import torch
from synthetic import SIZE, damage, number_of, numbered, write_recording, write_recordings, write_video

from bczoo.core.actions import ActionSpace
from bczoo.data import summary
from bczoo.data.check import check
from bczoo.data.index import open_index
from bczoo.data.module import RecordingDataModule
from bczoo.data.recording import RecordingWriter
from bczoo.data.summary import summarise
from bczoo.data.video import sample_frames

KEYBOARD = ActionSpace.keyboard_mouse()
BLACK = np.zeros((SIZE, SIZE, 3), np.uint8)


def record(folder, frame, action, n=30):
    with RecordingWriter(folder, size=SIZE) as writer:
        for i in range(n):
            writer.add(frame(i), user=action(i))


def summary_of(root, **arguments):
    index = open_index(root, KEYBOARD)
    return summarise(index, index.usable, **{"frame_size": SIZE} | arguments)


def test_counts_and_silence_where_all_is_well(tmp_path):
    def action(i):
        return {} if i % 3 == 0 else {"keys": ["w", "Space"][i % 2 : i % 2 + 1], "mouse_buttons": ["0"]}

    for r in range(3):
        record(tmp_path / f"rec-{r}", lambda i: numbered(37 * i % 997 + 1), action)
    found = summary_of(tmp_path)
    assert (found.recordings, found.steps, found.idle, found.sampled) == (3, 90, 30, 3)
    assert found.hours == pytest.approx(93 / 20 / 3600)
    assert not {"keys:w", "keys:Space", "mouse_buttons:0"} & set(found.never)
    assert {"keys:a", "mouse_buttons:1"} <= set(found.never)
    assert found.sample is not None
    assert (found.sample.recordings, found.sample.black, found.sample.still) == (3, 0, [])
    assert found.sample.frames > 20
    assert found.warnings() == []
    actions = found.lines()[0]
    assert "33.3% of 90 steps are no-ops" in actions
    assert "no-ops; 19 keys or buttons nobody presses, so nor will the policy: keys:1, " in actions


def test_switches_that_are_never_pressed(tmp_path):
    record(tmp_path / "rec", numbered, lambda i: {"buttons": ["south"] if i % 2 else [], "left_stick_x": 0.5})
    index = open_index(tmp_path, ActionSpace.gamepad())
    found = summarise(index, index.usable)
    assert len(found.never) == 11
    assert "buttons:south" not in found.never
    assert (found.idle, found.single_action) == (0, False)


def test_what_nothing_can_be_learned_from_is_told(tmp_path):
    moving, still = lambda i: numbered(37 * i % 997 + 1), lambda i: numbered(77)
    keys = lambda i: {"keys": ["w" if i % 2 else "a"]}  # noqa: E731
    for name, frame, action in (
        ("black", lambda i: BLACK, keys),
        ("still", still, keys),
        ("idle", moving, lambda i: {}),
        ("one", moving, lambda i: {"keys": ["w"]}),
    ):
        record(tmp_path / name / "rec", frame, action)

    def warnings(name):
        return " ".join(summary_of(tmp_path / name).warnings())

    assert "frames that were looked at are black" in warnings("black")
    assert "the picture never changes in 1 of 1 recordings that were looked at (rec)" in warnings("still")
    assert warnings("idle").startswith("every step presses and moves nothing")
    assert warnings("one").startswith("every step is the same action")
    half = open_index([tmp_path / "still", tmp_path / "one"], KEYBOARD)
    assert "never changes in 1 of 2" in " ".join(summarise(half, half.usable, frame_size=SIZE).warnings())


def test_the_sample_is_bounded_and_damage_does_not_stop_it(tmp_path, monkeypatch):
    write_recordings(tmp_path, 12, 30)
    for r in range(12):
        damage(tmp_path / f"rec-{r}" / f"{SIZE}x{SIZE}.mp4", share=0.0, length=10**6)
    found = summary_of(tmp_path)
    assert found.sample is not None
    assert found.sample.frames == 0 or found.sample.recordings <= 8
    write_recordings(tmp_path / "good", 12, 30)
    found = summary_of(tmp_path / "good")
    assert found.sample is not None
    assert found.sample.recordings == 8
    now = time.monotonic()
    found = summary_of(tmp_path / "good", seconds=-1.0)
    assert time.monotonic() - now < 30
    assert found.sample is not None
    assert found.sample.frames == 0
    monkeypatch.setattr(summary, "MOST_STEPS", 100)
    found = summary_of(tmp_path / "good")
    assert found.sampled < 12
    assert f"steps are no-ops, of {found.sampled} recordings" in found.lines()[0]


def test_sampled_frames_are_from_all_over_the_video(tmp_path):
    path = write_video(tmp_path / "video.mp4", 200, x264_params="keyint=10:scenecut=0")
    runs = [[number_of(frame) for frame in run] for run in sample_frames(path, 4, 3)]
    assert [-(-run[0] // 10) for run in runs] == [0, 5, 10, 15]  # the keyframe at or before these places
    assert all(run == list(range(run[0], run[0] + 3)) for run in runs)
    path = write_video(tmp_path / "one-group.mp4", 200, x264_params="keyint=1000:scenecut=0")
    assert [[number_of(f) for f in run] for run in sample_frames(path, 4, 3)] == [[0, 1, 2]]


class Nothing(L.LightningModule):
    """Learns nothing."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.weight(torch.ones(1, 1)).mean()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.filterwarnings("ignore")
def test_a_training_starts_with_a_few_lines(tmp_path, capsys):
    """Nine black frames with one action, as somebody records by mistake."""
    record(tmp_path / "rec", lambda i: BLACK, lambda i: {"keys": ["w"]}, n=9)

    def trainer():
        return L.Trainer(
            accelerator="cpu", max_steps=1, logger=False, enable_progress_bar=False, enable_checkpointing=False
        )

    module = RecordingDataModule(str(tmp_path), batch_size=1, window=6, frame_size=SIZE)
    trainer().fit(Nothing(), module)
    out = capsys.readouterr().out
    assert "training 1 recording, 0.00 h, 2 windows; validation 0 recordings" in out
    for text in ("looked at are black", "every step is the same action", "only 2 windows", "left for validation"):
        assert out.count(text) == 1, text
    trainer().validate(Nothing(), module)
    assert "warning" not in capsys.readouterr().out
    trainer().fit(Nothing(), RecordingDataModule(str(tmp_path), batch_size=1, window=6, val_fraction=0.0))
    out = capsys.readouterr().out
    assert "validation none" in out
    assert "left for validation" not in out
    printed = str(check(str(tmp_path), processes=1))
    assert "warning: every step is the same action" in printed
    assert "100.0% are black" in printed
    write_recording(tmp_path / "rec-2", 60)
    assert "every step is the same" not in str(check(str(tmp_path), processes=1))
