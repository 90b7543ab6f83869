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
    """A folder on a disk of ``size`` bytes, rounded up to pages.

    Attributes:
        mounted: whether it is a file system of its own.
        options: of :class:`process.Run`, for commands that write to it.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, max(-(-size // PAGE) * PAGE, PAGE)
        self.options: dict[str, Any] = {}

    def __enter__(self) -> SmallDisk:
        self.folder.mkdir()
        self.mounted = os.name == "posix" and _mount("-t", "tmpfs", "-o", f"size={self.size}", "tmpfs", self.folder)
        if not self.mounted:
            self.options = {"largest_file": self.size}
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
