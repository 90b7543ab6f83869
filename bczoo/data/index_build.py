"""Builds the index of one folder of recordings: finds them, parses what is new, writes flat arrays.

Place in the pipeline: `index.py` asks here for an up-to-date index and serves it to training; `index_files.py` says how
it lies on disk and opens it. Annotations are parsed once; of videos only headers are read. A build copies what is
unchanged from the build before, writes into a folder of its own and then switches the file ``current`` over to it, so
readers never see half an index.

Shape legend: S system runs.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import uuid
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from bczoo.core.errors import UserError
from bczoo.core.files import PartialPath, remove, sweep, write_text
from bczoo.core.progress import Progress
from bczoo.data.errors import RecordingError, printable
from bczoo.data.index_files import Build, Row, Target, cache_folders, layout, write_table
from bczoo.data.recording import ANNOTATION_FILE, SYSTEM, Steps, parse_steps, read_annotation
from bczoo.data.video import ANY_SIZE_NAME, SIZED_NAME, probe

KEEP_SECONDS = 3600  # for which a build stays at least
DEEPEST = 4  # levels of folders below the root in which recordings are looked for
MISSING = [-1, 0]  # size and time of a file that is listed but not there, such as a link to nothing


def find_recordings(root: Path) -> list[Row]:
    """Rows (files only) of all recordings, broken ones too, in order of their paths.

    Raises:
        RecordingError: the root cannot be read.
    """
    return sorted(walk_recordings(root), key=lambda row: row.path)


def walk_recordings(root: Path) -> Iterator[Row]:
    """The same one by one, as they are found; who only asks whether there are any stops at the first.

    A recording is a folder with an annotation. A video alone is one that lost its annotation, unless it lies
    among the recordings: in the root or beside other folders. A folder that cannot be read counts as a broken
    recording, since there may be some below. Links are followed, but not into a folder that they lie in.

    Raises:
        RecordingError: the root cannot be read.
    """
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
                    if name in (ANNOTATION_FILE, ANY_SIZE_NAME) or SIZED_NAME.fullmatch(name):
                        stamp.append([name, *_stamp(entry)])
                        if name != ANNOTATION_FILE:
                            videos.append(name)
                    elif not name.startswith(".") and len(above) < DEEPEST and _may_be_folder(entry):
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


def _found(root: Path, path: str, videos: list[str], stamp: list[list]) -> Row:
    return Row(path or ".", printable(path or root.resolve().name), sorted(videos), sorted(stamp))


def _identity(folder: str) -> tuple[int, int]:
    """The same for all paths to one folder."""
    stat = os.stat(folder)
    return stat.st_dev, stat.st_ino


def _stamp(entry: os.DirEntry) -> list[int]:
    """Size and time of a file."""
    try:
        stat = entry.stat()
    except OSError:
        return MISSING
    return [stat.st_size, stat.st_mtime_ns]


def _may_be_folder(entry: os.DirEntry) -> bool:
    """Whether an entry is a folder, or a link of which nobody can tell."""
    try:
        return entry.is_dir() or (entry.is_symlink() and not os.path.exists(entry.path))
    except OSError:
        return True


def index_recording(root: Path, row: Row, target: Target) -> tuple[Row, Steps | None]:
    """Parse one recording; what is wrong with it, whatever it is, goes into ``problem``."""
    try:
        steps = _parse(root / row.path, row, target)
    except RecordingError as error:
        where = Path(error.where).name
        row.problem = printable(f"{where}: {error.reason}" if where in row.videos else error.reason)
        return row, None
    except Exception as error:  # one odd recording among thousands must not stop an index
        row.problem = printable(f"cannot be read ({type(error).__name__}: {error})")
        return row, None
    row.problem, row.n_frames, row.n_texts = "", len(steps.kind), len(steps.text_start)
    row.n_labels, row.n_confidences = len(steps.labels), len(steps.confidence)
    row.unknown, row.without_embedding = dict(steps.unknown), steps.without_embedding
    row.n_recorded, row.recorded_fps = steps.n_recorded, steps.recorded_fps
    return row, steps


def _parse(folder: Path, row: Row, target: Target) -> Steps:
    try:
        os.scandir(folder).close()
    except OSError as error:
        raise RecordingError(folder, f"the folder cannot be read ({error.strerror})") from error
    annotation = read_annotation(folder)
    n, unstated_fps = len(annotation.frame_annotations), 0.0
    if not row.videos:
        raise RecordingError(folder, f"no video (<width>x<height>.mp4 or {ANY_SIZE_NAME})")
    for video in row.videos:
        info = probe(folder / video)
        if info.n_frames != n:
            raise RecordingError(folder, f"{video} has {info.n_frames} frames, {ANNOTATION_FILE} has {n}")
        if info.fps and not abs(info.fps / target.fps - 1) <= 0.05:  # headers are not exact
            unstated_fps = info.fps
    return parse_steps(annotation, target.space, target.fps, target.text_dim, folder, unstated_fps)


def update(root: Path, target: Target, processes: int = 0, verify: bool = False) -> Build | None:
    """An index of the root as it is now, or None if it holds no recording; only new and changed ones are parsed.

    Args:
        root: folder of recordings.
        target: what to bring them to.
        processes: parallel processes; 0 parses in this one.
        verify: read all arrays of the index on disk and compare them with their checksums.

    Raises:
        RecordingError: the root cannot be read.
        UserError: the index can be written neither in the root nor in the user's cache.
    """
    found = find_recordings(root)
    if not found:
        return None
    old = Build.open(root, target, verify)
    if old and [(r.path, r.stamp) for r in old.rows] == [(r.path, r.stamp) for r in found]:
        return old
    refused = []
    for cache in cache_folders(root, target):
        try:
            return _build(root, found, old, cache, target, processes)
        except OSError as error:  # of the cache; what is wrong with a recording is in its row
            refused.append(f"{cache} ({error.strerror or error})")
    raise UserError(
        f"the index of {root} can be written neither to {' nor to '.join(refused)}; free some space, or name a folder "
        "that can be written in XDG_CACHE_HOME"
    )


def _build(root: Path, found: list[Row], old: Build | None, cache: Path, target: Target, processes: int) -> Build:
    """Write a build to a cache folder and make it the valid one."""
    kept = {(entry[0].path, str(entry[0].stamp)): entry for entry in old.slices()} if old else {}
    todo = [row for row in found if (row.path, str(row.stamp)) not in kept]
    name = f"{time.time_ns():x}-{uuid.uuid4().hex[:8]}"
    with PartialPath(cache / name) as partial:
        sweep(cache)
        partial.path.mkdir()
        with (
            _parsed(root, todo, target, processes) as fresh,
            _ArrayWriter(partial.path, target) as writer,
        ):
            rows = []
            for row in found:
                if entry := kept.get((row.path, str(row.stamp))):
                    assert old is not None
                    rows.append(writer.copy(old, *entry))
                else:
                    rows.append(writer.add(*next(fresh)))
        write_table(partial.path, rows, writer.checksums)
    write_text(cache / "current", name)
    _remove_old_builds(cache)
    return Build.read(cache / name, target)


def _remove_old_builds(cache: Path) -> None:
    """Remove builds that ``current`` does not name; readers that have mapped one keep it until they close it.

    Young ones stay: another process may have completed one and be about to name it in ``current``.
    """
    current = cache / "current"
    with suppress(OSError):  # there is no build yet, or another process was faster
        keep, now = current.read_text().strip(), current.stat().st_mtime  # the clock of that file system
        for other in cache.iterdir():
            if other.name.startswith(".") or other.name in ("current", keep):
                continue
            if other.stat().st_mtime < now - KEEP_SECONDS:
                remove(other)


@contextmanager
def _parsed(
    root: Path, rows: list[Row], target: Target, processes: int
) -> Iterator[Iterator[tuple[Row, Steps | None]]]:
    """The parsed recordings, in order, with a progress bar."""

    def with_bar(results: Iterable[tuple[Row, Steps | None]]) -> Iterator[tuple[Row, Steps | None]]:
        quiet = None if len(rows) > 20 else True  # None: quiet unless there is a terminal
        yield from Progress(results, f"Indexing {root}", len(rows), unit="recording", disable=quiet)

    if processes < 2 or len(rows) < 64:
        yield with_bar(index_recording(root, row, target) for row in rows)
        return
    yield with_bar(_parsed_apart(root, rows, target, processes))


def _parsed_apart(root: Path, rows: list[Row], target: Target, processes: int) -> Iterator[tuple[Row, Steps | None]]:
    """Parse recordings in other processes; one that ends its process is named by trying those left one by one."""
    context = multiprocessing.get_context(start_method())
    done = 0
    with suppress(BrokenProcessPool), ProcessPoolExecutor(processes, mp_context=context) as pool:
        n = len(rows)
        for result in pool.map(index_recording, [root] * n, rows, [target] * n, chunksize=8):
            done += 1
            yield result
    for row in rows[done:]:
        try:
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                result = pool.submit(index_recording, root, row, target).result()
        except BrokenProcessPool:
            row.problem = "ends the process that reads it: it needs too much memory, or upsets the video library"
            result = row, None
        yield result


def start_method() -> str:
    """Forked helpers need no main guard in the user's script, and use neither threads nor accelerator."""
    return "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"


