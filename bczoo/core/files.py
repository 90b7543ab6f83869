"""Files and folders that are there whole or not at all.

Place in the pipeline: everything that bczoo keeps on disk is written through here: checkpoints, exported folders,
recordings, indexes, records. Content is written to a hidden neighbour of its target, on the same file system, flushed
to the device, and then renamed; until then whatever lay at the target stays what it was. A full disk, an exception or
a killed process costs the new content, never the old. What a killed process left behind is removed by :func:`sweep`.

    <folder>/.<name>.writing-<host>-<pid>-<random>      while it is written
    <folder>/<name>                                     from the rename on
    <folder>/.<name>.replaced-<host>-<pid>-<random>     an older folder, for the moment in which it has no other name

A folder that replaces another changes names with it in one step (Linux's RENAME_EXCHANGE). Systems without that take
two renames; :func:`restore` and :func:`sweep` bring the older folder back if a process was killed in between.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from bczoo.core.errors import UserError

_PARTIAL = re.compile(r"\.(?P<name>.+)\.(?P<kind>writing|replaced)-(?P<host>[0-9a-f]{6})-(?P<pid>\d+)-[0-9a-f]{8}")
_FOREIGN_AGE_S = 7 * 24 * 3600  # after which what another computer left on a shared disk counts as abandoned
_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # as Rust's libraries end the message of a system's error
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux's renameat2
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)  # of kernels and file systems without it
_active: set[Path] = set()  # partial paths of this process; a process number alone may be that of a dead one


class PartialPath:
    """A path to write to, which :meth:`commit` moves to its target.

    As a context manager it commits, or discards if the block raises.

    >>> with PartialPath("runs/a/last.ckpt") as partial:
    ...     torch.save(checkpoint, partial.path)

    Args:
        target: where the file or folder will be. Its folder is created if there is none.
        over_folder: a file may take the place of a folder with all that is in it.

    Attributes:
        path: where to write, a file or a folder; nothing is there yet.
    """

    def __init__(self, target: str | Path, over_folder: bool = False) -> None:
        self.target, self._over_folder = Path(target), over_folder
        folder = self.target.parent
        folder.mkdir(parents=True, exist_ok=True)
        self.path = _beside(self.target, "writing")
        _active.add(self.path.absolute())

    def commit(self) -> None:
        """Flush what was written to the device and give it its name, in the place of an older file.

        Raises:
            FileExistsError: it is a folder, and one that holds something is there; what was written is discarded.
        """
        try:
            flush(self.path)
            if self.path.is_dir():
                _rename_folder(self.path, self.target)
            elif self._over_folder and self.target.is_dir():
                self.exchange()
            else:
                os.replace(self.path, self.target)
            flush_entry(self.target.parent)
        except BaseException as error:
            self.discard()
            self._name(error)
            raise
        _active.discard(self.path.absolute())

    def exchange(self, keep: Iterable[str] = ()) -> None:
        """Flush what was written and give it its name; an older folder there is replaced as a whole, then removed.

        Whoever has opened or mapped files of the older folder keeps them. A shell whose current folder it is has to
        enter it again; this process does.

        Args:
            keep: names of files and folders in the older one that will be in the new one too.
        """
        try:
            flush(self.path)
            if self.target.exists():
                current = _current_folder()
                for name in keep:
                    link(self.target / name, self.path / name)
                if self.target.is_dir() and self.path.is_dir():
                    shutil.copymode(self.target, self.path)
                flush_entry(self.path)
                _swap(self.path, self.target)
                if current is not None and current.is_relative_to(self.target.resolve()):
                    os.chdir(current)
            else:
                _rename_folder(self.path, self.target)
            flush_entry(self.target.parent)
        except BaseException as error:
            self._name(error)
            raise
        finally:
            self.discard()  # the older folder, or the new one if that was not to be

    def discard(self) -> None:
        """Remove what was written; harmless after :meth:`commit`."""
        remove(self.path)
        _active.discard(self.path.absolute())

    def __enter__(self) -> PartialPath:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.commit()
        else:
            self.discard()
            self._name(error)

    def _name(self, error: BaseException | None) -> None:
        """Have an error of the system name the target: a full disk names no file, others the hidden neighbour."""
        if isinstance(error, OSError) and error.filename in (None, str(self.path)):
            error.filename = str(self.target)
            error.filename2 = None


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file, or leave the older one as it is."""
    with PartialPath(path) as partial:
        partial.path.write_bytes(content)


def write_text(path: str | Path, content: str) -> None:
    """Write a file in UTF-8, or leave the older one as it is."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: str | Path, content: Any, indent: int | None = 2, **options: Any) -> None:
    """Write a JSON file, or leave the older one as it is; options as of :func:`json.dumps`."""
    write_text(path, json.dumps(content, indent=indent, **options) + "\n")


def write_figure(figure: Any, path: str | Path, **options: Any) -> None:
    """Write a matplotlib figure in the format that the path ends in, or leave the older file as it is."""
    with PartialPath(path) as partial:
        figure.savefig(partial.path, format=Path(path).suffix[1:] or "png", **options)


@contextlib.contextmanager
def system_errors() -> Iterator[None]:
    """Raise as OSError what a library written in Rust, such as safetensors, says of a system's error in its words."""
    try:
        yield
    except Exception as error:
        found = None if isinstance(error, OSError) else _OS_ERROR.search(str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1]))) from error


