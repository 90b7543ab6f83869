"""Recordings of ocap: real ones of two generations, and written ones for what those do not show.

The real ones are of open-world-agents (MIT, see owamcap/LICENSE): somebody types "test text" and moves the mouse.
"""

from __future__ import annotations

import json
import shutil
import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from foreign import number_of, write_video
from mcap.writer import Writer

from bczoo.data.errors import RecordingError
from bczoo.imports.owamcap import OwaMcap
from bczoo.imports.steps import cut

SAMPLES = Path(__file__).parent / "owamcap"


def write(path, messages):
    """An .mcap file of messages: seconds, kind, fields."""
    with path.open("wb") as file:
        writer = Writer(file, chunk_size=2**13)
        writer.start(profile="owa")
        channels = {}
        for time, kind, fields in sorted(messages, key=lambda one: one[0]):
            if kind not in channels:
                schema = writer.register_schema(f"desktop/{kind}", "jsonschema", b"{}")
                channels[kind] = writer.register_channel(kind, "json", schema)
            ns = round((1000 + time) * 1e9)
            writer.add_message(channels[kind], ns, json.dumps(fields).encode(), ns)
        writer.finish()
    return path


def screens(times, shape=None, **more):
    """Messages of frames that lie 30 ms later on the clock than in the video."""
    for ms in times:
        fields = {"utc_ns": round(1000e9 + (ms + 30) * 1e6), "media_ref": {"uri": "a.mkv", "pts_ns": ms * 1_000_000}}
        yield (ms + 40) / 1000, "ScreenCaptured", fields | ({"shape": shape} if shape else {}) | more


def key(time, code, event_type):
    return time, "KeyboardEvent", {"vk": code, "event_type": event_type}


def written(tmp_path, messages, times=(0, 100, 200)):
    write_video(tmp_path / "a.mkv", list(times))
    return OwaMcap().read(write(tmp_path / "a.mcap", [*screens(times), *messages]))


def keys(session, fps=20.0):
    return [step.values and step.values["keys"] for step in cut(session, fps, "a")]


def typed(frame):
    """How many pixels wide the text is that was typed; without the cursor's thin line."""
    dark = (frame[92:112, 8:220].max(2) < 130).sum(0)
    columns = np.flatnonzero((dark > 0) & (dark < 15))
    return int(columns.max(initial=0))


def test_no_frame_shows_a_letter_before_its_key_is_pressed():
    """Frames are taken at the time of their message; by the video's own times letters come before their keys."""
    session = OwaMcap().read(SAMPLES / "0.5.1.mcap")
    frames = [(time, typed(picture())) for time, picture in session.frames]
    presses = sorted(e.time for e in session.events if e.value and (len(e.name) == 1 or e.name == "Space"))
    letters = [t for t in presses if t < frames[13][0]]
    assert len(letters) == 9  # "test text"
    grown = [time for (_, before), (time, now) in pairwise(frames[:14]) if now > before + 3]
    assert len(grown) >= 7  # the space is not seen, and two letters may come in one frame
    for time in grown:
        pressed = max(t for t in letters if t <= time)
        assert 0 <= time - pressed < 0.1


def test_both_generations_of_the_real_recordings():
    for name, count, size in (("0.3.2", 49, (578, 906)), ("0.5.1", 17, (1017, 1025))):
        session = OwaMcap().read(SAMPLES / f"{name}.mcap")
        frames = [(time, picture().shape[:2]) for time, picture in session.frames]
        assert len(frames) == count and {shape for _, shape in frames} == {size}  # without the padded row and column
        assert all(b > a for (a, _), (b, _) in pairwise(frames))
    assert session.notes == [
        "code_179: in the keyboard's state but never pressed, so left out",
        "frames of the video without a message that tells their time, left out: 1",
    ]
    told = [step.values for step in cut(OwaMcap().read(SAMPLES / "0.5.1.mcap"), 20.0, "a")]
    assert [v and v["mouse_buttons"] for v in told].count(["0"]) == 2  # a click of 94 ms
    assert sum(e.value for e in session.events if e.name == "mouse_dx") == 1181 - 1378  # from place to place


def test_a_release_that_was_lost_is_told_by_the_state(tmp_path):
    messages = [
        key(0.04, 87, "press"), (0.15, "KeyboardState", {"buttons": [87]}), (0.22, "KeyboardState", {"buttons": []}),
        key(0.20, 69, "press"),  # too young to be in the last state
    ]  # fmt: skip
    session = written(tmp_path, messages, times=(0, 100, 300))
    assert keys(session) == [["w"], ["w"], ["w"], ["e", "w"], ["e"], ["e"], None]
    assert session.notes == ["w was released 1 times without an event"]


