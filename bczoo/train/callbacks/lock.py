"""One training at a time in a folder.

Place in the pipeline: :class:`bczoo.ResumableCheckpoint` holds a :class:`FolderLock` on the folder of its checkpoints
from before it looks for one to resume until the run is over.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import socket
import time
from pathlib import Path
from typing import IO

from bczoo.core.errors import UserError

try:
    import fcntl
except ImportError:  # Windows has none; nothing is locked there
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
_open: dict[Path, IO[str]] = {}  # lock files that this process holds; closing any handle of one would release it


class FolderLock:
    """An advisory lock on a folder, which the kernel releases when the process ends, however it ends.

    It is a POSIX record lock on the file ``.lock``: children of the process do not inherit it, so workers that outlive
    a killed run hold nothing. The file stays when the lock is released and means nothing then. On a network file
    system the lock is as good as the server: NFS 4 has it, NFS 3 needs its lock daemon, and where the server grants it
    to everyone (``nolock``, some user-space file systems) two computers are not kept apart. On Windows there is none.

    Args:
        folder: what to lock; it exists.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder.resolve() / LOCK

    def acquire(self) -> None:
        """Take the lock; harmless if this process, or the one that spawned it, holds it already.

        Raises:
            UserError: another process holds it; says which one.
            OSError: the folder cannot be written to.
        """
        if self.path in _open or fcntl is None:
            return
        file = self.path.open("a+", encoding="utf-8")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = _holder(file)
            file.close()
            parent = multiprocessing.parent_process()
            if parent is not None and (holder.get("pid"), holder.get("host")) == (parent.pid, socket.gethostname()):
                return  # this is a rank that the process with the lock has spawned
            who = "process {pid} on {host}, since {since}".format_map(holder) if holder else "it left no name"
            raise UserError(
                f"another training is writing to {self.path.parent} ({who}); wait for it, stop it, or give another "
                "--trainer.default_root_dir"
            ) from None
        except OSError as error:  # a network file system without its lock daemon
            file.close()
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        try:
            file.truncate(0)
            now = time.strftime("%Y-%m-%d %H:%M:%S %z")
            file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": now}))
            file.flush()
        except OSError as error:  # a full disk
            with contextlib.suppress(OSError):  # closing writes once more
                file.close()
            raise OSError(error.errno, error.strerror, str(self.path.parent)) from error
        _open[self.path] = file

    def release(self) -> None:
        """Let others have it; harmless if it is not held."""
        file = _open.pop(self.path, None)
        if file is not None:
            file.close()


def _holder(file: IO[str]) -> dict[str, object]:
    """Who holds a lock, as it wrote into the file: pid, host, since; empty if it has not written yet."""
    file.seek(0)
    try:
        content = json.loads(file.read())
    except ValueError:
        return {}
    return content if isinstance(content, dict) and {"pid", "host", "since"} <= content.keys() else {}
