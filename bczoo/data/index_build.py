"""Builds the index of one folder of recordings: finds them, parses what is new, writes flat arrays.

Place in the pipeline: `index.py` asks here for an up-to-date index and serves it to training. Annotations are
parsed once; of videos only headers are read. A build copies what is unchanged from the build before, writes
into a folder of its own and then switches the file ``current`` over to it, so readers never see half an
index.

    <root>/.bczoo/index/<key>/current                 name of the valid build
    <root>/.bczoo/index/<key>/<build>/table.json      one row a recording: name, frames, problem, file stamps
    <root>/.bczoo/index/<key>/<build>/<array>.npy     arrays of all recordings, one after the other, see
    ARRAYS

The key stands for everything that the arrays depend on: action space, rate, text width, format.

Shape legend: N steps of all recordings, A action tokens per step, E text events, D text width, S system runs.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from bczoo.actions import ActionSpace
from bczoo.data.errors import RecordingError
from bczoo.data.recording import ANNOTATION_FILE, SYSTEM, Steps, parse_steps, read_annotation
from bczoo.data.video import ANY_SIZE_NAME, SIZED_NAME, probe

FORMAT = 1
ARRAYS = ("ids", "kind", "text_start", "text_steps", "text", "system_runs")
KEEP_SECONDS = 3600  # for which a build stays at least
DEEPEST = 4  # levels of folders below the root in which recordings are looked for


@dataclass(frozen=True)
class Target:
    """What recordings are brought to; the index depends on nothing else but the files."""

    space: ActionSpace
    fps: float
    text_dim: int | None

    @property
    def key(self) -> str:
        text = json.dumps([FORMAT, self.space.to_dict(), self.fps, self.text_dim], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@dataclass
class Row:
    """One recording of the table."""

    path: str  # folder below the root, "." for the root itself
    name: str
    videos: list[str]
    stamp: list[list]  # [file, bytes, mtime in ns] of every file that counts
    n_frames: int = 0  # 0 if there is a problem
    n_texts: int = 0
    n_runs: int = 0
    problem: str = ""
    without_embedding: int = 0
    unknown: dict[str, int] = field(default_factory=dict)


def find_recordings(root: Path) -> list[Row]:
    """Rows (files only) of all recordings, broken ones too, in order of their paths.

    A recording is a folder with an annotation. A video alone is one that lost its annotation, unless it lies
    among the recordings: in the root or beside other folders.
    """
    rows: list[Row] = []
    pending = [(root, 0)]
    while pending:
        folder, depth = pending.pop()
        stamp, videos, below = [], [], []
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name == ANNOTATION_FILE or SIZED_NAME.fullmatch(entry.name) or entry.name == ANY_SIZE_NAME:
                    stat = entry.stat()
                    stamp.append([entry.name, stat.st_size, stat.st_mtime_ns])
                    if entry.name != ANNOTATION_FILE:
                        videos.append(entry.name)
                elif not entry.name.startswith(".") and depth < DEEPEST and entry.is_dir():
                    below.append((Path(entry.path), depth + 1))
        annotated = len(stamp) > len(videos)
        if annotated or (videos and not below and folder != root):
            name = root.resolve().name if folder == root else folder.relative_to(root).as_posix()
            rows.append(Row(folder.relative_to(root).as_posix(), name, sorted(videos), sorted(stamp)))
        else:
            pending += below
    return sorted(rows, key=lambda row: row.path)


def index_recording(root: Path, row: Row, target: Target) -> tuple[Row, Steps | None]:
    """Parse one recording; what is wrong with it goes into ``problem``."""
    folder = root / row.path
    try:
        steps = parse_steps(message := read_annotation(folder), target.space, target.fps, target.text_dim, where=folder)
        if not row.videos:
            raise RecordingError(folder, f"no video (<width>x<height>.mp4 or {ANY_SIZE_NAME})")
        for video in row.videos:
            info = probe(folder / video)
            if info.n_frames != len(steps.kind):
                raise RecordingError(
                    folder, f"{video} has {info.n_frames} frames, {ANNOTATION_FILE} has {len(steps.kind)}"
                )
            stated = message.metadata.frames_per_second
            if not stated and info.fps and abs(info.fps / target.fps - 1) > 0.05:
                raise RecordingError(folder, f"{video} has {info.fps:g} frames per second, wanted are {target.fps:g}")
    except RecordingError as error:
        where = Path(error.where).name
        row.problem = f"{where}: {error.reason}" if where in row.videos else error.reason
        return row, None
    row.n_frames, row.n_texts = len(steps.kind), len(steps.text_start)
    row.unknown, row.without_embedding = dict(steps.unknown), steps.without_embedding
    return row, steps


def cache_folder(root: Path, target: Target, create: bool = False) -> Path:
    """Where the index of a root lies: in the root, or in the user's cache if the root cannot be written."""
    inside = root / ".bczoo" / "index" / target.key
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    root_id = hashlib.blake2b(str(root.resolve()).encode(), digest_size=8).hexdigest()
    outside = user_cache / "bczoo" / "index" / root_id / target.key
    if not create:
        return inside if (inside / "current").exists() else outside
    try:
        inside.mkdir(parents=True, exist_ok=True)
        (probe_file := inside / f".writable-{uuid.uuid4().hex}").touch()
        probe_file.unlink()
        return inside
    except OSError:
        outside.mkdir(parents=True, exist_ok=True)
        return outside


