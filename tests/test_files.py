"""Writing: there whole or not at all, whatever happens on the way."""

import multiprocessing
import os
import signal
import subprocess
import sys

import pytest

from bczoo.core import files
from bczoo.core.errors import UserError


def leftovers(folder):
    return [p for p in folder.iterdir() if ".writing-" in p.name]


def test_a_file_appears_whole_and_replaces_the_older_one(tmp_path):
    target = tmp_path / "new" / "a.json"
    files.write_json(target, {"a": 1})
    with files.PartialPath(target) as partial:
        partial.path.write_text("later")
        assert target.read_text() == '{\n  "a": 1\n}\n'
    assert target.read_text() == "later"
    assert not leftovers(target.parent)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_an_error_leaves_the_older_one(tmp_path, error):
    target = tmp_path / "a"
    target.write_text("old")
    with pytest.raises(error), files.PartialPath(target) as partial:
        partial.path.write_text("half")
        raise error
    assert target.read_text() == "old"
    assert not leftovers(tmp_path)


def test_a_failure_to_flush_leaves_the_older_one(tmp_path, monkeypatch):
    """A full disk may be told as late as in fsync."""
    target = tmp_path / "a"
    target.write_text("old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"), files.PartialPath(target) as partial:
        partial.path.write_text("new")
    assert target.read_text() == "old"
    assert not leftovers(tmp_path)


def test_a_folder_never_replaces_another(tmp_path):
    target = tmp_path / "rec"
    for content in ("first", "second"):
        partial = files.PartialPath(target)
        partial.path.mkdir()
        (partial.path / "x").write_text(content)
        if content == "first":
            partial.commit()
        else:
            with pytest.raises(FileExistsError):
                partial.commit()
    assert (target / "x").read_text() == "first"
    assert not leftovers(tmp_path)


def test_a_file_can_refuse_to_replace(tmp_path):
    target = tmp_path / "a"
    target.write_text("old")
    partial = files.PartialPath(target)
    partial.path.write_text("new")
    with pytest.raises(FileExistsError):
        partial.commit(replace=False)
    assert target.read_text() == "old"
    assert not leftovers(tmp_path)


def hold(folder, ready):
    partial = files.PartialPath(folder / "a")
    partial.path.write_text("half")
    ready.set()
    signal.pause()


def test_what_killed_processes_left_is_swept_and_what_living_ones_write_is_not(tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=hold, args=(tmp_path, ready))
    process.start()
    assert ready.wait(20)
    own = files.PartialPath(tmp_path / "b")
    own.path.mkdir()
    assert files.sweep(tmp_path) == []
    process.kill()
    process.join()
    assert len(files.sweep(tmp_path)) == 1
    assert leftovers(tmp_path) == [own.path]
    own.discard()
    assert files.sweep(tmp_path / "missing") == []


def test_what_an_earlier_process_of_the_same_number_left_is_swept(tmp_path):
    """In containers process numbers repeat."""
    left = files.PartialPath(tmp_path / "a")
    left.path.write_text("half")
    files._active.clear()
    assert files.sweep(tmp_path) == [left.path]


def test_sigkill_while_writing_keeps_the_older_file(tmp_path):
    target = tmp_path / "a"
    target.write_text("old")
    code = (
        "import os, signal, sys; from bczoo.core import files\n"
        "partial = files.PartialPath(sys.argv[1])\n"
        "partial.path.write_bytes(bytes(1000)); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(target)])
    assert done.returncode == -signal.SIGKILL
    assert target.read_text() == "old"
    assert len(files.sweep(tmp_path)) == 1


def test_what_keeps_a_path_from_being_written_is_told_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"a cannot be written \(no space left on device\)"), files.telling("a"):
        raise OSError(28, "No space left on device")
    with pytest.raises(UserError, match="told already"), files.telling("a"):
        raise UserError("told already")
