"""Builds the index of one root of recordings: parses what is new, writes flat arrays.

Place in the pipeline: `index.py` asks here for an up-to-date index and serves it to training; `listing.py` finds what
there is, `index_files.py` says how the index lies on disk and opens it. Annotations are parsed once; of videos only
headers are read. An archive is read once, too: it is unpacked into the cache (`cache.py`), where a training that starts
soon still finds it. A build copies what is unchanged from the build before, writes into a folder of its own and then
switches the file ``current`` over to it, so readers never see half an index.

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
from bczoo.data.cache import Cache, Pack
from bczoo.data.errors import RecordingError, printable
from bczoo.data.index_files import Build, Row, Target, cache_folders, layout, write_table
from bczoo.data.listing import base, find_recordings
from bczoo.data.recording import ANNOTATION_FILE, SYSTEM, Steps, parse_steps, read_annotation
from bczoo.data.stores import Root
from bczoo.data.video import ANY_SIZE_NAME, probe

KEEP_SECONDS = 3600  # for which a build stays at least
FEW = 64  # recordings that are parsed without further processes


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


def index_pack(root: Root, row: Row, target: Target, cache: Cache) -> list[tuple[Row, Steps | None]]:
    """Parse all recordings of an archive or of a store's folder; what is wrong with the whole makes one broken row.

    Raises:
        UserError: it cannot be brought now, which says nothing about what it holds.
    """
    try:
        with cache.hold(Pack(base(root), row.pack, row.stamp)) as folder:
            found = find_recordings(folder)
            results = [index_recording(folder, inner, target) for inner in found]
    except RecordingError as error:
        row.problem = printable(error.reason)
        return [(row, None)]
    if not results:
        row.problem = "the archive holds no recording"
        return [(row, None)]
    for inner, _ in results:
        inner.n_bytes = sum(size for _, size, _ in inner.stamp)
        inner.path = row.pack if inner.path == "." else f"{row.pack}/{inner.path}"
        inner.name = row.name if inner.path == row.pack else printable(inner.path)
        inner.pack, inner.stamp = row.pack, row.stamp
    return results


def update(
    root: Root, target: Target, processes: int = 0, verify: bool = False, cache: Cache | None = None
) -> Build | None:
    """An index of the root as it is now, or None if it holds no recording; only new and changed ones are parsed.

    Args:
        root: folder of recordings, archive, or URL of either.
        target: what to bring them to.
        processes: parallel processes; 0 parses in this one.
        verify: read all arrays of the index on disk and compare them with their checksums.
        cache: where archives are unpacked; the default one if left out.

    Raises:
        RecordingError: the root cannot be read.
        UserError: the index can be written neither in the root nor in the user's cache; a store cannot be read.
    """
    found = find_recordings(root)
    if not found:
        return None
    old = Build.open(root, target, verify)
    if old and list(dict.fromkeys(map(_unit, old.rows))) == [_unit(row) for row in found]:
        return old
    refused = []
    for place in cache_folders(root, target):
        try:
            return _build(root, found, old, place, target, processes, cache or Cache())
        except OSError as error:  # of the cache; what is wrong with a recording is in its row
            refused.append(f"{place} ({error.strerror or error})")
    raise UserError(
        f"the index of {root} can be written neither to {' nor to '.join(refused)}; free some space, or name a folder "
        "that can be written in XDG_CACHE_HOME"
    )


def _unit(row: Row) -> tuple[str, str]:
    """The same for all recordings that are read together as long as nothing changes: a folder's, or an archive's."""
    return row.pack or row.path, str(row.stamp)


def _build(
    root: Root, found: list[Row], old: Build | None, place: Path, target: Target, processes: int, cache: Cache
) -> Build:
    """Write a build to a folder for indexes and make it the valid one."""
    kept: dict[tuple[str, str], list[tuple[Row, dict[str, slice]]]] = {}
    for entry in old.slices() if old else ():
        kept.setdefault(_unit(entry[0]), []).append(entry)
    todo = [row for row in found if _unit(row) not in kept]
    name = f"{time.time_ns():x}-{uuid.uuid4().hex[:8]}"
    with PartialPath(place / name) as partial:
        sweep(place)
        partial.path.mkdir()
        with (
            _parsed(root, todo, target, processes, cache) as fresh,
            _ArrayWriter(partial.path, target) as writer,
        ):
            rows = []
            for row in found:
                if entries := kept.get(_unit(row)):
                    assert old is not None
                    rows += [writer.copy(old, *entry) for entry in entries]
                else:
                    rows += [writer.add(*result) for result in next(fresh)]
        write_table(partial.path, rows, writer.checksums)
    write_text(place / "current", name)
    _remove_old_builds(place)
    return Build.read(place / name, target)


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
    root: Root, rows: list[Row], target: Target, processes: int, cache: Cache
) -> Iterator[Iterator[list[tuple[Row, Steps | None]]]]:
    """What each row gives, in order, with a progress bar: itself, parsed, or the recordings of its archive."""
    packed = any(row.pack for row in rows)

    def with_bar(results: Iterable[list[tuple[Row, Steps | None]]]) -> Iterator[list[tuple[Row, Steps | None]]]:
        quiet = None if packed or len(rows) > 20 else True  # None: quiet unless there is a terminal
        unit = "archive or folder" if packed else "recording"
        yield from Progress(results, f"Indexing {root}", len(rows), unit=unit, disable=quiet)

    if processes < 2 or len(rows) < (2 if packed else FEW):
        yield with_bar(_index(root, row, target, cache) for row in rows)
        return
    yield with_bar(_parsed_apart(root, rows, target, processes, cache))


def _index(root: Root, row: Row, target: Target, cache: Cache) -> list[tuple[Row, Steps | None]]:
    if row.pack:
        return index_pack(root, row, target, cache)
    assert isinstance(root, Path)
    return [index_recording(root, row, target)]


def _parsed_apart(
    root: Root, rows: list[Row], target: Target, processes: int, cache: Cache
) -> Iterator[list[tuple[Row, Steps | None]]]:
    """Parse recordings in other processes; one that ends its process is named by trying those left one by one."""
    context = multiprocessing.get_context(start_method())
    done = 0
    with suppress(BrokenProcessPool), ProcessPoolExecutor(processes, mp_context=context) as pool:
        n = len(rows)
        chunk = 1 if any(row.pack for row in rows) else 8
        for result in pool.map(_index, [root] * n, rows, [target] * n, [cache] * n, chunksize=chunk):
            done += 1
            yield result
    for row in rows[done:]:
        try:
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                result = pool.submit(_index, root, row, target, cache).result()
        except BrokenProcessPool:
            row.problem = "ends the process that reads it: it needs too much memory, or upsets the video library"
            result = [(row, None)]
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
