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
    with pytest.raises(UserError, match=r"a cannot be written \(no space left on device\)"), files.write_errors("a"):
        raise OSError(28, "No space left on device")
    with pytest.raises(UserError, match="told already"), files.write_errors("a"):
        raise UserError("told already")


# ------------------------------------------------------------------ folders that replace each other

OLD, NEW = {"a": "old", "b": "old"}, {"a": "new", "b": "new", "c": "new"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def fill(folder, content):
    folder.mkdir()
    for name, text in content.items():
        (folder / name).write_text(text)


def held(folder):
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


def replace_folder(target):
    partial = files.PartialPath(target)
    fill(partial.path, NEW)
    partial.exchange(keep=["own"])


def killed_before(change, function, *arguments):
    """Run a function in a fork that kills itself before so many changes to the disk; whether it came to its end."""
    pid = os.fork()
    if not pid:
        count = 0

        def hook(event, arguments):
            nonlocal count
            changes = event in {"os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir", "os.chmod"}
            if changes or (event == "open" and arguments[2] & WRITES):
                count += 1
                if count == change:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        try:
            function(*arguments)
        finally:
            os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


@pytest.fixture(params=["in one step", "by two renames"])
def exchanging(request, monkeypatch):
    if request.param == "by two renames":
        monkeypatch.setattr(files, "_rename_exchange", lambda one, other: False)


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.usefixtures("exchanging")
def test_a_folder_is_the_older_or_the_newer_one_whenever_the_process_is_killed(tmp_path):
    found = []
    for change in range(1, 100):
        target = tmp_path / str(change) / "policy"
        target.parent.mkdir()
        fill(target, OLD)
        fill(target / "own", {"notes": "mine"})
        done = killed_before(change, replace_folder, target)
        files.restore(target)
        found.append(held(target))
        assert found[-1] in (OLD, NEW) and held(target / "own") == {"notes": "mine"}
        files.sweep(target.parent)
        assert list(target.parent.iterdir()) == [target] and found[-1] == held(target)
        if done:
            break
    assert done and found[0] == OLD and found[-1] == NEW and found[-2] == NEW, "kills before and after the exchange"


@pytest.mark.usefixtures("exchanging")
def test_who_has_opened_the_older_folder_keeps_it(tmp_path, monkeypatch):
    fill(tmp_path / "policy", OLD)
    fill(tmp_path / "policy" / "own", {})
    monkeypatch.chdir(tmp_path / "policy")
    with open("a", encoding="utf-8") as opened:
        replace_folder(tmp_path / "policy")
        assert opened.read() == "old"
    assert held(tmp_path / "policy") == held(type(tmp_path)()) == NEW


@pytest.mark.usefixtures("exchanging")
def test_a_folder_that_cannot_be_flushed_replaces_none(tmp_path, monkeypatch):
    fill(tmp_path / "policy", OLD)

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space.*policy"):
        replace_folder(tmp_path / "policy")
    assert held(tmp_path / "policy") == OLD and list(tmp_path.iterdir()) == [tmp_path / "policy"]


def test_errors_of_the_system_that_a_library_wraps_are_told_as_such(tmp_path):
    from safetensors.numpy import save_file

    with pytest.raises(OSError, match="Not a directory"), files.system_errors():
        (tmp_path / "file").touch()
        save_file({}, tmp_path / "file" / "a")
    with pytest.raises(ValueError, match="other"), files.system_errors():
        raise ValueError("other")


def test_a_plot_has_the_format_that_its_name_ends_in(tmp_path):
    from matplotlib.figure import Figure

    for name, start in (("a.png", b"\x89PNG"), ("a.svg", b"<?xml")):
        files.write_figure(Figure(), tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(start)
    assert not leftovers(tmp_path)
