"""``bczoo dream``: videos that go on from a recording, under recorded, random and a policy's actions."""

from __future__ import annotations

import pytest
import tiny
import toy_world
from command_line import bczoo
from command_line import here as here

from bczoo.data.video import iterate_frames

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def recording(here):
    return toy_world.write_recordings(here / "held_out", 1, 40) / "rec_0"


def shown(path, beside=False):
    """Column of light in each dreamt picture of a video."""
    out = []
    for picture in iterate_frames(path):
        width = picture.shape[1] - 250  # of the pictures; the rest is the panel
        left = width // 2 if beside else 0
        row = picture[192, left:width].mean(-1)
        out.append(int(row.argmax() * toy_world.COLUMNS / len(row) + 0.5))
    return out


def test_recorded_actions_and_the_real_video_beside(world_folder, recording, here, capsys):
    assert bczoo("dream", world_folder, "--context", recording, "--steps", 30, "--temperature", 0) == 0
    told = capsys.readouterr().out
    assert "wrote dream.mp4: 2 real steps, 30 dreamt ones" in told
    frames = list(iterate_frames(here / "dream.mp4"))
    assert len(frames) == 32
    for picture in frames:  # both halves show the same, for the world has learned the toy by heart
        width = (picture.shape[1] - 250) // 2
        real, dreamt = picture[192, :width].mean(-1), picture[192, width : 2 * width].mean(-1)
        assert abs(int(real.argmax()) - int(dreamt.argmax())) <= 4


def test_other_actions(world_folder, recording, here, capsys):
    common = ("dream", world_folder, "--context", recording, "--steps", 12)
    assert bczoo(*common, "--actions", "random", "--seed", 1, "--out", "one.mp4") == 0
    assert bczoo(*common, "--actions", "random", "--seed", 2, "--out", "two.mp4") == 0
    assert len(shown(here / "one.mp4")) == 14 and shown(here / "one.mp4") != shown(here / "two.mp4")
    policy = tiny.tiny_cnn().save_pretrained(here / "policy")
    assert bczoo(*common, "--actions", policy, "--out", "policy.mp4") == 0
    assert len(shown(here / "policy.mp4")) == 14
    slow = tiny.tiny_cnn(fps=10).save_pretrained(here / "slow")
    assert bczoo(*common, "--actions", slow, "--out", "slow.mp4") == 1
    assert "acts 10 times a second" in capsys.readouterr().err and not (here / "slow.mp4").exists()


def test_recorded_actions_end_with_the_recording(world_folder, recording, here, capsys):
    assert bczoo("dream", world_folder, "--context", recording, "--start", 30, "--seen", 1) == 0
    assert "ends after 10 steps, so 9 pictures are dreamt, not 100" in capsys.readouterr().out
    assert bczoo("dream", world_folder, "--context", recording, "--start", 40) == 1
    assert "has 0 steps from step 40 on" in capsys.readouterr().err
    assert bczoo("dream", world_folder, "--context", recording.parent, "--seen", 0) == 1
    assert "seen must be a whole number from 1 on" in capsys.readouterr().err
    toy_world.write_recordings(here / "two", 2, 5)
    assert bczoo("dream", world_folder, "--context", here / "two") == 1
    assert "--context is one recording" in capsys.readouterr().err
    policy = tiny.tiny_cnn().save_pretrained(here / "policy")
    assert bczoo("dream", policy, "--context", recording) == 1
    assert "CNNPolicy" in capsys.readouterr().err
