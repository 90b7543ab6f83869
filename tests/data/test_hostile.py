"""Recordings that nobody would make on purpose: each is named and skipped, and the others are read."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from synthetic import SIZE, numbered, write_recording, write_recordings, write_video

from bczoo.cli import main
from bczoo.core.actions import ActionSpace
from bczoo.core.errors import UserError
from bczoo.data import index_build, reading, video
from bczoo.data.check import check
from bczoo.data.dataset import WindowDataset
from bczoo.data.errors import RecordingError, printable
from bczoo.data.index import open_index
from bczoo.data.reading import Annotation, open_regular
from bczoo.data.recording import RecordingWriter, read_annotation
from bczoo.data.schema import annotation as pb

KEYBOARD = ActionSpace.keyboard_mouse()
VIDEO = f"{SIZE}x{SIZE}.mp4"
ANNOTATION = "annotation.proto"


@pytest.fixture(scope="module")
def pattern(tmp_path_factory):
    """A recording with one instruction."""
    folder = tmp_path_factory.mktemp("pattern") / "rec"
    with RecordingWriter(folder, size=SIZE) as writer:
        for i in range(6):
            writer.add(numbered(i), user={"keys": ["w"]}, text="go", text_embedding=np.ones(4))
    return folder


def changed(change):
    """A kind of damage: ``change`` the VideoAnnotation message."""

    def damage(folder):
        message = pb.VideoAnnotation.FromString((folder / ANNOTATION).read_bytes())
        change(message)
        (folder / ANNOTATION).write_bytes(message.SerializeToString())

    return damage


def duration(value):
    return changed(lambda m: setattr(m.frame_annotations[1].frame_text_annotation[0], "duration", value))


def embedding(value):
    def change(message):
        text = message.frame_annotations[1].frame_text_annotation[0]
        text.text_embedding_dict["bczoo"].text_embeddings["gemma"].values[2] = value

    return changed(change)


def rate(value):
    return changed(lambda m: setattr(m.metadata, "frames_per_second", value))


def replaced(name, make):
    def damage(folder):
        (folder / name).unlink()
        make(folder / name)

    return damage


def bind(path):
    """A socket; its name must be short."""
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


def huge(path):
    with path.open("wb") as file:
        file.truncate(2**40)  # takes no space


def playlist(path):
    """A text that names another file."""
    write_video(path.parent / "other.mp4", 7)
    path.write_text("ffconcat version 1.0\nfile other.mp4\n")


def another_codec(folder):
    data = (folder / VIDEO).read_bytes()
    (folder / VIDEO).write_bytes(data.replace(b"avc1", b"zzzz"))


DAMAGE = {
    "duration nan": (duration(float("nan")), "annotation 1: text duration of nan seconds"),
    "duration inf": (duration(float("inf")), "annotation 1: text duration of inf seconds"),
    "duration 1e30": (duration(1e30), "annotation 1: text duration of 1e+30 seconds"),
    "embedding nan": (embedding(float("nan")), "annotation 1: text embedding holds NaN"),
    "embedding inf": (embedding(float("-inf")), "annotation 1: text embedding holds infinite values"),
    "rate nan": (rate(float("nan")), "recorded at nan frames per second, wanted are 20"),
    "rate inf": (rate(float("inf")), "recorded at inf frames per second, wanted are 20"),
    "rate negative": (rate(-20.0), "recorded at -20 frames per second, wanted are 20"),
    "annotation dangling": (replaced(ANNOTATION, lambda p: p.symlink_to("gone")), "annotation.proto cannot be read"),
    "annotation fifo": (replaced(ANNOTATION, os.mkfifo), "annotation.proto cannot be read (a pipe, not a file)"),
    "annotation zero": (
        replaced(ANNOTATION, lambda p: p.symlink_to("/dev/zero")),
        "annotation.proto cannot be read (a device, not a file)",
    ),
    "annotation folder": (replaced(ANNOTATION, Path.mkdir), "annotation.proto cannot be read (a folder, not a file)"),
    "annotation socket": (replaced(ANNOTATION, bind), "annotation.proto cannot be read"),
    "annotation loop": (replaced(ANNOTATION, lambda p: p.symlink_to(p.name)), "annotation.proto cannot be read"),
    "annotation huge": (replaced(ANNOTATION, huge), "annotation.proto is larger than"),
    "video dangling": (replaced(VIDEO, lambda p: p.symlink_to("gone")), f"{VIDEO}: the video cannot be opened"),
    "video fifo": (replaced(VIDEO, os.mkfifo), f"{VIDEO}: the video cannot be opened (a pipe, not a file)"),
    "video zero": (replaced(VIDEO, lambda p: p.symlink_to("/dev/zero")), "cannot be opened (a device, not a file)"),
    "video folder": (replaced(VIDEO, Path.mkdir), f"{VIDEO}: the video cannot be opened (a folder, not a file)"),
    "video playlist": (
        replaced(VIDEO, playlist),
        f"{VIDEO}: the video cannot be opened",
    ),
    "video codec": (another_codec, f"{VIDEO}: the video has a codec that is not known"),
    "annotation damaged inside": (
        lambda folder: (folder / ANNOTATION).write_bytes(b"\x1a\x02\xff\xff" * 7),
        "annotation 0 is damaged",
    ),
}


def test_every_damage_is_the_recordings_own(tmp_path, pattern, monkeypatch, capsys):
    monkeypatch.setattr(reading, "MOST_BYTES", 2**20)  # so that the large one is not read for long
    root = tmp_path / "root"
    write_recordings(root, 2, 12)
    for name, (damage, _) in DAMAGE.items():
        subprocess.run(["cp", "-r", pattern, root / name], check=True)
        damage(root / name)
    index = open_index(root, KEYBOARD, text_dim=4)
    found = {str(n): str(p) for n, p in zip(index.names, index.problems, strict=True) if p}
    for name, (_, reason) in DAMAGE.items():
        assert reason in found.pop(name, ""), name
    assert found == {}
    assert len(index.usable) == 2
    assert main(["data", "check", str(root), "--text_dim", "4", "--json", str(tmp_path / "report.json")]) == 1
    assert json.loads((tmp_path / "report.json").read_text())["broken"].keys() == DAMAGE.keys()
    assert f"{len(DAMAGE)} broken" in capsys.readouterr().out


def test_links_folders_and_what_vanishes(tmp_path, monkeypatch):
    root = tmp_path / "root"
    write_recordings(root / "batch", 2, 12)
    (root / "batch" / "up").symlink_to("..")  # a loop
    (root / "itself").symlink_to("itself")
    (root / "gone").symlink_to("nowhere")
    (root / "elsewhere").symlink_to(write_recordings(tmp_path / "other", 1, 12))
    vanishing = write_recording(root / "vanishing", 12)
    original = os.scandir

    def scandir(folder):
        if str(folder) == str(vanishing) and vanishing.exists():
            shutil.rmtree(vanishing)
        return original(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    assert "vanishing" not in [row.name for row in index_build.find_recordings(root)]
    index = open_index(root, KEYBOARD)
    assert index.names[index.usable].tolist() == ["batch/rec-0", "batch/rec-1", "elsewhere/rec-0"]
    found = dict(zip(index.names.tolist(), index.problems.tolist(), strict=True))
    assert "the folder cannot be read (No such file" in found["gone"]
    assert "the folder cannot be read (Too many levels" in found["itself"]
    assert sorted(found) == ["batch/rec-0", "batch/rec-1", "elsewhere/rec-0", "gone", "itself"]


def test_folders_that_may_not_be_read(tmp_path, monkeypatch):
    """As a user would see them; the superuser may read all."""
    write_recordings(tmp_path, 2, 12)
    original = os.scandir

    def scandir(folder):
        if Path(folder).name == "rec-1":
            raise PermissionError(13, "Permission denied", str(folder))
        return original(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    index = open_index(tmp_path, KEYBOARD)
    assert index.problems.tolist() == ["", "the folder cannot be read (Permission denied)"]
    with pytest.raises(RecordingError, match=r"rec-1: the folder cannot be read \(Permission denied\)"):
        open_index(tmp_path / "rec-1", KEYBOARD)
    monkeypatch.undo()
    assert len(open_index(tmp_path, KEYBOARD).usable) == 2


def test_names_that_are_no_text(tmp_path):
    """Bytes that are not UTF-8, and control characters; as a user would run it, with a strict terminal."""
    root = tmp_path / "ro\udcffot"
    root.mkdir()
    names = ["plain", "no\udcfftext", "li\nne", "größe"]
    broken = root / "bro\udc80ken"
    for folder in (broken, *(root / name for name in names)):
        write_recording(tmp_path / "rec", 12).rename(folder)
    (broken / VIDEO).unlink()
    index = open_index(root, KEYBOARD)
    assert sorted(index.names.tolist()) == sorted(["plain", r"no\xfftext", r"li\nne", "größe", r"bro\x80ken"])
    batch = WindowDataset(index, 4, SIZE)[(index.names.tolist().index(r"no\xfftext"), 0)]
    assert batch["valid"].all()
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "bczoo", "data", "check", os.fsencode(root), "--json", report]
    done = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"})
    assert done.returncode == 1, done.stderr
    assert rb"bro\x80ken: no video" in done.stdout
    assert json.loads(report.read_text())["broken"].keys() == {r"bro\x80ken"}
    command = [sys.executable, "-m", "bczoo", "data", "view", os.fsencode(broken), "--out", tmp_path / "a.mp4"]
    done = subprocess.run(command, capture_output=True)
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)


def test_printable_changes_nothing_that_can_be_shown():
    for text in ("rec-1", "größe/試合 1", "a\u00a0b"):
        assert printable(text) == text
    assert str(RecordingError("a\nb", "c\udcff")) == r"a\nb: c\xff"
    assert printable("a\udcffb\nc\x1b[2J\ud800") == r"a\xffb\nc\x1b[2J\ud800"


@pytest.mark.parametrize("processes", [0, 2])
@pytest.mark.parametrize(
    "error", [MemoryError("8 GiB"), RecursionError(), AttributeError("x\ny"), OverflowError("int")]
)
def test_any_exception_is_the_recordings_own(tmp_path, pattern, monkeypatch, processes, error):
    copies(tmp_path, pattern, 66)
    original = index_build.read_annotation

    def read(folder):
        if folder.name == "rec-40":
            raise error
        return original(folder)

    monkeypatch.setattr(index_build, "read_annotation", read)
    index = open_index(tmp_path, KEYBOARD, text_dim=4, processes=processes)
    assert len(index.usable) == 65
    assert index.problems[40].startswith(f"cannot be read ({type(error).__name__}: ")
    assert "\n" not in index.problems[40]


def copies(root, pattern, count):
    for r in range(count):
        (root / f"rec-{r:02}").mkdir()
        for name in (VIDEO, ANNOTATION):
            os.link(pattern / name, root / f"rec-{r:02}" / name)


def test_a_recording_that_ends_its_process_is_named(tmp_path, pattern, monkeypatch):
    copies(tmp_path, pattern, 66)
    original = index_build.read_annotation

    def read(folder):
        if folder.name in ("rec-40", "rec-64"):
            os._exit(9)  # as the kernel does where the memory is full
        return original(folder)

    monkeypatch.setattr(index_build, "read_annotation", read)
    index = open_index(tmp_path, KEYBOARD, text_dim=4, processes=2)
    assert np.flatnonzero(index.problems != "").tolist() == [40, 64]
    assert "ends the process that reads it" in index.problems[40]


def test_annotations_beyond_the_bounds(tmp_path, monkeypatch):
    folder = write_recording(tmp_path / "rec", 12)
    monkeypatch.setattr(reading, "MOST_STEPS", 12)
    assert len(read_annotation(folder).frame_annotations) == 12
    (folder / ANNOTATION).write_bytes(b"\x1a\x00" * 13)
    with pytest.raises(RecordingError, match="more than 12 frame annotations"):
        read_annotation(folder)
    monkeypatch.setattr(reading, "MOST_STEP_BYTES", 2**20)
    for field, what in ((b"\x1a", "annotation 0"), (b"\x12", "the metadata")):
        (folder / ANNOTATION).write_bytes(field + b"\x82\x80\x40" + bytes(2**20 + 2))
        with pytest.raises(RecordingError, match=f"{what} is larger than 1 MiB"):
            read_annotation(folder)


def test_many_empty_annotations_need_little_memory(tmp_path):
    """Parsed at once, each takes sixty times its size."""
    folder = write_recording(tmp_path / "rec", 12)
    (folder / ANNOTATION).write_bytes(b"\x1a\x00" * 2_000_000)
    code = (
        "import resource, sys; from pathlib import Path; from bczoo.core.actions import ActionSpace\n"
        "from bczoo.data.index_build import Target, find_recordings, index_recording\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before, root = peak(), Path(sys.argv[1])\n"
        "row = index_recording(root, find_recordings(root)[0], Target(ActionSpace.keyboard_mouse(), 20.0, None))[0]\n"
        "print(row.problem); print(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    problem, kilobytes = done.stdout.splitlines()
    assert problem == f"{VIDEO} has 12 frames, annotation.proto has 2000000"
    assert int(kilobytes) < 100_000


def test_annotation_is_what_the_message_is(tmp_path, pattern):
    """Cut on the wire or parsed as a whole; parts of the metadata are joined, other fields passed over."""
    data = (pattern / ANNOTATION).read_bytes()
    extra = pb.VideoAnnotation(version=3, voice_events=[pb.VoiceEvent(time=5)])
    extra.metadata.user = "later"
    (tmp_path / ANNOTATION).write_bytes(
        data + extra.SerializeToString() + b"\x81\x01" + bytes(8) + b"\x85\x01" + bytes(4)
    )
    whole = pb.VideoAnnotation.FromString((tmp_path / ANNOTATION).read_bytes())
    cut = Annotation(tmp_path / ANNOTATION)
    assert cut.metadata == whole.metadata
    assert cut.metadata.user == "later"
    assert list(cut.frame_annotations) == list(whole.frame_annotations)
    assert cut.frame_annotations[-1] == whole.frame_annotations[-1]
    assert cut.frame_annotations[2:4] == list(whole.frame_annotations[2:4])
    for end in range(len(data)):  # wherever it is cut off, it is an error or all that the library would read
        (tmp_path / ANNOTATION).write_bytes(data[:end])
        try:
            expected = len(pb.VideoAnnotation.FromString(data[:end]).frame_annotations)
        except Exception:
            with pytest.raises(RecordingError):
                list(Annotation(tmp_path / ANNOTATION).frame_annotations)
        else:
            assert len(Annotation(tmp_path / ANNOTATION).frame_annotations) == expected


def test_frames_that_would_fill_the_memory_are_not_decoded(tmp_path, monkeypatch):
    folder = write_recording(tmp_path / "rec", 12)
    monkeypatch.setattr(video, "MOST_PIXELS", SIZE * SIZE - 1)
    with pytest.raises(RecordingError, match=f"frames of {SIZE}x{SIZE} pixels cannot be read"):
        video.probe(folder / VIDEO)
    with pytest.raises(RecordingError, match="frame 0 cannot be"):  # if the stream does not hold what the header says
        next(video.iterate_frames(folder / VIDEO))


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="a pipe, not a file"):
        open_regular(tmp_path / "pipe")


@pytest.mark.parametrize("error", [MemoryError("frame"), ValueError("plane"), OSError(5, "Input/output error")])
@pytest.mark.parametrize("where", ["_decoded_from", "ToRGB"])
def test_any_exception_while_frames_are_read_is_the_recordings_own(tmp_path, monkeypatch, where, error):
    write_recordings(tmp_path, 2, 12)
    index = open_index(tmp_path, KEYBOARD, text_dim=None)
    windows = WindowDataset(index, 8, SIZE)

    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(video, where, fail)
    with pytest.warns(UserWarning, match="recording rec-1: .*cannot be read.*steps without a frame are not learned"):
        batch = windows[(1, 0)]
    assert not batch["valid"].any()
    assert windows.unreadable_steps == 8
    with pytest.raises(RecordingError):
        WindowDataset(index, 8, SIZE, strict=True)[(1, 0)]
    if where == "_decoded_from":
        assert "cannot be read" in check(str(tmp_path), text_dim=None, processes=1).broken["rec-1"]


def test_wrong_arguments_are_not_taken_for_damage(tmp_path):
    write_recordings(tmp_path, 1, 12)
    index = open_index(tmp_path, KEYBOARD, text_dim=None)
    with pytest.raises(UserError, match="'nearest' is not one of"):
        WindowDataset(index, 8, SIZE, resize="nearest")[(0, 0)]
    for arguments, message in (({"fps": 0.0}, "fps 0"), ({"fps": float("nan")}, "fps nan"), ({"text_dim": 0}, "dim 0")):
        with pytest.raises(UserError, match=message):
            open_index(tmp_path, KEYBOARD, **arguments)