@dataclass
class Build:
    """An index on disk, opened: its table and its arrays (memory-mapped)."""

    rows: list[Row]
    arrays: dict[str, np.ndarray]
    folder: Path

    @classmethod
    def open(cls, root: Path, target: Target) -> Build | None:
        """The valid build, or None if there is none."""
        for _ in range(5):  # another process may switch builds and remove this one while it is opened
            cache = cache_folder(root, target)
            try:
                folder = cache / (cache / "current").read_text().strip()
                rows = [Row(**row) for row in json.loads((folder / "table.json").read_text())]
                return cls(rows, open_arrays(folder), folder)
            except (OSError, ValueError):
                continue
        return None

    def slices(self) -> Iterator[tuple[Row, slice, slice, slice]]:
        """Per recording its row and where its steps, text events and system runs lie."""
        step = text = run = 0
        for row in self.rows:
            yield (
                row,
                slice(step, step := step + row.n_frames),
                slice(text, text := text + row.n_texts),
                slice(run, run := run + row.n_runs),
            )


def open_arrays(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of a build; empty ones cannot be memory-mapped and are read."""

    def load(path: Path) -> np.ndarray:
        try:
            return np.load(path, mmap_mode="r")
        except ValueError:
            return np.load(path)

    return {name: load(folder / f"{name}.npy") for name in ARRAYS}


def update(root: Path, target: Target, processes: int = 0) -> Build:
    """An index of the root as it is now; only new and changed recordings are parsed.

    Args:
        root: folder of recordings.
        target: what to bring them to.
        processes: parallel processes; 0 parses in this one.
    """
    found = find_recordings(root)
    old = Build.open(root, target)
    if old and [(r.path, r.stamp) for r in old.rows] == [(r.path, r.stamp) for r in found]:
        return old
    kept = {(entry[0].path, str(entry[0].stamp)): entry for entry in old.slices()} if old else {}
    todo = [row for row in found if (row.path, str(row.stamp)) not in kept]

    cache = cache_folder(root, target, create=True)
    name = f"{time.time_ns():x}-{uuid.uuid4().hex[:8]}"
    partial = cache / f"{name}.partial"
    partial.mkdir()
    try:
        with (
            _parsed(root, todo, target, processes) as fresh,
            _ArrayWriter(partial, target) as writer,
        ):
            rows = []
            for row in found:
                if entry := kept.get((row.path, str(row.stamp))):
                    assert old is not None
                    rows.append(writer.copy(old, *entry))
                else:
                    rows.append(writer.add(*next(fresh)))
        (partial / "table.json").write_text(json.dumps([vars(row) for row in rows]))
        partial.rename(cache / name)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    pointer = cache / f"{name}.pointer"
    pointer.write_text(name)
    pointer.replace(cache / "current")
    _remove_old_builds(cache)
    opened = Build.open(root, target)
    if opened is None:
        raise OSError(f"the index that was just written to {cache} cannot be read back")
    return opened


def _remove_old_builds(cache: Path) -> None:
    """Remove builds that ``current`` no longer names; readers that have mapped one keep it until they close it.

    Young ones stay: another process may have completed one and be about to name it in ``current``.
    """
    current = cache / "current"
    try:
        keep, now = current.read_text().strip(), current.stat().st_mtime  # the clock of that file system
        for other in cache.iterdir():
            if other.name in ("current", keep) or other.suffix or not other.is_dir():
                continue
            if other.stat().st_mtime < now - KEEP_SECONDS:
                shutil.rmtree(other, ignore_errors=True)
    except OSError:  # another process was faster
        return


@contextmanager
def _parsed(
    root: Path, rows: list[Row], target: Target, processes: int
) -> Iterator[Iterator[tuple[Row, Steps | None]]]:
    """The parsed recordings, in order, with a progress bar."""

    def with_bar(results: Iterable[tuple[Row, Steps | None]]) -> Iterator[tuple[Row, Steps | None]]:
        quiet = None if len(rows) > 20 else True  # None: quiet unless there is a terminal
        yield from tqdm(results, f"Indexing {root}", len(rows), unit="recording", disable=quiet)

    if processes < 2 or len(rows) < 64:
        yield with_bar(index_recording(root, row, target) for row in rows)
        return
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context(start_method())) as pool:
        n = len(rows)
        yield with_bar(pool.map(index_recording, [root] * n, rows, [target] * n, chunksize=8))


def start_method() -> str:
    """Forked helpers need no main guard in the user's script, and use neither threads nor accelerator."""
    return "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"


class _ArrayWriter:
    """Appends recordings to the arrays of a build, so that no more than one is held in memory."""

    def __init__(self, folder: Path, target: Target) -> None:
        token_type = np.uint8 if max(g.choices for g in target.space.groups) <= 256 else np.uint16
        self._rows = {
            "ids": _NpyRows(folder / "ids.npy", token_type, (target.space.tokens,)),
            "kind": _NpyRows(folder / "kind.npy", np.uint8, ()),
            "text_start": _NpyRows(folder / "text_start.npy", np.int64, ()),
            "text_steps": _NpyRows(folder / "text_steps.npy", np.int64, ()),
            "text": _NpyRows(folder / "text.npy", np.float32, (target.text_dim or 0,)),
            "system_runs": _NpyRows(folder / "system_runs.npy", np.int64, (2,)),
        }

    def add(self, row: Row, steps: Steps | None) -> Row:
        if steps is not None:
            runs = system_runs(steps.kind)
            row.n_runs = len(runs)
            for name in ("ids", "kind", "text_start", "text_steps", "text"):
                self._rows[name].append(getattr(steps, name))
            self._rows["system_runs"].append(runs)
        return row

    def copy(self, old: Build, row: Row, steps: slice, texts: slice, runs: slice) -> Row:
        for names, where in (
            (("ids", "kind"), steps),
            (("text_start", "text_steps", "text"), texts),
            (("system_runs",), runs),
        ):
            for name in names:
                self._rows[name].append(old.arrays[name][where])
        return row

    def __enter__(self) -> _ArrayWriter:
        return self

    def __exit__(self, *exc_info: Any) -> None:
        for rows in self._rows.values():
            rows.close()


class _NpyRows:
    """A .npy file that grows by rows; numpy pads its header so that any final count fits."""

    def __init__(self, path: Path, dtype: type, row_shape: tuple[int, ...]) -> None:
        self._file = path.open("wb")
        self._dtype = np.dtype(dtype)
        self._row_shape = row_shape
        self._count = 0
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
        self._file.write(np.ascontiguousarray(rows, self._dtype).tobytes())
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


def total_unknown(rows: Iterable[Row]) -> Counter[str]:
    """Names that the action space lacks, and how many steps hold them."""
    total: Counter[str] = Counter()
    for row in rows:
        total.update(row.unknown)
    return total
