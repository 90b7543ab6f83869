"""Reading files that others wrote, without trusting them: regular files only, of bounded size, a piece at a time.

Place in the pipeline: `recording.py` reads annotations through here, `video.py` opens videos through here. A pipe or
a device in the place of a file would wait for ever or never end; a few megabytes of empty messages would fill the
memory once they are parsed. So an annotation is cut into its frames on the wire, and each is parsed when it is asked
for.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, overload

from google.protobuf.message import DecodeError

from bczoo.data.errors import RecordingError
from bczoo.data.schema import annotation as pb

MOST_BYTES = 2**29  # of an annotation file: about 7 hours, with mouse events a thousand times a second
MOST_STEPS = 5_000_000  # of a recording: 69 hours at 20 steps per second
MOST_STEP_BYTES = 2**22  # of one frame annotation, or of the metadata
HEAD_BYTES = 2**16  # within which the metadata usually lies
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}
_METADATA, _FRAME = (
    pb.VideoAnnotation.DESCRIPTOR.fields_by_name[name].number for name in ("metadata", "frame_annotations")
)


def open_regular(path: str | Path) -> BinaryIO:
    """Open a file for reading; never waits for somebody to write to it.

    Raises:
        OSError: it cannot be opened, or is no regular file; ``strerror`` says why.
    """
    return open(path, "rb", opener=_open_regular)


def _open_regular(path: str, flags: int) -> int:
    handle = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        raise OSError(errno.EINVAL, f"{_KINDS.get(stat.S_IFMT(mode), 'something else')}, not a file", path)
    return handle


class Frames(Sequence[Any]):
    """The FrameAnnotation messages of an annotation, each parsed when it is asked for."""

    def __init__(self, data: bytes, where: str | Path) -> None:
        self._data = data
        self._where = where
        self._starts, self._ends = array("Q"), array("Q")

    def append(self, start: int, end: int) -> None:
        """Add the message that lies at ``start .. end - 1`` of the data."""
        self._starts.append(start)
        self._ends.append(end)

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        start, end = self._starts[index], self._ends[index]
        try:
            return pb.FrameAnnotation.FromString(self._data[start:end])
        except DecodeError as error:
            raise RecordingError(self._where, f"annotation {index} is damaged") from error


class Annotation:
    """An annotation file, read.

    Attributes:
        metadata: the VideoAnnotationMetadata message.
        frame_annotations: the FrameAnnotation messages, see :class:`Frames`.
        size: bytes of the file.
    """

    def __init__(self, path: Path) -> None:
        """Read ``path``.

        Raises:
            RecordingError: the file is missing, no regular file, too large, damaged or cut off.
        """
        folder, name = path.parent, path.name
        try:
            with open_regular(path) as file:
                data = file.read(MOST_BYTES + 1)
        except OSError as error:
            raise RecordingError(folder, f"{name} cannot be read ({error.strerror})") from error
        self.size = len(data)
        if self.size > MOST_BYTES:
            raise RecordingError(folder, f"{name} is larger than {MOST_BYTES // 2**20} MiB")
        self.frame_annotations = Frames(data, folder)
        metadata = b""
        try:
            for field, start, end in _fields(data):
                if field not in (_FRAME, _METADATA):
                    continue
                if end - start > MOST_STEP_BYTES or len(metadata) > MOST_STEP_BYTES:
                    what = f"annotation {len(self.frame_annotations)}" if field == _FRAME else "the metadata"
                    raise RecordingError(folder, f"{name}: {what} is larger than {MOST_STEP_BYTES // 2**20} MiB")
                if field == _METADATA:
                    metadata += data[start:end]  # parts of a message that comes in parts are joined
                elif len(self.frame_annotations) == MOST_STEPS:
                    raise RecordingError(folder, f"{name} holds more than {MOST_STEPS:,} frame annotations")
                else:
                    self.frame_annotations.append(start, end)
            self.metadata = pb.VideoAnnotationMetadata.FromString(metadata)
        except (DecodeError, IndexError) as error:
            raise RecordingError(folder, f"{name} is damaged or cut off ({self.size} bytes)") from error


def read_metadata(path: Path) -> Any:
    """The VideoAnnotationMetadata message of an annotation file, of which no more than needed is read.

    Raises:
        RecordingError: as of :class:`Annotation`.
    """
    with contextlib.suppress(OSError, DecodeError, IndexError), open_regular(path) as file:
        head = file.read(HEAD_BYTES)
        for field, start, end in _fields(head):
            if field == _METADATA:  # writers put it first
                return pb.VideoAnnotationMetadata.FromString(head[start:end])
    return Annotation(path).metadata


def _fields(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Number, first and last-plus-one byte of every length-delimited field of a message; others are passed over.

    Raises:
        DecodeError, IndexError: the message is damaged or cut off.
    """
    at, end = 0, len(data)
    while at < end:
        tag, at = _varint(data, at)
        field, wire_type = tag >> 3, tag & 7
        if wire_type == 2:
            length, start = _varint(data, at)
            at = start + length
            if field and at <= end:
                yield field, start, at
        elif wire_type == 0:
            at = _varint(data, at)[1]
        elif wire_type in (1, 5):
            at += 8 if wire_type == 1 else 4
        else:  # groups, which proto3 does not have
            raise DecodeError(f"wire type {wire_type}")
        if not field or at > end:
            raise DecodeError("no field, or one beyond the end")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A variable-length integer and where it ends."""
    value, shift = data[at], 7
    at += 1
    if value < 128:
        return value, at
    value &= 127
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        if (shift := shift + 7) > 63:
            raise DecodeError("an integer of more than 64 bits")