def test_motion_is_that_of_the_device_where_it_was_recorded(tmp_path):
    pointer = [(0.03 + i / 100, "MouseEvent", {"event_type": "move", "x": 5 * i, "y": 0}) for i in range(10)]
    raw = [(0.05, "RawMouseEvent", {"last_x": -7, "last_y": 2, "us_flags": 0, "button_flags": 0x400})]
    absolute = [(0.06, "RawMouseEvent", {"last_x": 30000, "last_y": 30000, "us_flags": 1})]
    told = [step.values["mouse_dx"] for step in cut(written(tmp_path, pointer), 20.0, "a") if step.values]
    assert told == [20, 25, 0, 0]  # the first place is no motion
    (tmp_path / "a.mcap").unlink()
    told = [step.values for step in cut(written(tmp_path, [*pointer, *raw, *absolute]), 20.0, "a") if step.values]
    assert [(v["mouse_dx"], v["mouse_dy"]) for v in told] == [(-7, 2), (0, 0), (0, 0), (0, 0)]


def test_memory_does_not_grow_with_the_messages(tmp_path):
    """A mouse that tells of its motion a thousand times a second; its events alone would take a megabyte here."""

    def peak(count):
        raw = (
            (0.04 + 0.15 * i / count, "RawMouseEvent", {"last_x": 1, "last_y": 0, "us_flags": 0}) for i in range(count)
        )
        written(tmp_path, raw)
        tracemalloc.start()
        session = OwaMcap().read(tmp_path / "a.mcap")
        told = [step.values["mouse_dx"] for step in cut(session, 20.0, "a") if step.values]
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert sum(told) == count
        return used

    few, many = peak(500), peak(4_000)
    assert many - few < 200_000, (few, many)


def test_buttons_and_wheel_of_the_device_alone(tmp_path):
    raw = [
        (0.04, "RawMouseEvent", {"last_x": 0, "last_y": 0, "button_flags": 0x0004}),  # right down
        (0.06, "RawMouseEvent", {"last_x": 0, "last_y": 0, "button_flags": 0x0008 | 0x400, "button_data": 0xFF88}),
    ]
    told = [step.values for step in cut(written(tmp_path, raw), 20.0, "a") if step.values]
    assert [v["mouse_buttons"] for v in told] == [["1"], [], [], []]
    assert [v["scroll_dy"] for v in told] == [-1, 0, 0, 0]


def test_damage_that_shows_when_events_are_read_is_named(tmp_path):
    session = written(tmp_path, [(0.1, "MouseEvent", {"x": 3})])
    with pytest.raises(RecordingError, match=r"a MouseEvent is damaged \(KeyError: 'y'\)"):
        list(session.events)


def test_frames_and_messages_without_a_partner_are_told(tmp_path):
    write_video(tmp_path / "a.mkv", [0, 50, 100, 150])
    path = write(tmp_path / "a.mcap", [*screens([0, 100, 130, 150]), (0.1, "Hum", {})])
    session = OwaMcap().read(path)
    assert [number_of(picture()) for _, picture in session.frames] == [0, 2, 3]
    assert session.notes == [
        "messages of the kind Hum, which are not read: 1",
        "frames that are not in the video: 1 of 4",
        "frames of the video without a message that tells their time, left out: 1",
    ]


@pytest.mark.parametrize(
    "place",
    [
        {"path": "/home/somebody/a.mkv", "pts": 100_000_000},
        {"media_ref": {"type": "video", "path": "a.mkv", "pts_ns": 100_000_000}},
        {"media_ref": {"uri": "a.mkv", "pts_ns": 100_000_000}, "shape": [64, 47]},
    ],
)
def test_where_a_frame_is_in_every_generation(tmp_path, place):
    write_video(tmp_path / "a.mkv", [0, 100])
    path = write(tmp_path / "a.mcap", [(0.5, "ScreenEmitted", {"utc_ns": 7_000_000_000} | place)])
    ((time, picture),) = OwaMcap().read(path).frames
    assert time == 7.0 and number_of(picture()) == 1 and picture().shape[0] == place.get("shape", [64, 48])[1]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda f: (f / "a.mcap").write_bytes((f / "a.mcap").read_bytes()[:-300]), "cannot be read"),
        (lambda f: (f / "a.mkv").unlink(), "cannot be opened"),
        (lambda f: (f / "a.mkv").write_bytes(b"x"), "cannot be opened"),
        (lambda f: write(f / "a.mcap", [key(0, 87, "press")]), "no message of a frame"),
        (lambda f: write(f / "a.mcap", [(0, "ScreenCaptured", {"media_ref": {"uri": "data:image/png"}})]), "no video"),
        (lambda f: write(f / "a.mcap", [*screens([0]), (0, "KeyboardEvent", {})]), "a KeyboardEvent is damaged"),
        (lambda f: write(f / "a.mcap", [*screens([0]), (0, "MouseState", [])]), "a MouseState is damaged"),
    ],
)
def test_broken_ones_are_named(tmp_path, damage, reason):
    shutil.copy(SAMPLES / "0.5.1.mcap", tmp_path / "a.mcap")
    shutil.copy(SAMPLES / "0.5.1.mkv", tmp_path / "0.5.1.mkv")
    if not (tmp_path / "a.mkv").exists():
        written(tmp_path, [])
    damage(tmp_path)
    with pytest.raises(RecordingError, match=reason):
        list(OwaMcap().read(tmp_path / "a.mcap").frames)