class _ArrayWriter:
    """Appends recordings to the arrays of a build, so that no more than one is held in memory."""

    def __init__(self, folder: Path, target: Target) -> None:
        self._rows = {
            name: _NpyRows(folder / f"{name}.npy", dtype, row_shape)
            for name, (dtype, row_shape, _) in layout(target).items()
        }
        self._counted_by = {name: of for name, (_, _, of) in layout(target).items()}

    def add(self, row: Row, steps: Steps | None) -> Row:
        if steps is not None:
            runs = system_runs(steps.kind)
            row.n_runs = len(runs)
            for name, rows in self._rows.items():
                rows.append(runs if name == "system_runs" else getattr(steps, name))
        return row

    def copy(self, old: Build, row: Row, where: dict[str, slice]) -> Row:
        for name, rows in self._rows.items():
            rows.append(old.arrays[name][where[self._counted_by[name]]])
        return row

    @property
    def checksums(self) -> dict[str, int]:
        """CRC-32 of the rows of every array."""
        return {name: rows.checksum for name, rows in self._rows.items()}

    def __enter__(self) -> _ArrayWriter:
        return self

    def __exit__(self, *exc_info: Any) -> None:
        with ExitStack() as stack:  # closes all, also on a full disk, where each raises
            for rows in self._rows.values():
                stack.callback(rows.close)


