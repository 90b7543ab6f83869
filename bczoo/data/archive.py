"""Unpacking batches of recordings, ``*.tar`` and ``*.tar.gz``, that others made, without trusting them.

Place in the pipeline: `cache.py` unpacks an archive here as it is read, in one pass, be it a file or a download. Only
what belongs to a recording is written: annotations and videos. An archive that holds a link, a device, a path that
leads out of its folder, or more than there is room for is refused as a whole, and so is one that is damaged or cut
off. tarfile takes a damaged header in the middle for the end of an archive, so :class:`_Header` looks at the headers
too, and gzip's checksum at the end is always compared.
"""

from __future__ import annotations

import gzip
import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

from bczoo.core.errors import UserError
from bczoo.core.files import write_errors
from bczoo.data.errors import RecordingError
from bczoo.data.reading import MOST_BYTES
from bczoo.data.recording import ANNOTATION_FILE
from bczoo.data.video import ANY_SIZE_NAME, SIZED_NAME

SUFFIXES = (".tar", ".tar.gz", ".tgz")
SMALLEST_BYTES = 4096  # that a file takes on a disk, however small it is
DAMAGED = (tarfile.TarError, zlib.error, gzip.BadGzipFile, EOFError, ValueError)  # what unpacking raises


def is_archive(name: str) -> bool:
    """Whether a file is a batch of recordings, by its name."""
    return name.lower().endswith(SUFFIXES)


def counts(name: str) -> bool:
    """Whether a file of this name belongs to a recording."""
    return name in (ANNOTATION_FILE, ANY_SIZE_NAME) or SIZED_NAME.fullmatch(name) is not None


def unpack(file: Any, name: str, where: str, folder: Path, most_bytes: int) -> None:
    """Write the recordings of an archive into a new folder.

    Args:
        file: the archive, opened; only ``read(n)`` is called.
        name: of the archive's file, whose suffix says whether it is compressed.
        where: its whole path or URL, for errors.
        folder: where to write; is created.
        most_bytes: that may be written.

    Raises:
        RecordingError: the archive is damaged, cut off, or holds what is refused.
        UserError: it holds more than ``most_bytes``, or the folder cannot be written.
    """
    compressed = not name.lower().endswith(".tar")
    plain = gzip.GzipFile(fileobj=file, mode="rb") if compressed else file
    try:
        with tarfile.open(fileobj=plain, mode="r|", tarinfo=_Header) as tar, write_errors(folder):
            folder.mkdir()
            written = 0
            for member in tar:
                if not _wanted(member, where):
                    continue
                written += max(member.size, SMALLEST_BYTES)
                if written > most_bytes:
                    raise UserError(
                        f"{where} unpacks to more than the cache of {most_bytes / 1e9:g} GB holds; raise data.cache_gb "
                        "(or BCZOO_CACHE_GB)"
                    )
                target = folder / member.name
                target.parent.mkdir(parents=True, exist_ok=True)
                content: Any = tar.extractfile(member)
                with target.open("wb") as out:
                    shutil.copyfileobj(content, out)
        while plain.read(2**20):  # to the end of the file, where gzip's checksum lies
            pass
    except UserError:
        raise
    except DAMAGED as error:
        what = " ".join(str(error).split()) or type(error).__name__
        raise RecordingError(where, f"the archive is damaged or cut off ({what}); bring it anew") from error


def _wanted(member: tarfile.TarInfo, where: str) -> bool:
    """Whether a member is a file of a recording; a RecordingError if it is nothing that an archive should hold."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise RecordingError(where, f"the archive is refused: {member.name} leads out of it")
    if member.isdir():
        return False
    if not member.isfile() or member.issparse():
        raise RecordingError(where, f"the archive is refused: {member.name} is a link, a device or a file with holes")
    if any(counts(part) for part in path.parts[:-1]):
        raise RecordingError(where, f"the archive is refused: {member.name} lies in what should be a file")
    if path.name == ANNOTATION_FILE and member.size > MOST_BYTES:
        raise RecordingError(where, f"the archive is refused: {member.name} is larger than {MOST_BYTES // 2**20} MiB")
    return counts(path.name)


class _Header(tarfile.TarInfo):
    """A header that is no header is an error; tarfile takes it for the end, unless it is the first one."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if buf == bytes(tarfile.BLOCKSIZE):  # the mark at the end
                raise
            raise tarfile.ReadError(str(error)) from error
