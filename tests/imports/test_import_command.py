"""``bczoo data import``: whole folders, again, with broken ones among them, by formats of one's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from foreign import HEIGHT, WIDTH, even, number_of, vpt_line, write_owl, write_video, write_vpt

from bczoo.cli import main
from bczoo.data.check import check
from bczoo.data.recording import RecordingWriter, action_values, known_action, read_annotation
from bczoo.data.video import iterate_frames, probe
from bczoo.imports import convert
from bczoo.imports.command import import_recordings


def bczoo(*arguments):
    return main([str(a) for a in arguments])


def line(i, *keys):
    return vpt_line(i, keyboard={"keys": [f"key.keyboard.{key}" for key in keys]})


@pytest.fixture
def source(tmp_path):
    """Two recordings of Minecraft, one of them in a folder."""
    write_vpt(tmp_path / "in" / "a.mp4", [line(i, "w", *["r"] * (i > 2)) for i in range(6)])
    write_vpt(tmp_path / "in" / "6.9" / "b.mp4", [line(i, "left.control") for i in range(4)])
    return tmp_path / "in"


def test_frames_and_actions_lie_where_training_looks_for_them(tmp_path, source, capsys):
    out = tmp_path / "out"
    assert bczoo("data", "import", "vpt", source, out, "--size", 32, "--processes", 1) == 0
    assert sorted(os.listdir(out)) == ["6.9-b", "a"]
    annotation = read_annotation(out / "a")
    assert len(annotation.frame_annotations) == 7 and probe(out / "a" / "32x32.mp4").n_frames == 7
    frames = [number_of(frame) for frame in iterate_frames(out / "a" / "32x32.mp4")]
    assert frames == [0, 1, 2, 3, 4, 5, 5]  # the last action has a frame behind it
    held = [action_values(known_action(f)[1], ["keys"])["keys"] for f in annotation.frame_annotations[1:]]
    assert held == [["w"]] * 3 + [["r", "w"]] * 3  # annotation i + 1 is the action at frame i
    assert annotation.metadata.env.env == "minecraft" and annotation.metadata.frames_per_second == 20
    told = capsys.readouterr().out
    assert f"{out}: 2 recordings imported, 0.00 h, 10 steps" in told
    assert "kept     keys:w 60.0%" in told
    assert "beyond   keys:LeftControl 4, keys:r 3 (steps): recorded, but not in the action space keyboard_mouse" in told
    assert "--model.action_space '{name: keyboard_mouse, extra_keys: [LeftControl, r]}'" in told
    report = check(str(out), processes=1, action_space={"name": "keyboard_mouse", "extra_keys": ["LeftControl", "r"]})
    assert report.status == 0 and report.unknown_names == {} and report.actions["keys"]["r"] == 3


def test_the_same_command_goes_on(tmp_path, source, capsys):
    out = tmp_path / "out"
    assert bczoo("data", "import", "vpt", source / "a.mp4", out, "--processes", 1) == 0
    before = (out / "a" / "annotation.proto").stat()
    write_video(source / "c.mp4", [0])  # without actions, so broken
    for _ in range(2):
        capsys.readouterr()
        assert bczoo("data", "import", "vpt", source, out, "--processes", 1) == 1
        assert "c: c.jsonl: cannot be read (No such file or directory)" in capsys.readouterr().out
    assert (out / "a" / "annotation.proto").stat() == before
    assert sorted(os.listdir(out)) == ["6.9-b", "a"]


def test_several_processes_write_the_same(tmp_path, source):
    for processes, out in ((1, "one"), (3, "three")):
        (source / "broken.mp4").write_bytes(b"no video")
        report = import_recordings("vpt", str(source), str(tmp_path / out), processes=processes)
        assert [r.name for r in report.recordings] == ["a", "broken", "6.9-b"] and report.status == 1
    one, three = (
        {p.relative_to(tmp_path / out): p.read_bytes() for p in (tmp_path / out).rglob("*.mp4")}
        for out in ("one", "three")
    )
    assert len(one) == 2 and one == three


def test_a_killed_import_leaves_nothing_half(tmp_path, source):
    out = tmp_path / "out"
    code = """
import os, sys
from bczoo.data.recording import RecordingWriter
add, count = RecordingWriter.add, []
def dies(*arguments, **options):
    count.append(1)
    if len(count) == 9:  # in the second recording
        os._exit(9)
    add(*arguments, **options)
