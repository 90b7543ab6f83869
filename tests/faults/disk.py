"""Disks that are too small, and become larger.

Where this process may mount, the disk is a tmpfs of a given size: everything on it shares the room, and what is written
beyond gets ENOSPC, like on a real full disk. Elsewhere no file can grow beyond a size (RLIMIT_FSIZE, as under a quota).
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

PAGE = 4096


class SmallDisk:
    """A folder on a disk that has room for what is there and little more.

    Args:
        folder: where it will be.
        taken: bytes that are about to be there before a command runs.
        room: bytes that the command may write beside them; no file can become larger where nothing can be mounted.

    Attributes:
        mounted: whether it is a file system of its own.
        options: of :class:`process.Run`, for commands that write to it.
    """

    def __init__(self, folder: Path, taken: int, room: int) -> None:
        self.folder, self.room = folder, room
        self._size = -(-(taken + room) // PAGE) * PAGE
        self.options: dict[str, Any] = {}

    def __enter__(self) -> SmallDisk:
        self.folder.mkdir()
        self.mounted = os.name == "posix" and _mount("-t", "tmpfs", "-o", f"size={self._size}", "tmpfs", self.folder)
        if not self.mounted:
            self.options = {"largest_file": self.room}
        return self

    def grow(self) -> None:
        """Make room."""
        self.options = {}
        if self.mounted:
            assert _mount("-o", "remount,size=1G", self.folder)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.mounted:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


def _mount(*arguments: Any) -> bool:
    try:
        return subprocess.run(["mount", *map(str, arguments)], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False
