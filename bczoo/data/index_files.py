"""The index on disk: what lies where, how it is opened, and how damage is noticed.

Place in the pipeline: `index_build.py` writes builds in this layout, `index.py` serves them.

    <root>/.bczoo/index/<key>/current                 name of the valid build
    <root>/.bczoo/index/<key>/<build>/table.json      checksums, and one row a recording: name, frames, problem, stamps
    <root>/.bczoo/index/<key>/<build>/<array>.npy     arrays of all recordings, one after the other, see ARRAYS

The key stands for everything that the arrays depend on: action space, rate, text width, format.

A build that a power cut or a stray write damaged is noticed when it is opened, and made anew. The table is compared
with its checksum every time. Of every array it keeps the size, the time of the last change and a CRC-32. An array whose
size and time are as recorded is taken as it is, another one is read once and compared with its CRC-32; ``bczoo data
check`` reads and compares all. 1 GB takes 0.7 s where it is in memory, 100,000 recordings can have 10 GB, and every
process of a training opens them: too slow for every start. So a write that changed a value is always noticed, and what
rots on the device without a write is noticed by ``bczoo data check``.

Shape legend: N steps of all recordings, A action tokens per step, E text events, D text width, S system runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bczoo.core.actions import ActionSpace
from bczoo.core.errors import UserError
from bczoo.data.errors import printable
from bczoo.data.reading import open_regular
from bczoo.data.stores import Root

FORMAT = 5
ARRAYS = ("ids", "kind", "text_start", "text_steps", "text", "system_runs", "labels", "confidence")
COUNTS = ("n_frames", "n_texts", "n_runs", "n_labels", "n_confidences")  # of a Row, that arrays go by
CHUNK = 2**24  # bytes that are read at once to compare checksums


@dataclass(frozen=True)
class Target:
    """What recordings are brought to; the index depends on nothing else but the files. Without a space actions are not
    read, only whose they are."""

    space: ActionSpace | None
    fps: float
    text_dim: int | None

    def __post_init__(self) -> None:
        if not 0 < self.fps < float("inf"):
            raise UserError(f"recordings have a positive number of steps per second, got fps {self.fps}")
        if self.text_dim is not None and self.text_dim < 1:
            raise UserError(f"a text embedding has 1 or more values, got text_dim {self.text_dim}")

    @property
    def key(self) -> str:
        text = json.dumps([FORMAT, self.space and self.space.to_dict(), self.fps, self.text_dim], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    @property
    def tokens(self) -> int:
        """Action tokens A of a step."""
        return self.space.tokens if self.space else 0

    @property
    def slices(self) -> dict[str, slice]:
        """Where the tokens of every action group lie among the A."""
        return self.space.slices if self.space else {}

    @property
    def id_type(self) -> np.dtype:
        """Type of the smallest integers that hold all ids."""
        return np.dtype(np.uint16 if self.space and max(g.choices for g in self.space.groups) > 256 else np.uint8)


@dataclass
class Row:
    """One recording of the table."""

    path: str  # folder below the root, "." for the root itself; within an archive behind the archive's path
    name: str  # the same, printable
    videos: list[str]
    stamp: list[list]  # [file, bytes, mtime in ns or a store's tag] of every file that counts, or of the archive
    n_frames: int = 0  # at the wanted rate; 0 if there is a problem
    n_texts: int = 0
    n_runs: int = 0
    n_labels: int = 0  # n_frames where a step has an expert's label apart from what was done, otherwise 0
    n_confidences: int = 0  # n_frames where a step is pseudo-labelled, otherwise 0
    problem: str = ""
    without_embedding: int = 0
    unknown: dict[str, int] = field(default_factory=dict)
    n_recorded: int = 0  # frames of the videos
    recorded_fps: float = 0.0  # rate from which the recording was resampled; 0 if it was not
    pack: str = ""  # path of the archive, or of the store's folder, that has to be brought; "" where nothing has to
    n_bytes: int = 0  # of a packed recording's files once they are brought


def cache_folders(root: Root, target: Target) -> list[Path]:
    """Where the index of a root may lie: in the root, or in the user's cache if the root is no folder to write to."""
    return beside(root, "index", target.key)


def beside(root: Root, what: str, key: str) -> list[Path]:
    """Where something that is made of the recordings of a root may lie: as of :func:`cache_folders`."""
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = root.encode() if isinstance(root, str) else os.fsencode(root.resolve())
    outside = user_cache / "bczoo" / what / hashlib.blake2b(name, digest_size=8).hexdigest() / key
    if isinstance(root, str) or root.is_file():
        return [outside]
    return [root / ".bczoo" / what / key, outside]