RecordingWriter.add = dies
from bczoo.imports.command import import_recordings
import_recordings("vpt", sys.argv[1], sys.argv[2], processes=1)
"""
    assert subprocess.run([sys.executable, "-c", code, source, out]).returncode == 9
    left = os.listdir(out)
    assert len(left) == 2 and "a" in left and sum(name.startswith(".") for name in left) == 1
    report = import_recordings("vpt", str(source), str(out), processes=1)
    assert [(r.name, r.there) for r in report.recordings] == [("a", True), ("6.9-b", False)]
    assert sorted(os.listdir(out)) == ["6.9-b", "a"]


def test_names_are_changed_and_dropped_as_asked(tmp_path, source, capsys):
    out = tmp_path / "out"
    arguments = ["--rename", '{"LeftControl": "LeftShift", "r": ""}', "--json", tmp_path / "report.json"]
    assert bczoo("data", "import", "vpt", source, out, "--processes", 1, *arguments) == 0
    told = capsys.readouterr().out
    assert "renamed  LeftControl to LeftShift 1 (events)" in told and "dropped  r 1 (events)" in told
    assert "beyond" not in told
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["recordings"][1]["held"] == {"keys:LeftShift": 4} and report["beyond"] == []
    assert report["recordings"][1]["renamed"] == {"LeftControl to LeftShift": 1}


def test_recordings_without_actions_are_not_learned_from(tmp_path, capsys):
    write_video(tmp_path / "in" / "a.mp4", even(31, 30.0))
    write_video(tmp_path / "in" / "a.mkv", even(20))
    write_video(tmp_path / "in" / ".a.mkv", [0])
    assert bczoo("data", "import", "video", tmp_path / "in", tmp_path / "in" / "out", "--fit", "letterbox") == 0
    told = capsys.readouterr().out
    assert "unknown  the action of 41 steps (100.0%), not learned from" in told
    assert bczoo("data", "import", "video", tmp_path / "in", tmp_path / "in" / "out") == 0  # not what it wrote itself
    assert "0 recordings imported, 0.00 h, 0 steps; 2 were there already" in capsys.readouterr().out
    report = check(str(tmp_path / "in" / "out"), processes=1)
    assert report.status == 0 and report.unknown_steps == 41 and report.recordings == 2
    frame = next(iterate_frames(tmp_path / "in" / "out" / "a.mp4" / "192x192.mp4", start=19))
    assert frame[:20].max() < 8 and frame[96].max() > 200  # black bars
    metadata = read_annotation(tmp_path / "in" / "out" / "a.mp4").metadata
    assert metadata.video_source_info.video_filter_info == "letterbox"


def test_options_reach_the_format(tmp_path, capsys):
    folder = write_owl(tmp_path / "in" / "rec", [(0.0, "VIDEO_START", []), (0.3, "VIDEO_END", [])])
    (folder / ".invalid").write_text("too short")
    assert bczoo("data", "import", "owl", tmp_path / "in", tmp_path / "out") == 1
    assert "rec: rejected by its recorder (.invalid): too short" in capsys.readouterr().out
    assert bczoo("data", "import", "owl", tmp_path / "in", tmp_path / "out", "--options", '{"invalid": true}') == 0
    assert bczoo("data", "import", "owl", tmp_path / "in", tmp_path / "out", "--options", '{"valid": 1}') == 1
    assert "format owl: got an unexpected keyword argument 'valid'" in capsys.readouterr().err


def test_a_full_disk_ends_the_import(tmp_path, source, capsys, monkeypatch):
    def full(self, *arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bczoo.data.video.VideoWriter.add", full)
    assert bczoo("data", "import", "vpt", source, tmp_path / "out", "--processes", 1) == 1
    assert "cannot be written (no space left on device); make room" in capsys.readouterr().err
    assert os.listdir(tmp_path / "out") == []


def test_videos_whose_frames_are_the_steps_are_copied(tmp_path, source, capsys):
    out = tmp_path / "out"
    write_vpt(source / "menu.mp4", [vpt_line(i, isGuiOpen=True) for i in range(4)])  # a cursor is drawn in
    write_vpt(source / "longer.mp4", [line(i) for i in range(4)], frames=6)
    assert bczoo("data", "import", "vpt", source, out, "--keep_video", "true", "--processes", 1) == 0
    assert "videos   2 of 4 copied as they are" in capsys.readouterr().out
    name = f"{WIDTH}x{HEIGHT}.mp4"
    assert (out / "a" / name).read_bytes() == (source / "a.mp4").read_bytes()
    assert [(out / n / "192x192.mp4").exists() for n in ("a", "menu", "longer")] == [False, True, True]
    frames = read_annotation(out / "a").frame_annotations
    assert len(frames) == probe(out / "a" / name).n_frames == 6  # the action at the last frame has no frame behind it
    assert [action_values(f.user_action, ["keys"])["keys"] for f in frames[1:]] == [["w"]] * 3 + [["r", "w"]] * 2
    assert check(str(out), processes=1).status == 0


def test_a_video_of_changing_rate_is_not_copied(tmp_path):
    write_video(tmp_path / "in" / "uneven.mp4", [0, 40, 100, 150, 200, 250, 300])  # 20 a second on average
    report = import_recordings("video", str(tmp_path / "in"), str(tmp_path / "out"), keep_video=True, processes=1)
    assert [(r.copied, r.steps) for r in report.recordings] == [(False, 7)]
    frames = [number_of(f) for f in iterate_frames(tmp_path / "out" / "uneven" / "192x192.mp4")]
    assert frames == [0, 1, 2, 3, 4, 5, 6]


OWN = """
import numpy as np
from bczoo.imports import Event, Format, Session

