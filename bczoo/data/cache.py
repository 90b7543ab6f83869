"""A bounded cache of unpacked archives and of recordings from stores, shared by all processes of a computer.

Place in the pipeline: the index says which recording lies in which :class:`Pack`; :meth:`Cache.hold` is where a pack
becomes a folder. Whoever reads a window holds the pack's folder meanwhile. The first to want a pack brings it, the
others wait for that; the least recently used goes when the bound is reached, but none that somebody holds.

    <cache>/<id>/                 a pack, whole: it gets its name when it is complete
    <cache>/<id>.lock             held, shared, by readers; held alone by who brings or removes the pack
    <cache>/.<id>.writing-...     while it is brought, see bczoo.core.files
    <cache>/room.lock             held by who makes room

An id stands for the root, the pack's path in it, and its files' sizes and dates, so a changed archive is another pack.
Locks are the system's (flock) and end with the process that holds them. filelock's lock for readers and writers would
have done, but it keeps an SQLite database for each, and refuses to be used across the fork of a data loader's workers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from bczoo.core.errors import UserError
from bczoo.core.files import PartialPath, sweep, write_errors
from bczoo.data.archive import is_archive, unpack
from bczoo.data.errors import RecordingError
from bczoo.data.listing import base, exists, find_recordings, join
from bczoo.data.reading import open_regular
from bczoo.data.recording import ANNOTATION_FILE
from bczoo.data.stores import Root, StoreError, copy, is_url, opened

DEFAULT_GB = 50.0
TRIES = 3  # to bring a pack from a store
PAUSE_S = 2.0  # before the second try, twice that before the third


class Pack(NamedTuple):
    """What is brought as a whole: an archive, or a recording folder of a store.

    Args:
        root: what the path is relative to.
        path: of the archive or folder.
        stamp: [file, bytes, date or tag] of the archive, or of every file of the folder.
    """

    root: Root
    path: str
    stamp: list[list]

    @property
    def location(self) -> Root:
        """Where it lies, in full."""
        return self.root if self.path == "." else join(self.root, self.path)

    @property
    def id(self) -> str:
        """Of this content: the same in every process."""
        root = self.root if isinstance(self.root, str) else os.path.abspath(self.root)
        text = json.dumps([root, self.path, self.stamp])
        return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()

    @property
    def n_bytes(self) -> int:
        """Of its files, packed."""
        return sum(size for _, size, _ in self.stamp)


class Cache:
    """Packs as folders.

    Args:
        folder: where they are unpacked; BCZOO_CACHE_DIR or bczoo/recordings in the user's cache if left out.
        gigabytes: that they may take together; BCZOO_CACHE_GB or 50 if left out. What is held, and what several
            processes bring at the same moment, can exceed it for as long.
    """

    def __init__(self, folder: str | Path | None = None, gigabytes: float | None = None) -> None:
        user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        named = folder or os.environ.get("BCZOO_CACHE_DIR")
        self.folder = Path(named) if named else user_cache / "bczoo" / "recordings"
        given = os.environ.get("BCZOO_CACHE_GB") or DEFAULT_GB if gigabytes is None else gigabytes
        try:
            self.n_bytes = int(float(given) * 1e9)
        except (ValueError, OverflowError):
            self.n_bytes = 0
        if self.n_bytes <= 0:
            raise UserError(f"the cache (data.cache_gb, BCZOO_CACHE_GB) takes a positive number of GB, got {given}")
        self._sizes: dict[str, int] = {}  # of the packs that were seen; a pack never changes

    def has(self, pack: Pack) -> bool:
        """Whether a pack is there now."""
        return (self.folder / pack.id).is_dir()

    @contextmanager
    def hold(self, pack: Pack) -> Iterator[Path]:
        """The folder of a pack, which stays as long as the block runs; it is brought if it is not there.

        Raises:
            RecordingError: the archive is damaged or refused.
            UserError: it cannot be brought, or there is no room for it.
        """
        entry = self.folder / pack.id
        lock = self.folder / f"{pack.id}.lock"
        while True:
            with _locked(lock, shared=True):
                if entry.is_dir():
                    os.utime(entry)  # the last use
                    yield entry
                    return
            with _locked(lock):
                if not entry.is_dir():
                    self._bring(pack, entry)

    def _bring(self, pack: Pack, entry: Path) -> None:
        if pack.n_bytes > self.n_bytes:
            raise UserError(
                f"{pack.location} has {pack.n_bytes / 1e9:.2f} GB, more than the cache of {self.n_bytes / 1e9:g} GB; "
                "raise data.cache_gb (or BCZOO_CACHE_GB)"
            )
        with write_errors(self.folder):
            self._make_room(pack.n_bytes)
        for failed in range(TRIES):
            try:
                with PartialPath(entry) as partial:
                    _fetch(pack, partial.path, self.n_bytes)
                break
            except StoreError:
                if failed == TRIES - 1:
                    raise
                time.sleep(PAUSE_S * 2**failed)
        os.utime(entry)  # it was begun a while ago
        self._make_room(0)

    def _make_room(self, wanted: int) -> None:
        """Remove the least recently used packs that nobody holds, until there is room for so many bytes."""
        with _locked(self.folder / "room.lock"):
            sweep(self.folder)
            there = []
            for entry in os.scandir(self.folder):
                with contextlib.suppress(FileNotFoundError):  # another process has just completed it
                    if entry.is_dir():
                        there.append((entry.stat().st_mtime_ns, entry.name, self._size(Path(entry.path))))
            total = sum(size for *_, size in there)
            for _, name, size in sorted(there):
                if total + wanted <= self.n_bytes:
                    return
                if not name.startswith(".") and self._remove(self.folder / name):
                    total -= size

    def _remove(self, entry: Path) -> bool:
        """Remove a pack unless somebody holds it; whether it was removed."""
        lock = entry.with_name(f"{entry.name}.lock")
        try:
            with _locked(lock, wait=False):
                leaving = PartialPath(entry)  # under a name that is swept if this process is killed
                entry.rename(leaving.path)
                leaving.discard()
                lock.unlink()
        except BlockingIOError:
            return False
        return True

    def _size(self, folder: Path) -> int:
        if folder.name in self._sizes:
            return self._sizes[folder.name]
        size = 0
        for place, _, files in os.walk(folder):
            for name in files:
                with contextlib.suppress(FileNotFoundError):  # another process is writing, or gives it up
                    size += os.stat(os.path.join(place, name)).st_size
        if not folder.name.startswith("."):
            self._sizes[folder.name] = size
        return size


def _fetch(pack: Pack, folder: Path, most_bytes: int) -> None:
    """Write the recordings of a pack into a new folder."""
    location = pack.location
    if is_archive(pack.path):
        with opened(location) if isinstance(location, str) else open_regular(location) as file:
            unpack(file, pack.path, str(location), folder, most_bytes)
        return
    with write_errors(folder):
        folder.mkdir()
        for name, *_ in pack.stamp:
            copy(f"{location}/{name}", folder / name)


@contextmanager
def located(recording: str) -> Iterator[Path]:
    """The folder of one recording that a user named, which stays as long as the block runs.

    Args:
        recording: a folder, a folder in an archive (``batches/batch_1.tar.gz/REC``), or the URL of either.

    Raises:
        RecordingError: there is no such archive, or no such folder in it.
        UserError: it cannot be brought.
    """
    parts = recording.rstrip("/").split("/")
    end = next((i for i, part in enumerate(parts, 1) if is_archive(part)), len(parts))
    place = "/".join(parts[:end])
    if (not is_archive(place) and not is_url(place)) or Path(place).is_dir():
        yield Path(recording)
        return
    root: Root = place if is_url(place) else Path(place)
    row = (
        next((row for row in find_recordings(root) if row.path in (".", parts[end - 1])), None)
        if exists(root)
        else None
    )
    if row is None:
        raise RecordingError(place, "there is no such archive, nor a recording of this name")
    with Cache().hold(Pack(base(root), row.pack, row.stamp)) as folder:
        inner = folder / "/".join(parts[end:])
        if not (inner / ANNOTATION_FILE).is_file():
            raise RecordingError(recording, "not the folder of one recording (annotation.proto and a video)")
        yield inner


@contextmanager
def _locked(path: Path, shared: bool = False, wait: bool = True) -> Iterator[None]:
    """Hold a lock on a file, which is created.

    Raises:
        BlockingIOError: another process holds it, and ``wait`` is off.
    """
    flock, kinds = _flock()
    while True:
        handle = _open(path)
        try:
            flock(handle, (kinds.LOCK_SH if shared else kinds.LOCK_EX) | (0 if wait else kinds.LOCK_NB))
            try:
                if _is_at(handle, path):  # who removed the pack has removed this file, and the next one is another lock
                    yield
                    return
            finally:
                flock(handle, kinds.LOCK_UN)  # to close it would leave it to workers that were forked meanwhile
        finally:
            os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    """Whether an opened file still has its name."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except FileNotFoundError:
        with write_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)


def _flock() -> tuple[Any, Any]:
    try:
        import fcntl
    except ImportError as error:
        raise UserError("archives and remote recordings need Linux or macOS; unpack them into a folder") from error
    return fcntl.flock, fcntl
