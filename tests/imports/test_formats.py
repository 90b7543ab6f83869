"""Recordings of OWL Control, VPT's contractors, Counter-Strike and plain videos, written by their descriptions."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from foreign import HEIGHT, WIDTH, even, number_of, numbered, vpt_line, write_owl, write_video, write_vpt

from bczoo.core.errors import UserError
from bczoo.data.errors import RecordingError
from bczoo.imports import csgo
from bczoo.imports.csgo import CounterStrike
from bczoo.imports.frames import timed_frames
from bczoo.imports.owl import Owl
from bczoo.imports.steps import cut
from bczoo.imports.video import Video
from bczoo.imports.vpt import Vpt


def values(session, fps=20.0):
    return [step.values for step in cut(session, fps, "a") if step.values is not None]


def shown(session, fps=20.0):
    return [number_of(step.frame) for step in cut(session, fps, "a")]


OWL = [
    (0.0, "START", {"inputs": {"keyboard": [65], "mouse": [2]}}),
    (0.5, "VIDEO_START", []),
    (0.51, "KEYBOARD", [87, True]),
    (0.52, "MOUSE_MOVE", [3, -1]),
    (0.53, "MOUSE_MOVE", [4, 0]),
    (0.61, "KEYBOARD", [87, False]),
    (0.66, "MOUSE_BUTTON", [2, False]),
    (0.67, "SCROLL", [240]),
    (0.68, "GAMEPAD_BUTTON", [1, True, "XInput:0"]),
    (0.70, "GAMEPAD_AXIS", [1, -0.5]),
    (0.70, "GAMEPAD_BUTTON", [9, True]),
    (0.70, "GAMEPAD_BUTTON_VALUE", [9, 0.75]),
    (0.72, "GAMEPAD_BUTTON", [13, True]),
    (1.5, "VIDEO_END", []),
    (1.7, "END", {"inputs": {"keyboard": [], "mouse": []}}),
]


def test_owl_begins_with_the_video(tmp_path):
    session = Owl().read(write_owl(tmp_path / "rec", OWL))
    told = values(session)
    assert session.env == "doom" and len(told) == 20
    assert [v["keys"] for v in told[:4]] == [["a", "w"], ["a", "w"], ["a", "w"], ["a"]]
    assert [(v["mouse_dx"], v["mouse_dy"]) for v in told[:2]] == [(7, -1), (0, 0)]
    assert [v["mouse_buttons"] for v in told[2:5]] == [["1"], ["1"], []]
    assert [v["scroll_dy"] for v in told[2:5]] == [0, 2, 0]
    assert [v["buttons"] for v in told[2:4]] == [[], ["south"]] and told[4]["left_stick_x"] == -0.5
    assert told[4]["left_trigger"] == 0.75
    assert session.notes == ["1 events GAMEPAD_BUTTON 13 have no place in a recording: left out"]


def test_owl_shows_the_frame_of_the_steps_time(tmp_path):
    session = Owl().read(write_owl(tmp_path / "rec", OWL, fps=60.0))
    assert shown(session)[:6] == [0, 3, 6, 9, 12, 15]


def test_owl_leaves_out_what_was_black(tmp_path):
    session = Owl().read(write_owl(tmp_path / "rec", [*OWL, (0.6, "HOOK_START", [])]))
    assert shown(session)[:2] == [6, 9] and session.notes[-1] == "6 frames before the game was captured are left out"
    assert [v["keys"] for v in values(Owl().read(tmp_path / "rec"))[:2]] == [["a", "w"], ["a"]]


def test_owl_rejects_are_named(tmp_path):
    folder = write_owl(tmp_path / "rec", OWL)
    (folder / ".invalid").write_text("Video too short\nNo input")
    with pytest.raises(RecordingError, match=r"rejected by its recorder \(.invalid\): Video too short; No input"):
        Owl().read(folder)
    assert len(values(Owl(invalid=True).read(folder))) == 20


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("x,KEYBOARD,[1]", "line 3 is no event"),
        ('1.0,KEYBOARD,"[87"', "line 3 is no event"),
        ("1.0", "line 3 is no event"),
        ('1.0,KEYBOARD,"[87]"', "KEYBOARD at 1.0 has the arguments"),
        ('1.0,START,"{""inputs"": 3}"', "START at 1.0 has the arguments"),
    ],
)
def test_owl_damage_is_named(tmp_path, line, reason):
    folder = write_owl(tmp_path / "rec", [(0.0, "VIDEO_START", [])])
    (folder / "inputs.csv").write_text((folder / "inputs.csv").read_text() + line)
    with pytest.raises(RecordingError, match=reason):
        Owl().read(folder)


def test_owl_finds_folders_that_lack_a_file(tmp_path):
    write_owl(tmp_path / "b" / "rec", OWL)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "inputs.csv").write_text("")
    assert list(Owl().find(tmp_path)) == [tmp_path / "a", tmp_path / "b" / "rec"]
    with pytest.raises(RecordingError, match="no VIDEO_START"):
        Owl().read(tmp_path / "a")


def test_vpt_pairs_line_i_with_frame_i(tmp_path):
    lines = [
        vpt_line(0, keyboard={"keys": ["key.keyboard.w", "key.keyboard.left.shift"]}, mouse={"dx": 12.0, "dy": -4.0}),
        vpt_line(1, keyboard={"keys": ["key.keyboard.space"]}, mouse={"buttons": [0, 1], "newButtons": [0]}),
        vpt_line(2),
    ]
    session = Vpt().read(write_vpt(tmp_path / "a.mp4", lines))
    told = values(session)
    assert [v["keys"] for v in told] == [["LeftShift", "w"], ["Space"], []]
    assert [v["mouse_buttons"] for v in told] == [[], ["0", "1"], []]
    assert (told[0]["mouse_dx"], told[0]["mouse_dy"]) == (12, -4)
    assert shown(Vpt().read(tmp_path / "a.mp4")) == [0, 1, 2] and session.fps == 20.0


def test_vpt_attack_that_is_stuck_is_left_out(tmp_path):
    def line(i, buttons, new):
        return vpt_line(i, mouse={"buttons": buttons, "newButtons": new})

    lines = [line(0, [0], [0]), line(1, [0, 1], [1]), line(2, [0], []), line(3, [0], [0]), line(4, [0], [])]
    session = Vpt().read(write_vpt(tmp_path / "a.mp4", lines))
    assert [v["mouse_buttons"] for v in values(session)] == [[], ["1"], [], ["0"], ["0"]]
    assert session.notes == ["the attack button is stuck for the first 3 steps, and left out there"]


def test_vpt_scrolling_is_told_as_a_digit(tmp_path):
    slots = [3, 3, 5, 5, 0, 0]
    lines = [vpt_line(i, hotbar=slot) for i, slot in enumerate(slots)]
    lines[3]["keyboard"]["keys"] = ["key.keyboard.1"]  # which selects the slot in the next frame
    told = values(Vpt().read(write_vpt(tmp_path / "a.mp4", lines)))
    assert [v["keys"] for v in told] == [[], [], ["6"], ["1"], [], []]


def test_vpt_menus_have_a_cursor_and_another_scale(tmp_path):
    mouse = {"dx": 10.0, "x": 150.0, "y": 360.0}  # where frame 2 is white
    lines = [vpt_line(i, isGuiOpen=i > 0, mouse=mouse) for i in range(3)]
    session = Vpt().read(write_vpt(tmp_path / "6.9" / "a.mp4", lines))
    plain = [picture() for _, picture in timed_frames(tmp_path / "6.9" / "a.mp4")]
    steps = cut(session, 20.0, "a")
    changed = [np.argwhere((step.frame != old).any(2)) for step, old in zip(steps, plain, strict=True)]
    assert len(changed[0]) == 0 < len(changed[2]) <= 12
    place = np.array([360, 150]) * HEIGHT / 720  # top left of the cursor
    assert (changed[2] >= place - 1).all() and (changed[2] <= place + 3).all()
    assert [v["mouse_dx"] for v in values(Vpt().read(tmp_path / "6.9" / "a.mp4"))] == [10, 20, 20]
    assert [v["mouse_dx"] for v in values(Vpt(version="5.7").read(tmp_path / "6.9" / "a.mp4"))] == [10, 5, 5]


def test_vpt_steps_without_an_action_can_be_marked(tmp_path):
    walk = {"keys": ["key.keyboard.w"]}
    lines = [vpt_line(0), vpt_line(1, mouse={"dx": 1.0}), vpt_line(2), vpt_line(3, keyboard=walk)]
    lines.append(lines[-1] | {"tick": 9})
    session = Vpt(null_steps="unknown").read(write_vpt(tmp_path / "a.mp4", lines))
    told = [step.values is not None for step in cut(session, 20.0, "a")]
    assert told == [False, True, False, True, True]
    assert session.notes == ["places where parts of the game are missing (tick jumps): 1"]
    with pytest.raises(UserError, match="null_steps must be one of keep, unknown"):
        Vpt(null_steps="drop")


def test_vpt_what_has_no_partner_is_left_out(tmp_path):
    session = Vpt().read(write_vpt(tmp_path / "a.mp4", [vpt_line(i) for i in range(4)], frames=6))
    assert session.notes == ["6 frames and 4 actions; what has no partner is left out"]
    assert shown(session) == [0, 1, 2, 3]
    session = Vpt().read(write_vpt(tmp_path / "b.mp4", [vpt_line(i) for i in range(6)], frames=4))
    assert len(values(session)) == 4


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", "is empty"), ("{", "line 1 is no JSON"), ("{}\n", "holds no actions"), ("[]\n", "holds no actions")],
)
def test_vpt_damage_is_named(tmp_path, text, reason):
    write_vpt(tmp_path / "a.mp4", [vpt_line(0)])
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(RecordingError, match=reason):
        Vpt().read(tmp_path / "a.mp4")
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(RecordingError, match=r"a.jsonl: cannot be read \(No such file"):
        Vpt().read(tmp_path / "a.mp4")


def write_csgo(path, count=4, changes=None):
    with h5py.File(path, "w") as data:
        for i in range(count):
            onehot = np.zeros(csgo.LENGTH)
            onehot[[0, 3, 12]] = i == 1, i > 1, i == 2  # w; d; right
            onehot[13 + (12 if i == 1 else 11)] = 1
            onehot[36 + (6 if i == 2 else 7)] = 1
            picture = numbered(i)
            picture[..., 0] = 200  # blue
            data[f"frame_{i}_x"], data[f"frame_{i}_y"] = picture, onehot
        for name, value in (changes or {}).items():
            del data[name]
            if value is not None:
                data[name] = value
    return path


def test_csgo_keeps_its_rate_and_turns_the_colours(tmp_path):
    session = CounterStrike().read(write_csgo(tmp_path / "a.hdf5"))
    steps = list(cut(session, session.fps, "a"))
    assert session.fps == 16.0 and session.notes == ["holds 4 frames, where 1000 are usual"]
    assert [s.values["keys"] for s in steps] == [[], ["w"], ["d"], ["d"]]
    assert [(s.values["mouse_dx"], s.values["mouse_dy"]) for s in steps] == [(0, 0), (2, 0), (0, -2), (0, 0)]
    assert steps[2].values["mouse_buttons"] == ["1"] and steps[3].frame[0, 0].tolist() == [255, 255, 200]
    assert steps[0].frame.shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"frame_1_y": None}, "not numbered from 0 on"),
        ({"frame_1_y": np.zeros(7)}, "the action of frame 1 has 7 values, where 51 are known"),
        ({"frame_2_x": None}, "frame 2 cannot be read"),
        ({"frame_2_x": np.zeros((4, 4))}, "frame 2 cannot be read"),
    ],
)
def test_csgo_damage_is_named(tmp_path, changes, reason):
    path = write_csgo(tmp_path / "a.hdf5", changes=changes)
    with pytest.raises(RecordingError, match=reason):
        list(cut(CounterStrike().read(path), 16.0, "a"))


def test_csgo_downloads_that_broke_off_are_named(tmp_path):
    path = write_csgo(tmp_path / "a.hdf5")
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(RecordingError, match="cannot be read"):
        CounterStrike().read(path)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".avi"])
def test_videos_of_any_rate_have_frames_and_no_action(tmp_path, suffix):
    path = write_video(tmp_path / f"a{suffix}", even(31, 30.0))
    steps = list(cut(Video().read(path), 20.0, "a"))
    assert [number_of(s.frame) for s in steps][:20] == [i * 3 // 2 for i in range(20)]
    assert {s.values for s in steps} == {None}


def test_videos_of_changing_rate_are_taken_by_their_times(tmp_path):
    path = write_video(tmp_path / "a.mkv", [0, 10, 20, 30, 400, 410])
    assert shown(Video().read(path)) == [0, 3, 3, 3, 3, 3, 3, 3, 4]


def test_a_cut_off_video_is_named(tmp_path):
    path = write_video(tmp_path / "a.mp4", even(200))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(RecordingError, match="cannot be"):
        list(cut(Video().read(path), 20.0, "a"))
    path.write_text("ffconcat version 1.0\nfile other.mp4\n")
    with pytest.raises(RecordingError, match="cannot be opened"):
        list(cut(Video().read(path), 20.0, "a"))