@dataclass
class Build:
    """An index on disk, opened: its table and its arrays (memory-mapped)."""

    rows: list[Row]
    arrays: dict[str, np.ndarray]
    folder: Path

    @classmethod
    def open(cls, root: Root, target: Target, verify: bool = False) -> Build | None:
        """The newest valid build, or None if there is none; warns of a damaged one.

        Args:
            root: of the recordings.
            target: what they were brought to.
            verify: compare all arrays with their checksums, also those that look untouched.
        """
        damage = ""
        for _ in range(5):  # another process may switch builds and remove this one while it is opened
            named = []
            for cache in cache_folders(root, target):
                # Names begin with the time of the build. After a while on a read-only or full disk, the build in the
                # user's cache is the newer one.
                with suppress(OSError), open_regular(cache / "current") as file:
                    named.append((file.read(100).decode(errors="replace").strip(), cache))
            damage = ""
            for name, cache in sorted(named, reverse=True):
                try:
                    return cls.read(cache / name, target, verify)
                except (OSError, ValueError) as error:
                    damage = damage or str(error)
            if not damage:
                return None
        warnings.warn(printable(f"the index of {root} is damaged ({damage}); it is built anew"), stacklevel=2)
        return None

    @classmethod
    def read(cls, folder: Path, target: Target, verify: bool = False) -> Build:
        """The build in a folder.

        Raises:
            OSError, ValueError: it is damaged or not there.
        """
        rows, stamps = read_table(folder)
        arrays = open_arrays(folder)
        counts = {of: sum(getattr(row, of) for row in rows) for of in COUNTS}
        for name, (dtype, row_shape, of) in layout(target).items():
            shape = (counts[of], *row_shape)
            if arrays[name].dtype != dtype or arrays[name].shape != shape:
                raise ValueError(
                    f"{name}.npy holds {arrays[name].dtype} {arrays[name].shape}, table.json says {dtype} {shape}"
                )
        for name in ARRAYS:
            _check_content(folder / f"{name}.npy", arrays[name], stamps[name], verify)
        return cls(rows, arrays, folder)

    def slices(self) -> Iterator[tuple[Row, dict[str, slice]]]:
        """Per recording its row, and where its part of each array lies, by the count that the array goes by."""
        start = dict.fromkeys(COUNTS, 0)
        for row in self.rows:
            end = {of: start[of] + getattr(row, of) for of in COUNTS}
            yield row, {of: slice(start[of], end[of]) for of in COUNTS}
            start = end


def layout(target: Target) -> dict[str, tuple[np.dtype, tuple[int, ...], str]]:
    """Type of every array of a build, shape of one row, and which number of a :class:`Row` counts its rows."""
    return {
        "ids": (target.id_type, (target.tokens,), "n_frames"),
        "kind": (np.dtype(np.uint8), (), "n_frames"),
        "text_start": (np.dtype(np.int64), (), "n_texts"),
        "text_steps": (np.dtype(np.int64), (), "n_texts"),
        "text": (np.dtype(np.float32), (target.text_dim or 0,), "n_texts"),
        "system_runs": (np.dtype(np.int64), (2,), "n_runs"),
        "labels": (target.id_type, (target.tokens,), "n_labels"),
        "confidence": (np.dtype(np.float16), (), "n_confidences"),
    }


def write_table(folder: Path, rows: Iterable[Row], checksums: Mapping[str, int]) -> None:
    """Complete a build, whose arrays are written, with its table.

    Args:
        folder: of the build.
        rows: one a recording.
        checksums: CRC-32 of the rows of every array.
    """
    arrays = {name: [*_stamp(folder / f"{name}.npy"), checksum] for name, checksum in checksums.items()}
    content = json.dumps({"arrays": arrays, "rows": [vars(row) for row in rows]})[1:]
    (folder / "table.json").write_text(f'{{"crc32": {zlib.crc32(content.encode())},\n{content}')  # json.dumps is ASCII


def _stamp(path: Path) -> tuple[int, int]:
    """Size and time of the last change of a file."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def read_table(folder: Path) -> tuple[list[Row], dict[str, list[int]]]:
    """The rows of a build, and size, time and checksum of its arrays; a ValueError if they are none."""
    with open_regular(folder / "table.json") as file:
        data = file.read()
    try:
        table = json.loads(data)
        intact = table["crc32"] == zlib.crc32(data.partition(b"\n")[2])
        rows, stamps = [Row(**row) for row in table["rows"]], table["arrays"]
    except (TypeError, KeyError) as error:
        raise ValueError(f"table.json: {type(error).__name__}: {error}") from error
    if not intact:
        raise ValueError("table.json is not what was written: its checksum differs")
    return rows, stamps


def open_arrays(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of a build; empty ones cannot be memory-mapped.

    Raises:
        OSError, ValueError: one is damaged or not there.
    """

    def load(path: Path) -> np.ndarray:
        with open_regular(path) as file:
            np.lib.format.read_magic(file)
            shape, by_column, dtype = np.lib.format.read_array_header_1_0(file)
        if by_column and len(shape) > 1:
            raise ValueError("rows and columns are exchanged")
        return np.empty(shape, dtype) if 0 in shape else np.load(path, mmap_mode="r")

    arrays = {}
    for name in ARRAYS:
        try:
            arrays[name] = load(folder / f"{name}.npy")
        except OSError:
            raise
        except Exception as error:  # of many kinds: numpy reads a header as Python source
            raise ValueError(f"{name}.npy: {error}") from error
    return arrays


def _check_content(path: Path, array: np.ndarray, stamp: list[int], always: bool) -> None:
    """Raise a ValueError if an array is not the one that was written: see the module's docstring."""
    size, changed, checksum = stamp
    if not always and (size, changed) == _stamp(path):
        return
    found = 0
    data = array.reshape(-1).view(np.uint8) if array.size else np.empty(0, np.uint8)
    for start in range(0, len(data), CHUNK):
        found = zlib.crc32(data[start : start + CHUNK].data, found)
    if found != checksum:
        raise ValueError(f"{path.name} is not what was written: its checksum differs")


def total_unknown(rows: Iterable[Row]) -> Counter[str]:
    """Names that the action space lacks, and how many steps hold them."""
    total: Counter[str] = Counter()
    for row in rows:
        total.update(row.unknown)
    return total
