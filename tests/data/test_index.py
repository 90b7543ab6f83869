"""The index: what it holds, what it calls broken, and when it looks again."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import warnings
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from synthetic import SIZE, damage, numbered, write_recording, write_recordings, write_video

from bczoo.core import files
from bczoo.core.actions import ActionSpace
from bczoo.core.errors import UserError
from bczoo.core.spec import InputSpec
from bczoo.data import index_build
from bczoo.data.check import check
from bczoo.data.errors import NoRecordingsError, RecordingError
from bczoo.data.index import open_index, require_recordings
from bczoo.data.module import RecordingDataModule
from bczoo.data.recording import RecordingWriter, parse_steps, read_annotation
from bczoo.data.schema import annotation as pb

KEYBOARD = ActionSpace.keyboard_mouse()
VIDEO = f"{SIZE}x{SIZE}.mp4"


@pytest.fixture
def parsed(monkeypatch):
    """Names of the recordings that are parsed."""
    names: list[str] = []
    original = index_build.index_recording

    def spy(root, row, target):
        names.append(row.name)
        return original(root, row, target)

    monkeypatch.setattr(index_build, "index_recording", spy)
    return names


def assert_same(index, root):
    for i in index.usable:
        steps = parse_steps(read_annotation(root / index.names[i]), KEYBOARD, 20.0, 4, "")
        ids, kind = index.steps(i)
        assert np.array_equal(ids, steps.ids)
        assert np.array_equal(kind, steps.kind)
        start, length, text = index.texts(i)
        assert np.array_equal(start, steps.text_start)
        assert np.array_equal(length, steps.text_steps)
        assert np.array_equal(text, steps.text)


def make(root, name, n=12, text=None):
    from bczoo.data.recording import RecordingWriter

    with RecordingWriter(root / name, size=SIZE) as writer:
        for i in range(n):
            embedding = np.full(4, len(name) + i // 4, np.float32) if text else None
            said = f"{text} {i // 4}" if text else None
            values = {"keys": [str((i + ord(name)) % 3 + 1)]}
            kind = {"system": values} if i % 5 > 2 else {"user": values}
            writer.add(np.zeros((SIZE, SIZE, 3), np.uint8), text=said, text_embedding=embedding, **kind)


def test_index_holds_what_parsing_gives_and_parses_only_what_is_new(tmp_path, parsed):
    for name, text in (("b", "go"), ("d", None), ("f", "stop")):
        make(tmp_path, name, text=text)
    index = open_index(tmp_path, KEYBOARD, text_dim=4)
    assert parsed == ["b", "d", "f"]
    assert_same(index, tmp_path)
    parsed.clear()
    assert_same(open_index(tmp_path, KEYBOARD, text_dim=4), tmp_path)
    assert parsed == []

    make(tmp_path, "a", 20, text="left")
    make(tmp_path, "e", 7)
    shutil.rmtree(tmp_path / "b")
    annotation = tmp_path / "d" / "annotation.proto"
    message = pb.VideoAnnotation.FromString(annotation.read_bytes())
    message.frame_annotations[3].user_action.keyboard.keys[:] = ["w"]
    annotation.write_bytes(message.SerializeToString())
    index = open_index(tmp_path, KEYBOARD, text_dim=4)
    assert sorted(parsed) == ["a", "d", "e"]
    assert index.names.tolist() == ["a", "d", "e", "f"]
    assert_same(index, tmp_path)
    assert index.steps(1)[0][3, 0] == 11  # w

    for system in range(len(index)):
        kind = index.steps(system)[1]
        for first in range(len(kind) - 1):
            expected = bool((kind[first : first + 2] == 2).all()) and first + 2 <= len(kind)
            assert index.system_only(np.array([system]), np.array([first]), 2)[0] == expected


def test_another_action_space_rate_or_text_width_has_an_index_of_its_own(root, parsed):
    open_index(root, KEYBOARD)
    assert len(parsed) == 8
    for arguments in ({"space": ActionSpace.keyboard_mouse(extra_keys=["r"])}, {"text_dim": None}):
        parsed.clear()
        open_index(root, **{"space": KEYBOARD} | arguments)
        assert len(parsed) == 8
    parsed.clear()
    open_index(root, KEYBOARD)
    assert parsed == []
    open_index(root, KEYBOARD, fps=35.0)
    assert len(parsed) == 8


def test_interrupted_build_leaves_the_last_index(root, monkeypatch):
    before = open_index(root, KEYBOARD)
    write_recording(root / "rec-9", 12)

    def interrupt(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(index_build, "index_recording", interrupt)
        with pytest.raises(KeyboardInterrupt):
            open_index(root, KEYBOARD)
    assert open_index(root, KEYBOARD, scan=False).names.tolist() == before.names.tolist()
    folder = next((root / ".bczoo" / "index").iterdir())
    assert len(list(folder.iterdir())) == 2  # the build and the file that points to it
    assert len(open_index(root, KEYBOARD)) == 9


def test_only_builds_that_no_process_is_completing_are_removed(root):
    """Another process renames its build and only then points to it."""
    index = open_index(root, KEYBOARD)
    folder = next((root / ".bczoo" / "index").iterdir())
    used, ready, stale, killed = index._folders[0], folder / "1-ready", folder / "2-stale", folder / "3.partial"
    dead = subprocess.Popen(["true"])
    dead.wait()
    with files.PartialPath(folder / "4") as begun:
        begun.path.mkdir()
        left = begun.path.with_name(begun.path.name.replace(f"-{os.getpid()}-", f"-{dead.pid}-"))
        for build in (ready, stale, killed, left):
            build.mkdir()
        for build in (stale, killed):
            os.utime(build, (0, 0))
        write_recording(root / "rec-9", 12)
        new = open_index(root, KEYBOARD)._folders[0]
        assert {path for path in folder.iterdir() if path.is_dir()} == {used, ready, begun.path, new}
    os.utime(used, (0, 0))
    write_recording(root / "rec-91", 12)
    open_index(root, KEYBOARD)
    assert not used.exists()
    assert new.exists()


def damage_table(build):
    (build / "table.json").write_text("{")


def damage_row(build):
    (build / "table.json").write_text((build / "table.json").read_text().replace('"n_frames": 30', '"n_frames": "30"'))


def damage_count(build):
    (build / "table.json").write_text((build / "table.json").read_text().replace('"n_frames": 30', '"n_frames": 29'))


def empty_array(build):
    (build / "ids.npy").write_bytes(b"")


def cut_array(build):
    data = (build / "kind.npy").read_bytes()
    (build / "kind.npy").write_bytes(data[:-20])


def other_type(build):
    np.save(build / "ids.npy", np.load(build / "ids.npy").astype(np.uint16))


def other_shape(build):
    np.save(build / "system_runs.npy", np.zeros((0, 3), np.int64))


def huge_header(build):
    """Of an array that would fill the memory, with nothing behind it."""
    (build / "text_start.npy").write_bytes(
        (build / "text_start.npy").read_bytes().replace(b"(0,)", b"(9999999999999,)")
    )


def header_of_noise(header):
    """One that is no Python source, in any of the ways in which it can be none."""

    def damage(build):
        path = build / "kind.npy"
        data = path.read_bytes()
        path.write_bytes(data[:10] + header.ljust(10)[:10] + data[20:])

    damage.__name__ = f"header_{header!r}"
    return damage


def pipe(build):
    (build / "table.json").unlink()
    os.mkfifo(build / "table.json")


def no_text_array(build):
    (build / "text.npy").unlink()


def empty_pointer(build):
    (build.parent / "current").write_bytes(b"")


def pointer_of_bytes(build):
    (build.parent / "current").write_bytes(b"\xff\x00")


def flip(path, at=-1):
    """Another value in a place, of the right type."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def other_value(name):
    def damage(build):
        flip(build / f"{name}.npy")

    damage.__name__ = f"other_{name}"
    return damage


