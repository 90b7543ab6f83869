"""Transcripts of the pages in docs/: blocks of shell commands, which bash runs as they stand, at a small size.

``bczoo`` on the path is a few lines that hand the command over to :class:`Shell`, which runs it in a process that has
imported everything already (:mod:`faults.process`). What makes a command small are options that are appended to it,
:data:`SMALL`; the last value of an option counts. A command in the background is ended by ending the lines that stand
for it, as ``kill %1`` does.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

from faults.process import Run
from pages import blocks
from processes import wait_for

SECONDS = 300  # a guard against hangs
SMALL = [  # first words of a command, and what is appended to it
    ("fit", "--trainer.max_steps 2 --trainer.val_check_interval 2 --data.batch_size 2 --data.num_workers 0"),
    ("fit --config quickstart", "--trainer.callbacks.episodes 1 --trainer.callbacks.video_seconds 1"),
    ("play", "--episodes 1 --video_seconds 1"),
    ("record", "--episodes 4"),
    ("client-test", "--frames 10 --fps 0"),
    ("causality", "--limit 1"),
]
COMMAND = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as shell:
    shell.connect({address!r})
    shell.sendall(json.dumps([os.getcwd(), *sys.argv[1:]]).encode() + b"\\n")
    status, _, output = b"".join(iter(lambda: shell.recv(65536), b"")).partition(b" ")
os.write(1, output)
sys.exit(int(status))
"""


class Shell:
    """Runs marked blocks of pages in a folder.

    Args:
        folder: where.
        small: pairs beside :data:`SMALL`, which go before.
    """

    def __init__(self, folder: Path, *small: tuple[str, str]) -> None:
        self.folder, self.small = folder, [*SMALL, *small]
        self.runs: list[Run] = []
        self._address = folder / ".shell"
        command = folder / ".bin" / "bczoo"
        command.parent.mkdir()
        command.write_text(COMMAND.format(python=sys.executable, address=str(self._address)))
        command.chmod(0o755)
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(self._address))
        self._listening.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def run(self, page: str, *names: str) -> str:
        """Run marked blocks of a page; returns what they printed.

        Raises:
            AssertionError: a command failed.
        """
        script = "".join(blocks(page)[name] for name in names)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder,
            env=os.environ | {"PATH": f"{self.folder / '.bin'}{os.pathsep}{os.environ['PATH']}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
        )
        assert done.returncode == 0, done.stdout[-3000:]
        for run in self.runs:
            wait_for(lambda run=run: not run.running, f"{run} ends")
        return done.stdout

    def close(self) -> None:
        """Leave nothing running."""
        self._listening.close()
        for run in self.runs:
            run.end()

    def made_small(self, argv: list[str]) -> list[str]:
        """A command with what is appended to it."""
        more = [words for first, words in self.small if argv[: len(first.split())] == first.split()]
        return [*argv, *" ".join(more).split()]

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            folder, *argv = json.loads(connection.makefile().readline())
            if argv[0] == "client-test":  # as a reader would, who sees the server's output
                wait_for(lambda: any("listening" in run.output for run in self.runs), "the server listens")
            run = Run(self.made_small(argv), Path(folder))
            self.runs.append(run)
            threading.Thread(target=self._tell, args=(connection, run), daemon=True).start()
            connection.recv(1)  # until the command on the path has its answer, or is killed
            run.signal(signal.SIGTERM)

    @staticmethod
    def _tell(connection: socket.socket, run: Run) -> None:
        status = run.wait()
        with contextlib.suppress(OSError):  # nobody listens any more
            connection.sendall(f"{status} {run}\n".encode())
            connection.shutdown(socket.SHUT_WR)