class _NpyRows:
    """A .npy file that grows by rows; numpy pads its header so that any final count fits."""

    def __init__(self, path: Path, dtype: np.dtype, row_shape: tuple[int, ...]) -> None:
        self._file = path.open("wb")
        self._dtype = dtype
        self._row_shape = row_shape
        self._count = 0
        self.checksum = 0
        self._write_header()
        self._header_bytes = self._file.tell()

    def _write_header(self) -> None:
        self._file.seek(0)
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self._count, *self._row_shape),
        }
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, rows: np.ndarray) -> None:
        if rows.shape[1:] != self._row_shape:
            raise ValueError(f"{self._file.name} has rows of shape {self._row_shape}, got {rows.shape[1:]}")
        data = np.ascontiguousarray(rows, self._dtype).tobytes()
        self._file.write(data)
        self.checksum = zlib.crc32(data, self.checksum)
        self._count += len(rows)

    def close(self) -> None:
        with self._file:
            self._write_header()
            if self._file.tell() != self._header_bytes:
                raise RuntimeError(f"{self._file.name}: the header of {self._count} rows outgrew its place")


def system_runs(kind: np.ndarray) -> np.ndarray:
    """First and last-plus-one annotation of every unbroken run of system actions, (S, 2)."""
    edges = np.diff(np.concatenate(([0], kind == SYSTEM, [0])).astype(np.int8))
    return np.stack([np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)], axis=1)