class MyFormat(Format):
    name = "mine"
    description = "grey pictures and a line of keys"

    def find(self, source):
        return source.glob("*.txt")

    def read(self, path):
        keys = path.read_text().split()
        frames = [(i / 10, np.full((32, 48, 3), 9 * i, np.uint8)) for i in range(len(keys))]
        events = [Event(i / 10, key, 1) for i, key in enumerate(keys)]
        return Session(frames, events, texts=[(0, "go")], env="mine", task=str(1 / len(keys)))
"""


ENCODER = """
from bczoo import TextEncoder

class Lengths(TextEncoder):
    def __init__(self):
        pass

    def __call__(self, texts):
        return np.array([[len(text), 1.0] for text in texts])
"""


def test_a_format_of_ones_own(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_format.py").write_text(OWN)
    for name, text in (("a", "w a s"), ("b", "d d"), ("empty", "")):
        (tmp_path / f"{name}.txt").write_text(text)
    arguments = ["data", "import", "own_format.MyFormat", ".", "out"]
    assert bczoo(*arguments) == 1
    assert "a class of your own has to be imported first" in capsys.readouterr().err.lower()
    assert bczoo(*arguments, "--import", "own_format", "--fps", 10, "--processes", 2) == 1
    assert "empty: ZeroDivisionError: division by zero" in capsys.readouterr().out  # a fault of the class is named too
    annotation = read_annotation(tmp_path / "out" / "a")
    assert annotation.metadata.frames_per_second == 10 and annotation.metadata.env.env == "mine"
    assert annotation.frame_annotations[1].frame_text_annotation[0].instruction == "go"
    monkeypatch.setenv("BCZOO_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        bczoo(*arguments, "--import", "own_format", "--processes", 1)


def test_instructions_are_embedded_as_asked(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "texts_format.py").write_text(OWN + ENCODER)
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("w a s")
    arguments = [
        "data",
        "import",
        "texts_format.MyFormat",
        ".",
        "--import",
        "texts_format",
        "--fps",
        10,
        "--processes",
        2,
    ]
    assert bczoo(*arguments, "plain") == 0
    assert (
        "texts    in 6 steps (100.0%), 6 without an embedding, from which no policy learns" in capsys.readouterr().out
    )
    assert bczoo(*arguments, "embedded", "--text_encoder", "texts_format.Lengths") == 0
    assert "texts    in 6 steps (100.0%)\n" in capsys.readouterr().out
    for name in ("a", "b"):
        (text,) = read_annotation(tmp_path / "embedded" / name).frame_annotations[1].frame_text_annotation
        assert list(text.text_embedding_dict["bczoo"].text_embeddings["gemma"].values) == [2.0, 1.0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nope", "in", "out"], "there is no format 'nope'; there are owamcap, owl, vpt, csgo, lerobot, video"),
        (["vpt", "gone", "out"], "SOURCE gone does not exist"),
        (["owamcap", "in", "out"], "what is there may be vpt or video"),
        (["vpt", "in", "in/a.mp4"], "OUT in/a.mp4 is a file, where a folder is to be"),
        (["vpt", "in", "out", "--size", "33"], "size must be even"),
        (["vpt", "in", "out", "--fps", "0"], "fps must be a number from 0.5 to 1,000.0"),
        (["vpt", "in", "out", "--options", '{"null_steps": "drop"}'], "null_steps must be one of keep, unknown"),
    ],
)
def test_what_is_asked_wrong_is_said_in_a_line(tmp_path, source, capsys, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert bczoo("data", "import", *arguments) == 1
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1


def test_a_missing_package_is_said_once(tmp_path, monkeypatch, capsys):
    (tmp_path / "a.mcap").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "mcap.reader", None)
    assert bczoo("data", "import", "owamcap", tmp_path, tmp_path / "out", "--processes", 1) == 1
    assert "this format needs mcap, which is not installed: pip install 'bczoo[import]'" in capsys.readouterr().err


def test_formats_are_listed(capsys):
    assert bczoo("data", "formats") == 0
    told = capsys.readouterr().out
    for name in ("owamcap", "owl", "vpt", "csgo", "video"):
        assert f"\n{name} " in f"\n{told}"


def test_another_process_may_be_faster(tmp_path, source, monkeypatch):
    class Late(RecordingWriter):
        def close(self):
            self.folder.mkdir()
            (self.folder / "annotation.proto").write_bytes(b"of the other")
            super().close()

    monkeypatch.setattr(convert, "RecordingWriter", Late)
    report = import_recordings("vpt", str(source), str(tmp_path / "out"), processes=1)
    assert [r.there for r in report.recordings] == [True, True] and report.status == 0
    assert (tmp_path / "out" / "a" / "annotation.proto").read_bytes() == b"of the other"
