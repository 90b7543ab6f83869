"""What can be wrong with a recording, as errors that say where and why."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np

from bczoo.core.errors import UserError


def printable(text: object) -> str:
    """A text in one line that every terminal and file takes.

    Names of files may hold any bytes. Those that are no text, and control characters, become escapes such as
    ``\\xff`` and ``\\n``.
    """

    def escaped(c: str) -> str:
        if "\udc80" <= c <= "\udcff":  # how Python reads a byte of a name that is not UTF-8
            return f"\\x{ord(c) - 0xDC00:02x}"
        return c.encode("unicode_escape").decode() if unicodedata.category(c) in ("Cc", "Cs") else c

    text = str(text)
    return text if text.isprintable() else "".join(map(escaped, text))


class RecordingError(UserError):
    """A recording that cannot be used. ``reason`` is the short text that reports and warnings list."""

    def __init__(self, where: str | Path, reason: str = "") -> None:
        # Data loaders rebuild an error of a worker process from its text alone.
        super().__init__(printable(f"{where}: {reason}" if reason else where))
        self.where = str(where)
        self.reason = reason

    def __reduce__(self) -> tuple:
        return type(self), (self.where, self.reason)


class NoRecordingsError(UserError):
    """A folder without recordings; the text says how to get some."""


class FrameReadError(RecordingError):
    """Frames that could not be decoded.

    Args:
        where: the video file.
        reason: what happened, with the number of the first unreadable frame.
        frames: (n, size, size, 3) uint8, the wanted frames that came before it.
    """

    def __init__(self, where: str | Path, reason: str = "", frames: np.ndarray | None = None) -> None:
        super().__init__(where, reason)
        self.frames = np.zeros((0, 0, 0, 3), np.uint8) if frames is None else frames

    def __reduce__(self) -> tuple:
        return type(self), (self.where, self.reason, self.frames)