def other_name(build):
    (build / "table.json").write_text((build / "table.json").read_text().replace('"rec-3"', '"rec-9"', 2))


def by_column(build):
    path = build / "ids.npy"
    path.write_bytes(path.read_bytes().replace(b"False,", b"True, ", 1))


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize(
    "damage",
    [
        damage_table, damage_row, damage_count, empty_array, cut_array, other_type, other_shape, huge_header,
        pipe, no_text_array, empty_pointer, pointer_of_bytes, other_name, by_column,
        *(other_value(name) for name in ("ids", "kind")),
        *(header_of_noise(header) for header in (b"\0", b"((", b"{'", b"\x1c", b"\xb3", b"-" * 10)),
    ],
)  # fmt: skip
def test_damaged_cache_is_built_anew_with_one_line(root, damage, scan):
    """What a power cut leaves where the disk reorders writes."""
    damage(open_index(root, KEYBOARD, text_dim=4)._folders[0])
    with pytest.warns(UserWarning, match="is damaged .*; it is built anew") as caught:
        index = open_index(root, KEYBOARD, text_dim=4, scan=scan)
    assert len(index.usable) == 8
    assert "\n" not in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(open_index(root, KEYBOARD, text_dim=4), root)


@pytest.mark.parametrize("array", ["ids", "kind", "text", "text_start", "text_steps", "system_runs"])
def test_another_value_is_noticed_where_the_clock_shows_a_write_and_by_check_everywhere(tmp_path, array):
    with RecordingWriter(tmp_path / "a", size=SIZE) as writer:
        for i in range(12):
            embedding = np.full(4, i // 4, np.float32)
            action = {"keys": ["w"]}
            writer.add(
                numbered(i), **{"user" if i < 6 else "system": action}, text=str(i // 4), text_embedding=embedding
            )
    path = open_index(tmp_path, KEYBOARD, text_dim=4)._folders[0] / f"{array}.npy"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        os.utime(path)  # touched, as a copy is: the same content is taken
        assert open_index(tmp_path, KEYBOARD, text_dim=4)._folders[0] == path.parent
    stamps = json.loads((path.parent / "table.json").read_text())["arrays"][array]
    flip(path)
    os.utime(path, ns=(stamps[1], stamps[1]))  # as a bit that rots: nothing but the content differs
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_index(tmp_path, KEYBOARD, text_dim=4)
    with pytest.warns(UserWarning, match=rf"damaged \({array}.npy is not what was written.*built anew"):
        check(str(tmp_path), text_dim=4, processes=1)
    assert_same(open_index(tmp_path, KEYBOARD, text_dim=4), tmp_path)
    flip(open_index(tmp_path, KEYBOARD, text_dim=4)._folders[0] / f"{array}.npy")
    with pytest.warns(UserWarning, match=f"{array}.npy is not what was written"):
        open_index(tmp_path, KEYBOARD, text_dim=4, scan=False)


def full_disk(monkeypatch, *folders):
    """Writing arrays below these folders fails."""
    append = index_build._NpyRows.append

    def write(self, rows):
        if any(str(folder) in self._file.name for folder in folders):
            raise OSError(28, "No space left on device")
        append(self, rows)

    monkeypatch.setattr(index_build._NpyRows, "append", write)


def test_full_disk_uses_the_users_cache_until_there_is_room(root, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    open_index(root, KEYBOARD)
    write_recording(root / "rec-9", 12)
    with monkeypatch.context() as patch:
        full_disk(patch, root)
        assert len(open_index(root, KEYBOARD)) == 9
        assert len(open_index(root, KEYBOARD, scan=False)) == 9, "the older index in the root does not count"
    write_recording(root / "rec-91", 12)
    index = open_index(root, KEYBOARD)
    assert (len(index), index._folders[0].is_relative_to(root)) == (10, True)
    write_recording(root / "rec-92", 12)
    full_disk(monkeypatch, root, cache)
    with pytest.raises(UserError, match=r"neither to .* nor to .*No space left on device.*XDG_CACHE_HOME"):
        open_index(root, KEYBOARD)
    assert len(open_index(root, KEYBOARD, scan=False)) == 10


def test_read_only_root_uses_the_users_cache(root, tmp_path, monkeypatch, parsed):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (root / ".bczoo").write_text("in the way")  # as good as no permission, also for the superuser
    assert len(open_index(root, KEYBOARD)) == 8
    assert len(open_index(root, KEYBOARD)) == 8
    assert len(parsed) == 8
    assert list((tmp_path / "cache" / "bczoo").rglob("ids.npy"))


def test_several_roots_are_one_index(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    write_recordings(one, 2, 10)
    write_recordings(two, 3, 20)
    index = open_index([one, two], KEYBOARD)
    assert index.n_frames.tolist() == [10, 11, 20, 21, 22]
    with index.reading(3) as folder:
        assert folder / index.video_name(3, SIZE) == two / "rec-1" / VIDEO
    assert len(index.steps(3)[0]) == 21
    copy = pickle.loads(pickle.dumps(index))
    assert len(pickle.dumps(index)) < 20_000  # arrays stay on disk
    assert np.array_equal(copy.steps(3)[0], index.steps(3)[0])


def test_recordings_in_batch_folders_and_a_single_recording(tmp_path):
    write_recordings(tmp_path / "batch-1", 2, 10)
    write_recordings(tmp_path / "batch-2", 1, 10)
    assert open_index(tmp_path, KEYBOARD).names.tolist() == [
        "batch-1/rec-0",
        "batch-1/rec-1",
        "batch-2/rec-0",
    ]
    single = open_index(tmp_path / "batch-1" / "rec-1", KEYBOARD)
    assert single.names.tolist() == ["rec-1"]
    with single.reading(0) as folder:
        assert (folder / single.video_name(0, SIZE)).exists()


def test_a_stray_video_does_not_hide_the_recordings_below(tmp_path):
    write_recordings(tmp_path / "batch", 2, 10)
    for folder in (tmp_path, tmp_path / "batch"):
        write_video(folder / "video.mp4", 5)
    index = open_index(tmp_path, KEYBOARD)
    assert index.names.tolist() == ["batch/rec-0", "batch/rec-1"]
    assert len(index.usable) == 2
    shutil.rmtree(tmp_path / "batch")
    with pytest.raises(NoRecordingsError, match="holds no recordings"):
        open_index(tmp_path, KEYBOARD)


def test_a_file_that_upsets_the_video_library_is_one_broken_recording(root, monkeypatch):
    from bczoo.data import video

    original = video._probe

    def probe(path):
        if path.parent.name == "rec-3":
            raise AttributeError("no such field")
        return original(path)

    monkeypatch.setattr(video, "_probe", probe)
    index = open_index(root, KEYBOARD)
    assert len(index.usable) == 7
    assert index.problems[3] == f"{VIDEO}: the video cannot be read (AttributeError: no such field)"


def test_parallel_parsing_gives_the_same(tmp_path):
    write_recording(tmp_path / "rec-00", 12)
    for r in range(1, 70):
        shutil.copytree(tmp_path / "rec-00", tmp_path / f"rec-{r:02}")
    (tmp_path / "rec-33" / "annotation.proto").write_bytes(b"\xff")
    index = open_index(tmp_path, KEYBOARD, processes=2)
    assert len(index.usable) == 69
    assert "cut off" in index.problems[33]
    assert np.array_equal(index.steps(69)[0], index.steps(0)[0])


def break_recordings(root):
    """Every kind of broken recording; returns the reason by name."""
    write_recordings(root, 10, 70)
    folders = {r: root / f"rec-{r}" for r in range(10)}
    (folders[1] / VIDEO).write_bytes(b"")
    (folders[2] / "annotation.proto").write_bytes((folders[2] / "annotation.proto").read_bytes()[:-2])
    (folders[3] / VIDEO).unlink()
    write_video(folders[3] / VIDEO, 60)
    (folders[4] / VIDEO).rename(folders[4] / "64x64.mp4")
    (folders[5] / VIDEO).unlink()
    (folders[6] / "annotation.proto").unlink()
    (folders[7] / VIDEO).write_bytes((folders[7] / VIDEO).read_bytes()[:-500])
    shutil.rmtree(folders[8])
    write_recording(folders[8], 10, fps=1.0)
    (root / "nothing here").mkdir()
    return {
        "rec-1": "cannot be opened",
        "rec-2": "annotation.proto is damaged or cut off",
        "rec-3": "has 60 frames, annotation.proto has 73",
        "rec-4": "64x64.mp4: wrong frame size: the video is 48x48",
        "rec-5": "no video",
        "rec-6": "annotation.proto cannot be read",
        "rec-7": "cannot be opened",
        "rec-8": "recorded at 1 frames per second, wanted are 20",
    }


def test_broken_recordings_are_skipped_with_one_warning_and_all_listed_by_check(tmp_path, capsys):
    reasons = break_recordings(tmp_path)
    index = open_index(tmp_path, KEYBOARD)
    assert index.names[index.usable].tolist() == ["rec-0", "rec-9"]
    found = {str(n): str(p) for n, p in zip(index.names, index.problems, strict=True) if p}
    assert found.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in found[name], name

    with pytest.warns(UserWarning) as caught:
        index.report()
    (warning,) = [str(w.message) for w in caught]
    assert "8 of 10 recordings are broken" in warning
    assert f"bczoo data check {tmp_path}" in warning
    assert all(name in warning for name in ("rec-1", "rec-2", "rec-3"))
    with pytest.raises(RecordingError, match="8 of 10"):
        index.report(strict=True)

    damage(tmp_path / "rec-9" / VIDEO)  # only decoding finds this
    report = check(str(tmp_path), decode=False, processes=1)
    assert report.status == 1
    assert report.broken.keys() == reasons.keys()
    report = check(str(tmp_path), processes=2, json=str(tmp_path / "report.json"))
    assert report.broken.keys() == reasons.keys() | {"rec-9"}
    assert "cannot be decoded" in report.broken["rec-9"]
    printed = capsys.readouterr().out
    for name, reason in report.broken.items():
        assert f"{name}: {reason}" in printed
    assert '"rec-9"' in (tmp_path / "report.json").read_text()


def write_key(folder, key):
    from bczoo.data.recording import RecordingWriter

    with RecordingWriter(folder, size=SIZE) as writer:
        for _ in range(6):
            writer.add(np.zeros((SIZE, SIZE, 3), np.uint8), user={"keys": [key]})


def test_unknown_keys_are_reported(tmp_path):
    write_key(tmp_path / "rec", "F12")
    index = open_index(tmp_path, KEYBOARD)
    with pytest.warns(UserWarning, match=r"keys:F12 \(6 steps\)"):
        index.report()
    with pytest.raises(RecordingError, match="F12"):
        index.report(strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_index(tmp_path, ActionSpace.keyboard_mouse(extra_keys=["F12"])).report(strict=True)


def test_every_folder_is_scanned_once_before_the_first_step(root, tmp_path, monkeypatch):
    """By the command line, which looks before a model is built, and the data module, which looks at every root."""
    write_recordings(tmp_path / "val", 3)
    open_index([root, tmp_path / "val"], ActionSpace.keyboard_mouse(), text_dim=4)
    scanned: Counter[str] = Counter()
    scandir = os.scandir

    def counting(path="."):
        if ".bczoo" not in str(path):
            scanned[os.path.relpath(path, tmp_path)] += 1
        return scandir(path)

    monkeypatch.setattr(index_build.os, "scandir", counting)
    require_recordings(str(root))
    assert len(scanned) == 2, "the root and one recording"
    scanned.clear()
    module = RecordingDataModule(str(root), val_root=str(tmp_path / "val"), test_root=str(tmp_path / "val"))
    spec = InputSpec(KEYBOARD, frame_size=SIZE, window=6, text_dim=4)
    module.trainer = SimpleNamespace(
        lightning_module=SimpleNamespace(input_spec=spec), is_global_zero=True, global_rank=0, world_size=1
    )
    module.prepare_data()
    module.setup("fit")
    assert len(scanned) == 2 + 8 + 3 and set(scanned.values()) == {1}


def test_check_sweeps_beside_its_report(root, tmp_path):
    """What a killed check left while it wrote."""
    dead = subprocess.Popen(["true"])
    dead.wait()
    with files.PartialPath(tmp_path / "other.json") as mine:
        mine.path.write_text("{}")
    left = tmp_path / mine.path.name.replace(f"-{os.getpid()}-", f"-{dead.pid}-").replace("other", "report")
    left.write_text("{")
    check(str(root), json=str(tmp_path / "report.json"), decode=False, processes=1)
    assert not left.exists() and json.loads((tmp_path / "report.json").read_text())["recordings"] == 8


def test_no_recordings_says_how_to_get_some(tmp_path):
    for root in (tmp_path, tmp_path / "missing"):
        with pytest.raises(NoRecordingsError, match="bczoo record --env doom/defend_the_center") as caught:
            open_index(root, KEYBOARD)
        assert "Pixels2Play" in str(caught.value)
        assert f"--out {root}" in str(caught.value)


def test_check_counts(root, capsys):
    report = check(str(root), decode=True, processes=1)
    assert report.status == 0
    assert report.frames == sum(range(30, 38))
    assert (report.user_steps, report.unknown_steps) == (report.frames - 8, 8)
    keys = [(i % 4) for r in range(8) for i in range(29 + r)]
    assert report.actions["keys"]["1"] == keys.count(0)
    assert report.actions["keys"]["w"] == 0
    assert sum(report.actions["mouse_dx"].values()) == report.user_steps
    assert report.actions["mouse_dx"]["-1"] == sum(i % 7 - 3 == -1 for r in range(8) for i in range(29 + r))
    assert "8 recordings" in capsys.readouterr().out


def test_check_sees_what_a_policy_sees(tmp_path):
    """Text of another width and names that the default space lacks."""
    make(tmp_path, "a", text="go")  # embeddings of 4 values
    assert "text embedding of 4 values" in check(str(tmp_path), processes=1).broken["a"]
    for text_dim, texts in ((None, 0), (4, 12)):
        report = check(str(tmp_path), text_dim=text_dim, processes=1)
        assert (report.broken, report.text_steps) == ({}, texts)
    write_key(tmp_path / "b", "F12")
    space = ActionSpace.keyboard_mouse(extra_keys=["F12"]).to_dict()
    assert check(str(tmp_path), text_dim=None, processes=1).unknown_names == {"keys:F12": 6}
    report = check(str(tmp_path), action_space=space, text_dim=None, processes=1)
    assert (report.unknown_names, report.actions["keys"]["F12"]) == ({}, 6)


def test_check_takes_its_settings_on_the_command_line(tmp_path):
    import json

    from bczoo.cli import main

    make(tmp_path, "a", text="go")
    write_key(tmp_path / "b", "F12")
    space = json.dumps(ActionSpace.keyboard_mouse(extra_keys=["F12"]).to_dict())
    command = ["data", "check", str(tmp_path), "--processes", "1"]
    assert main(command) == 1
    assert main([*command, "--action_space", "keyboard_mouse", "--text_dim", "null"]) == 0
    assert main([*command, "--action_space", space, "--text_dim", "4", "--json", str(tmp_path / "out.json")]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["unknown_names"] == {}


def many(root, count):
    """Recordings that share two files (hard links), so that a large number is quick to make."""
    write_recording(root / "rec-00000", 40)
    for r in range(1, count):
        folder = root / f"rec-{r:05}"
        folder.mkdir()
        for name in (VIDEO, "annotation.proto"):
            os.link(root / "rec-00000" / name, folder / name)


@pytest.mark.parametrize(
    "count",
    [
        500,
        pytest.param(
            10_000,
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(os.environ.get("BCZOO_SLOW") != "1", reason="long; set BCZOO_SLOW=1"),
            ],
        ),
    ],
)
def test_large_folders_are_indexed_once_and_without_touching_frames(tmp_path, count, monkeypatch, parsed):
    from bczoo.data import video

    many(tmp_path, count)
    monkeypatch.setattr(video, "_decoded_from", lambda *a: pytest.fail("a frame was decoded"))
    assert len(open_index(tmp_path, KEYBOARD).usable) == count
    assert len(parsed) == count
    assert len(open_index(tmp_path, KEYBOARD).usable) == count
    assert len(parsed) == count
