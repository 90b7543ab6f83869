"""Sources of every format that are empty, cut off, noise, hostile, too fast or backwards: a line each, never a crash.

LeRobot's datasets, of many files each, are in test_lerobot.py.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil

import h5py
import numpy as np
import pytest
from foreign import even, numbered, vpt_line, write_owl, write_video, write_vpt
from mcap.writer import Writer

from bczoo.data.check import check
from bczoo.imports import csgo
from bczoo.imports.command import import_recordings

OWL = [(0.0, "VIDEO_START", []), (0.01, "KEYBOARD", [87, True]), (0.11, "KEYBOARD", [87, False])]


def owamcap(folder, ms=(0, 50, 100, 150), backwards=False):
    write_video(folder / "a.mkv", list(ms))
    with (folder / "a.mcap").open("wb") as file:
        writer = Writer(file)
        writer.start(profile="owa")
        schema = writer.register_schema("desktop/ScreenCaptured", "jsonschema", b"{}")
        channel = writer.register_channel("screen", "json", schema)
        for one in ms:
            ns = 10**12 + one * 10**6
            taken = 10**12 - one * 10**6 if backwards else ns
            fields = {"utc_ns": taken, "media_ref": {"uri": "a.mkv", "pts_ns": one * 10**6}}
            writer.add_message(channel, ns, json.dumps(fields).encode(), ns)
        writer.finish()


def counter_strike(folder, frames=4):
    with h5py.File(folder / "a.hdf5", "w") as data:
        for i in range(frames):
            data[f"frame_{i}_x"], data[f"frame_{i}_y"] = numbered(i), still()


def still():
    """An action of Counter-Strike in which nothing is done."""
    action = np.zeros(csgo.LENGTH)
    action[len(csgo.KEYS) + csgo.MOUSE_DX.index(0)] = 1
    action[len(csgo.KEYS) + len(csgo.MOUSE_DX) + csgo.MOUSE_DY.index(0)] = 1
    return action


SOURCES = {  # format -> writes a recording that can be imported
    "owamcap": owamcap,
    "owl": lambda folder: write_owl(folder / "rec", OWL, fps=20.0, seconds=0.2),
    "vpt": lambda folder: write_vpt(folder / "a.mp4", [vpt_line(i) for i in range(4)]),
    "csgo": counter_strike,
    "video": lambda folder: write_video(folder / "a.mp4", even(4)),
}


class Hostile:
    """What runs a command in whoever unpickles it."""

    def __reduce__(self):
        return os.system, ("touch owned",)


DAMAGES = {
    "empty": lambda data: b"",
    "noise": lambda data: np.random.default_rng(0).bytes(len(data)),
    "cut off": lambda data: data[: len(data) // 3],
    "a pickle": lambda data: pickle.dumps(Hostile()),
    "a path": lambda data: b"../../../../etc/passwd\n",
}


def imported(format, folder, **options):
    """The import's only recording, and what lies where it was to be written."""
    report = import_recordings(format, str(folder / "in"), str(folder / "out"), processes=1, **options)
    (one,) = report.recordings
    return one, sorted(os.listdir(folder / "out")) if (folder / "out").exists() else []


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    return tmp_path


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("format", SOURCES)
def test_damaged_files_get_a_line_and_never_half_a_recording(source, format, damage):
    SOURCES[format](source / "in")
    files = [path for path in sorted((source / "in").rglob("*")) if path.is_file()]
    for file in files:
        good = file.read_bytes()
        file.write_bytes(DAMAGES[damage](good))
        one, there = imported(format, source)
        assert one.problem or file.name == "metadata.json", f"{file.name} that is {damage} was imported"
        assert one.problem.count("\n") == 0 and there == ([] if one.problem else ["rec"])
        assert not (source / "owned").exists()
        shutil.rmtree(source / "out", ignore_errors=True)
        file.write_bytes(good)
    one, there = imported(format, source)
    assert not one.problem and len(there) == 1, "the source without damage is imported"
    assert check(str(source / "out"), processes=1).status == 0


@pytest.mark.parametrize("format", ["owamcap", "owl", "video"])
def test_ten_times_the_rate_becomes_steps_of_the_usual_one(source, format):
    if format == "owamcap":
        owamcap(source / "in", even(100, 200.0))
    elif format == "owl":
        write_owl(source / "in" / "rec", OWL, fps=200.0, seconds=0.5)
    else:
        write_video(source / "in" / "a.mp4", even(100, 200.0))
    one, _ = imported(format, source)
    assert not one.problem and one.steps == 10 and one.seconds == 0.5


def test_frames_whose_clock_runs_backwards(source):
    owamcap(source / "in", backwards=True)
    one, there = imported("owamcap", source)
    assert "the time of a frame is -0.050 s, that of the one before 0.000 s" in one.problem and there == []


def test_inputs_whose_clock_runs_backwards_are_taken_by_their_times(source):
    write_owl(source / "in" / "rec", [OWL[0], *reversed(OWL[1:])], fps=20.0, seconds=0.2)
    one, _ = imported("owl", source)
    assert one.held == {"keys:w": 3}


def test_times_that_jump_by_a_day_are_a_broken_clock(source):
    write_video(source / "in" / "a.mkv", [0, 50, 86_400_000])
    one, there = imported("video", source)
    assert "the time of a frame is 86400.000 s, that of the one before 0.050 s" in one.problem and there == []


@pytest.mark.parametrize(
    ("picture", "action", "reason"),
    [
        (np.zeros((0, 0, 3), np.uint8), still(), "frame 0 cannot be read (ValueError: a picture of shape (0, 0, 3))"),
        (np.zeros((5000, 2, 3), np.uint8), still(), "a picture of shape (5000, 2, 3)"),
        (numbered(0), np.zeros(csgo.LENGTH), "the action of frame 0 has none of the mouse motions"),
        (numbered(0), np.full(csgo.LENGTH, np.nan), "the action of frame 0 has none of the mouse motions"),
    ],
)
def test_frames_of_counter_strike_that_are_none(source, picture, action, reason):
    with h5py.File(source / "in" / "a.hdf5", "w") as data:
        data["frame_0_x"], data["frame_0_y"] = picture, action
    one, there = imported("csgo", source)
    assert reason in one.problem and there == []
