"""What lies in a root: recordings as folders, archives of them, and both in stores that are reached by a URL.

Place in the pipeline: `index_build.py` asks what there is and indexes what is new. A :class:`Row` found here is a
recording whose folder lies in the root, or, with ``pack`` set, something that has to be brought first: an archive,
which becomes a row for each of its recordings when it is read, or a recording folder of a store.

A root may also be a single archive. Rows are then relative to where it lies, see :func:`base`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from bczoo.data.archive import counts, is_archive
from bczoo.data.errors import RecordingError, printable
from bczoo.data.index_files import Row
from bczoo.data.recording import ANNOTATION_FILE
from bczoo.data.stores import Root, StoredFile, file_at, files_of, is_url

DEEPEST = 4  # levels of folders below the root in which recordings are looked for
MISSING = [-1, 0]  # size and time of a file that is listed but not there, such as a link to nothing


def base(root: Root) -> Root:
    """What the paths of a root's rows are relative to: the root, or where it lies if it is itself an archive."""
    if isinstance(root, str):
        return root.rpartition("/")[0] if is_archive(root) else root.rstrip("/")
    return root.parent if is_archive(root.name) and not root.is_dir() else root


def join(root: Root, path: str) -> Root:
    """A path below a root."""
    return f"{root}/{path}" if isinstance(root, str) else root / path


def exists(root: Root) -> bool:
    """Whether there is a root of this computer; a store is only asked when it is listed."""
    return is_url(root) or (isinstance(root, Path) and (root.is_dir() or (is_archive(root.name) and root.is_file())))


def find_recordings(root: Root) -> list[Row]:
    """Rows (files only) of all recordings, broken ones too, and of archives, in order of their paths.

    Raises:
        RecordingError: the root cannot be read.
        UserError: the store cannot be read.
    """
    return sorted(walk_recordings(root), key=lambda row: row.path)


def walk_recordings(root: Root) -> Iterator[Row]:
    """The same one by one, as they are found; who only asks whether there are any stops at the first.

    A recording is a folder with an annotation. A video alone is one that lost its annotation, unless it lies
    among the recordings: in the root or beside other folders. A folder that cannot be read counts as a broken
    recording, since there may be some below. Links are followed, but not into a folder that they lie in.

    Raises:
        RecordingError: the root cannot be read.
        UserError: the store cannot be read.
    """
    if isinstance(root, str):
        return _walk_store(root)
    if base(root) != root:
        return iter([_archive(root.name, [root.name, *_size_and_time(root.stat())])])
    return _walk_folder(root)


def _walk_folder(root: Path) -> Iterator[Row]:
    # a folder, its path below the root, the identities of those above, and whether a link led to it
    pending: list[tuple[str, str, tuple[tuple[int, int], ...], bool]] = [(str(root), "", (), True)]
    while pending:
        folder, path, above, linked = pending.pop()
        stamp, videos, below = [], [], []
        try:
            if linked and _identity(folder) in above:
                continue
            with os.scandir(folder) as entries:
                for entry in entries:
                    name = entry.name
                    if counts(name):
                        stamp.append([name, *_stamp(entry)])
                        if name != ANNOTATION_FILE:
                            videos.append(name)
                    elif name.startswith("."):
                        continue
                    elif is_archive(name) and entry.is_file():
                        yield _archive(f"{path}/{name}" if path else name, [name, *_stamp(entry)])
                    elif len(above) < DEEPEST and _may_be_folder(entry):
                        below.append((entry.path, f"{path}/{name}" if path else name, entry.is_symlink()))
            here = (*above, _identity(folder)) if below else ()
        except OSError as error:
            if not path:
                raise RecordingError(root, f"the folder cannot be read ({error.strerror})") from error
            if os.path.lexists(folder):  # or it was removed a moment ago
                yield _found(root, path, [], [])
            continue
        annotated = len(stamp) > len(videos)
        if annotated or (videos and not below and path):
            yield _found(root, path, videos, stamp)
        else:
            pending += [(inner, name, here, link) for inner, name, link in below]


def _walk_store(url: str) -> Iterator[Row]:
    """The same for what lies under a URL; a recording folder has to be brought as an archive has."""
    folders: dict[str, list[StoredFile]] = {}
    listed = [file_at(url)] if is_archive(url) else files_of(url)
    holding = {str(parent) for file in listed for parent in list(PurePosixPath(file.path).parents)[1:]}
    for file in listed:
        path = PurePosixPath(file.path)
        if any(part.startswith(".") for part in path.parts) or len(path.parts) > DEEPEST + 1:
            continue
        if is_archive(path.name):
            yield _archive(file.path, [path.name, file.size, file.tag])
        elif counts(path.name):
            folders.setdefault(str(path.parent), []).append(file)
    for folder, files in folders.items():
        names = [PurePosixPath(file.path).name for file in files]
        stamp: list[list] = [[name, file.size, file.tag] for name, file in zip(names, files, strict=True)]
        videos = sorted(name for name in names if name != ANNOTATION_FILE)
        if len(videos) < len(stamp) or folder not in (".", *holding):
            name = url.rstrip("/").rpartition("/")[2] if folder == "." else folder
            yield Row(folder, printable(name), videos, sorted(stamp), pack=folder)


def _archive(path: str, stamp: list) -> Row:
    return Row(path, printable(path), [], [stamp], pack=path)


def _found(root: Path, path: str, videos: list[str], stamp: list[list]) -> Row:
    return Row(path or ".", printable(path or root.resolve().name), sorted(videos), sorted(stamp))


def _identity(folder: str) -> tuple[int, int]:
    """The same for all paths to one folder."""
    stat = os.stat(folder)
    return stat.st_dev, stat.st_ino


def _stamp(entry: os.DirEntry) -> list[int]:
    """Size and time of a file."""
    try:
        return _size_and_time(entry.stat())
    except OSError:
        return MISSING


def _size_and_time(stat: os.stat_result) -> list[int]:
    return [stat.st_size, stat.st_mtime_ns]


def _may_be_folder(entry: os.DirEntry) -> bool:
    """Whether an entry is a folder, or a link of which nobody can tell."""
    try:
        return entry.is_dir() or (entry.is_symlink() and not os.path.exists(entry.path))
    except OSError:
        return True