def set_aside(path: str | Path) -> Path:
    """Give a file that is about to be replaced another name, with the time of its last change; returns that.

    Args:
        path: ``<folder>/<stem>.<suffix>``, which becomes ``<folder>/<stem>-before-<time>.<suffix>``.
    """
    path = Path(path)
    written = time.strftime("%Y%m%d-%H%M%S", time.gmtime(path.stat().st_mtime))
    kept = path.with_name(f"{path.stem}-before-{written}{path.suffix}")
    name, number = kept, 1
    while kept.exists():
        number += 1
        kept = name.with_stem(f"{name.stem}-{number}")
    path.rename(kept)
    return kept


def restore(target: str | Path) -> bool:
    """Bring back a folder that has no name because a process was killed while it replaced it; whether there was one."""
    target = Path(target)
    if not target.parent.is_dir() or target.exists():
        return False
    sweep(target.parent, target.name)
    return target.exists()


def sweep(folder: str | Path, of: str | None = None) -> list[Path]:
    """Remove what killed processes left in a folder while they wrote; returns what was removed.

    What a living process writes stays, and so does what another computer wrote in the last week. A folder that was
    about to be replaced, and has lost its name to nobody, gets it back.

    Args:
        folder: where to look; not in folders below it.
        of: name of the only target whose leftovers are meant; all if left out.
    """
    removed = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for entry in list(os.scandir(folder)):
            match = _PARTIAL.fullmatch(entry.name)
            if match is None or (of is not None and match["name"] != of):
                continue
            if _abandoned(Path(entry.path), match["host"], int(match["pid"])):
                target = Path(folder) / match["name"]
                if match["kind"] == "replaced" and not target.exists():
                    os.rename(entry.path, target)
                    continue
                remove(Path(entry.path))
                removed.append(Path(entry.path))
    return removed


def require_file_target(path: str | Path, option: str, example: str) -> None:
    """Raise, before anything else is done, if no file can be written to a path; nothing is made there.

    Args:
        path: where a file is to be.
        option: that it was given by, for the error.
        example: name of such a file.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder; name a file in it, such as {path / example}")
    _require_room(path, path.parent, option)


def require_folder_target(path: str | Path, option: str) -> None:
    """The same for a folder, which may be there already."""
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"{option} {path} is a file, where a folder is to be; give another one")
    _require_room(path, path, option)


def _require_room(path: Path, folder: Path, option: str) -> None:
    """Raise unless a folder is there and can be written to, or can be made."""
    there = folder.absolute()
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise UserError(f"{option} {path}: {there} is no folder; give a path that leads through folders alone")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(
            f"{option} {path}: {there} cannot be written to; give another path, or yourself the right to it"
        )


@contextlib.contextmanager
def write_errors(path: str | Path) -> Iterator[None]:
    """Turn what the system says against writing a path, such as a full disk, into an error for the user."""
    try:
        yield
    except UserError:  # has been told
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"{path} cannot be written ({reason[:1].lower()}{reason[1:]}); make room for it or give it another place. "
            "What was finished before is kept"
        ) from error


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def process_lives(pid: int) -> bool:
    """Whether a process of this computer has the number ``pid``; where that cannot be asked, it is taken to live."""
    if os.name == "nt":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _abandoned(path: Path, host: str, pid: int) -> bool:
    if host != _host():
        with contextlib.suppress(OSError):
            return path.stat().st_mtime < time.time() - _FOREIGN_AGE_S
        return False
    if pid == os.getpid():
        return path.absolute() not in _active
    return not process_lives(pid)


def _host() -> str:
    """Six digits for where process numbers mean the same: this computer, and in a container that one alone."""
    try:
        numbers = os.readlink("/proc/self/ns/pid")
    except OSError:
        numbers = ""
    return hashlib.blake2b(f"{socket.gethostname()} {numbers}".encode(), digest_size=3).hexdigest()


def _beside(target: Path, kind: str) -> Path:
    """A hidden name beside a target, of this process and of no other."""
    return target.with_name(f".{target.name}.{kind}-{_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}")


def _current_folder() -> Path | None:
    with contextlib.suppress(OSError):
        return Path.cwd()
    return None


def link(source: Path, target: Path) -> None:
    """Give a file, or all that is in a folder, a second name; a copy where the file system has no second names."""
    if source.is_dir() and not source.is_symlink():
        target.mkdir()
        for entry in source.iterdir():
            link(entry, target / entry.name)
        shutil.copystat(source, target)
        return
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        shutil.copy2(source, target, follow_symlinks=False)


def _swap(path: Path, target: Path) -> None:
    """Give the folder at ``path`` the name ``target``, whose older folder is under ``path`` then, or is removed."""
    if _rename_exchange(path, target):
        return
    aside = _beside(target, "replaced")
    _active.add(aside.absolute())
    try:
        os.rename(target, aside)
        try:
            os.rename(path, target)
        except BaseException:
            if not target.exists():
                os.rename(aside, target)
            raise
        remove(aside)
    finally:
        _active.discard(aside.absolute())


def _rename_exchange(one: Path, other: Path) -> bool:
    """Have two paths change names in one step; False where the system or the file system cannot."""
    if sys.platform != "linux":
        return False
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):  # an older C library
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(other))


def _rename_folder(path: Path, target: Path) -> None:
    try:
        path.rename(target)
    except OSError as error:
        if target.exists():
            raise FileExistsError(error.errno, "exists already", str(target)) from error
        raise


def flush(path: Path) -> None:
    """Have the device hold a file, or everything in a folder."""
    if not path.is_dir():
        flush_entry(path)
        return
    for folder, _, files in os.walk(path, topdown=False):
        for name in files:
            flush_entry(Path(folder) / name)
        flush_entry(Path(folder))


def flush_entry(path: Path) -> None:
    """Have the device hold a file, or the names in a folder."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
