"""bczoo commands in processes that can be killed at any moment, with as little as a fork to pay for each.

Importing torch and lightning takes seconds, so one process, :class:`_Nursery`, imports them once and forks a child for
every command. The child runs :func:`bczoo.cli.main` in a folder and a process group of its own.

A child can be told to kill itself right before the n-th change that it makes to its folder (a file opened for writing,
renamed, linked, removed, a folder made), which is how every moment of writing is reached, and repeated with a number.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
HANG_S = 300  # a guard against hangs; no command of these tests takes a tenth of it on idle cores
MEMORY = 3 << 30  # bytes more than it has that an isolated function may take
CHANGES = {"os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}


class Run:
    """A bczoo command that runs in a child process.

    Args:
        argv: words after ``bczoo``.
        folder: where it runs.
        kill_before: number of the change to the folder before which the process kills itself; 0 for never.
        largest_file: bytes that no file can grow beyond, as under a quota; None for no limit.
        environment: variables that it has beside those of the tests.
    """

    def __init__(
        self,
        argv: list[Any],
        folder: Path,
        kill_before: int = 0,
        largest_file: int | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self._notes = new_folder("run")
        self.pid = 0
        self.argv = [str(word) for word in argv]
        _nursery().start(
            {
                "argv": self.argv,
                "folder": str(folder),
                "notes": str(self._notes),
                "kill_before": kill_before,
                "largest_file": largest_file,
                "environment": environment or {},
            }
        )
        self.pid = int(_wait_for(self._notes / "pid", self))

    @property
    def running(self) -> bool:
        return not (self._notes / "status").exists()

    @property
    def output(self) -> str:
        """What it printed so far, to both streams."""
        path = self._notes / "output"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def changes(self) -> int:
        """Changes that it made to its folder, once it has ended by itself."""
        return int((self._notes / "changes").read_text())

    def wait(self) -> int:
        """Exit status, or minus the signal that ended it, as of :mod:`subprocess`."""
        return os.waitstatus_to_exitcode(int(_wait_for(self._notes / "status", self)))

    def signal(self, number: int) -> None:
        """Send a signal to it; Ctrl-C goes to its workers too, as from a terminal."""
        with contextlib.suppress(ProcessLookupError):
            if self.running:
                (os.killpg if number == signal.SIGINT else os.kill)(self.pid, number)

    def end(self) -> None:
        """Leave nothing of it behind, its workers included."""
        if not self.pid:
            return  # it has not begun
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def __repr__(self) -> str:
        return f"bczoo {' '.join(self.argv)}\n{self.output[-3000:]}"


def bczoo(*argv: Any, folder: Path, **options: Any) -> tuple[int, str]:
    """Run a command to its end; exit status and output."""
    run = Run(list(argv), folder, **options)
    try:
        return run.wait(), run.output
    finally:
        run.end()


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="bczoo-faults-")


def new_folder(name: str) -> Path:
    """An empty folder that is there until this process ends."""
    return Path(tempfile.mkdtemp(prefix=f"{name.replace(' ', '-')}-", dir=_scratch().name))


def _wait_for(path: Path, run: Run) -> str:
    end = time.monotonic() + HANG_S
    while not path.exists():
        if time.monotonic() > end:
            run.end()
            raise AssertionError(f"hangs: {run}")
        time.sleep(0.005)
    return path.read_text()


def isolated(function: Callable[[], Any], seconds: float = 20.0) -> str:
    """Run a function in a fork, where it may crash, hang or eat memory; returns what went wrong, or ""."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(read)
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, resource.RLIM_INFINITY))
        try:
            function()
            told = ""
        except BaseException:
            told = traceback.format_exc()
        os.write(write, (told or "\n")[-60_000:].encode())
        os._exit(0)
    os.close(write)
    os.set_blocking(read, False)
    end, told, status = time.monotonic() + seconds, b"", None
    while status is None and time.monotonic() < end:
        done, raw = os.waitpid(pid, os.WNOHANG)
        status = raw if done else None
        if status is None:
            time.sleep(0.002)
    if status is None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(read)
        return f"hangs ({seconds:g} s)"
    with os.fdopen(read, "rb") as pipe:
        told = pipe.read() or b""
    return told.decode().strip() if told else f"the process died ({os.waitstatus_to_exitcode(status)})"


# ---------------------------------------------------------------------------------------------------- the children


class _Nursery:
    """Starts the process that forks the children."""

    def __init__(self) -> None:
        paths = [str(TESTS.parent), str(TESTS)]
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])},
            text=True,
        )
        atexit.register(self.close)

    def start(self, job: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


_nursery = functools.cache(_Nursery)


def _serve() -> None:
    import tiny_game  # noqa: F401

    import bczoo.cli.function
    import bczoo.cli.trainer
    import bczoo.data.check
    import bczoo.hub.commands
    import bczoo.record.command
    import bczoo.train.callbacks.play
    from bczoo import __all__ as names

    for name in names:
        getattr(bczoo, name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the overseers
    for line in sys.stdin:
        if not os.fork():
            _oversee(json.loads(line))


def _oversee(job: dict[str, Any]) -> None:
    """Note how the child ends; it may be killed, so it cannot do that itself."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if not pid:
        _child(job)
    _note(job, "pid", pid)
    _note(job, "status", os.waitpid(pid, 0)[1])
    os._exit(0)


def _note(job: dict[str, Any], name: str, value: int) -> None:
    path = Path(job["notes"]) / name
    path.with_suffix(".new").write_text(str(value))
    path.with_suffix(".new").rename(path)


def _child(job: dict[str, Any]) -> None:
    os.setsid()
    os.chdir(job["folder"])
    output = os.open(f"{job['notes']}/output", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ |= job["environment"]
    sys.argv = ["bczoo", *job["argv"]]
    changes = _count_changes(job["folder"], job["kill_before"])
    if job["largest_file"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["largest_file"], resource.RLIM_INFINITY))
    status = 70
    try:
        from bczoo.cli import main

        status = main()
    except SystemExit as exit:
        status = exit.code if isinstance(exit.code, int) else int(bool(exit.code))
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    _note(job, "changes", changes[0])
    os._exit(status)


def _count_changes(folder: str, kill_before: int) -> list[int]:
    """Count the changes that this process makes below ``folder``, and die before one of them."""
    pid, count, inside = os.getpid(), [0], os.path.join(folder, "")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if os.getpid() != pid:
            return  # a forked worker
        if event == "open":
            path, _, flags = arguments
            if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event in CHANGES:
            path = arguments[0]
        else:
            return
        if isinstance(path, str | os.PathLike) and os.path.abspath(path).startswith(inside):
            count[0] += 1
            if count[0] == kill_before:
                os.kill(pid, signal.SIGKILL)

    sys.addaudithook(hook)
    return count


if __name__ == "__main__":
    _serve()
