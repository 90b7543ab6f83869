"""Worker processes: their results and failures arrive here, and no death of any process hangs another."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from multiprocessing.connection import Connection

import pytest
from processes import session, wait_for

from bczoo.core import workers
from bczoo.core.errors import UserError
from bczoo.core.workers import WorkerError, in_processes

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills processes")


def later_first(number: int) -> int:
    time.sleep(0.1 * (number == 0))
    return number * number


def test_results_come_in_the_order_of_the_tasks():
    told: list[int] = []
    assert in_processes(later_first, [(i,) for i in range(9)], 3, told.append) == [i * i for i in range(9)]
    assert sorted(told) == [i * i for i in range(9)]
    assert in_processes(later_first, [], 3) == []


def failing(number: int) -> None:
    if number == 1:
        raise ZeroDivisionError("nothing to share")
    if number == 2:
        raise UserError("wrong game")


def test_a_failure_is_raised_here_with_its_traceback():
    with pytest.raises(WorkerError, match=r"(?s)line \d+, in failing.*ZeroDivisionError: nothing to share"):
        in_processes(failing, [(0,), (1,)], 2)
    with pytest.raises(UserError, match=r"^wrong game$"):
        in_processes(failing, [(0,), (2,)], 2)


def test_what_cannot_be_sent_is_named_without_speaking_of_games():
    with pytest.raises(UserError, match=r"^cannot send a task to other processes \(.*lock.*: use workers=1$"):
        in_processes(later_first, [(threading.Lock(),), (1,)], 2)
    assert in_processes(lambda n: n + 1, [(1,), (2,)], 2) == [2, 3], "by value"


def ending(how: str, number: int) -> bytes:
    """Ends its process, in the second task."""
    if number == 1 and how == "in a message":

        def send_the_beginning(self, buffer):
            os.write(self.fileno(), len(buffer).to_bytes(4, "big") + bytes(buffer[:50]))
            os.kill(os.getpid(), signal.SIGKILL)

        Connection._send_bytes = send_the_beginning
    elif number == 1:
        os.kill(os.getpid(), getattr(signal, how))
        time.sleep(60)
    return bytes(100)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("SIGKILL", r"process of worker \(\d of 2\) has ended \(signal 9\); if the computer ran out of memory"),
        ("in a message", r"process of worker \(\d of 2\) has ended \(signal 9\)"),
        ("SIGTERM", r"process of worker \(\d of 2\) has ended \(status 143\)$"),
    ],
)
def test_a_worker_that_dies_is_an_error_that_tells_how(how, told):
    with pytest.raises(WorkerError, match=told):
        in_processes(ending, [(how, i) for i in range(8)], 2)


def stubborn(number: int) -> int:
    if number == 0:
        raise UserError("enough")
    while True:
        with contextlib.suppress(SystemExit):
            time.sleep(60)


def test_a_worker_that_does_not_end_is_killed(monkeypatch):
    monkeypatch.setattr(workers, "CLOSING_S", 0.5)
    with pytest.raises(UserError, match="enough"):
        in_processes(stubborn, [(1,), (0,)], 2)


ORPHANED = """
import os, sys, time
from bczoo.core import workers

workers.CLOSING_S = 0.5
stubborn = sys.argv[2] == "stubborn"

def task(number):
    if number:
        open(f"{sys.argv[1]}/{os.getpid()}", "w").close()
        while True:
            try:
                time.sleep(600)
            except SystemExit:
                if not stubborn:
                    raise

def fork(result):
    "As data loaders do: what is forked holds all pipes of this process."
    if not stubborn and os.fork() == 0:
        time.sleep(600)

if __name__ == "__main__":
    workers.in_processes(task, [(0,), (1,), (2,)], workers=2, on_result=fork)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a process that its parent has died")
@pytest.mark.parametrize("worker", ["something else holds the pipes", "stubborn"])
def test_workers_end_with_their_parent(tmp_path, worker):
    script, running = tmp_path / "orphaned.py", tmp_path / "running"
    script.write_text(ORPHANED)
    running.mkdir()
    process = subprocess.Popen([sys.executable, str(script), str(running), worker], start_new_session=True)
    try:
        wait_for(lambda: len(list(running.iterdir())) == 2, "two tasks run")
        process.kill()
        process.wait(60)
        pids = {path.name for path in running.iterdir()}
        wait_for(lambda: not pids & set(session(process.pid)), "both workers have ended")
        assert worker == "stubborn" or session(process.pid), "what was forked still runs"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_a_script_without_a_guard_is_told_in_one_line(tmp_path):
    script = tmp_path / "play_it.py"
    script.write_text(
        "from bczoo.core.workers import in_processes\n"
        "try:\n"
        "    print('sum', in_processes(sum, [([1, 2],), ([3, 4],)], workers=2))\n"
        "except Exception as error:  # scripts may catch what is raised; their workers must end all the same\n"
        "    print(f'told: {error}')\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == ""
    (line,) = done.stdout.splitlines()
    assert line.startswith("told: worker processes import play_it.py") and '`if __name__ == "__main__":`' in line
    script.write_text('if __name__ == "__main__":\n' + textwrap.indent(script.read_text(), "    "))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert done.stdout == "sum [3, 7]\n"
