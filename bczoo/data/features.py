"""What a frozen network makes of every frame, on disk: features of an encoder, or ids of a tokenizer.

Place in the pipeline: `features_build.py` computes features before the first step, ``bczoo tokenize`` writes ids once
(`tokens.py`), and `dataset.py` reads windows from here instead of from videos. What trains behind the frozen part sees
what it would have computed from the frames.

    <folder>/<key>/about.json                      what made them, for a reader
    <folder>/<key>/<recording>/features.npy        (n, F), one row a step of the recording, memory-mapped; or tokens.npy
    <folder>/<key>/<recording>/readable.npy        (n,) bool, False where the frame could not be decoded

The key stands for what computes: class, arguments and weights of the network, the type of its numbers, the size of
frames and how they are brought to it. A recording's name stands for its video: path below the root, size and time of
the last change (or the archive's), and the rate it is brought to. A recording's folder is there whole or not at all,
so an interrupted pass goes on behind the last one.

Shape legend: n steps of a recording, F values of a frame, T steps, R recordings.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bczoo.core.errors import UserError
from bczoo.core.files import PartialPath
from bczoo.data.errors import FrameReadError
from bczoo.data.index import Index

READABLE = "readable.npy"
MAPPED = 2048  # files that stay mapped in a process; to read the header of one anew takes longer than its rows
OVERHEAD = 3 * 4096  # bytes of a recording's folder, the headers of its files and what is left of their last blocks


@dataclass(frozen=True)
class Features:
    """Where what a network makes of the frames of an index's recordings lies.

    Args:
        index: of the recordings.
        paths: (R,) their folders: that of what one network makes, and a name of :func:`recording_names`.
        size: values F of a frame.
        dtype: of them on disk.
        field: entry of a batch that holds them: ``features``, or ``tokens`` (ids, which a batch holds as int64).
        remedy: what makes them anew.
    """

    index: Index
    paths: np.ndarray
    size: int
    dtype: torch.dtype
    field: str = "features"
    remedy: str = "start again"

    @property
    def batch_dtype(self) -> torch.dtype:
        """Type of the values in a batch."""
        return torch.int64 if self.field == "tokens" else self.dtype

    def path(self, recording: int) -> Path:
        """The folder of a recording, whether it is there or not."""
        return Path(self.paths[recording])

    def missing(self, recordings: np.ndarray) -> np.ndarray:
        """Those of the recordings that have none yet."""
        return recordings[[not self.path(r).is_dir() for r in recordings.tolist()]]

    def bytes_of(self, recordings: np.ndarray) -> int:
        """Bytes on disk of what some recordings have."""
        return int(self.index.n_frames[recordings].sum()) * self.size * self.dtype.itemsize + OVERHEAD * len(recordings)

    def read_into(self, out: Tensor, recording: int, start: int) -> None:
        """Fill ``out`` (T, F) with the steps from ``start`` on.

        Raises:
            FrameReadError: as for the frames; its ``frames`` are as many as come before the first unreadable one.
            UserError: the recording has none, or not these.
        """
        stop = start + len(out)
        try:
            rows, readable = (_mapped(self.path(recording) / name) for name in (f"{self.field}.npy", READABLE))
            readable = readable[start:stop]
            if rows.shape != (self.index.n_frames[recording], self.size) or len(readable) != len(out):
                raise ValueError(f"it holds {rows.shape}")
            if rows.dtype != numpy_dtype(self.dtype):
                raise ValueError(f"it holds {rows.dtype}")
            numpy_view(out)[:] = rows[start:stop]
        except (OSError, ValueError, EOFError) as error:
            raise UserError(
                f"the {self.field} of recording {self.index.names[recording]} in {self.path(recording)} cannot be read "
                f"({error}); remove that folder and {self.remedy}, so that they are made anew"
            ) from error
        if not readable.all():
            read = int(readable.argmin())
            path = self.path(recording)
            raise FrameReadError(
                path, f"frame {start + read} could not be decoded", np.zeros((read, 0, 0, 3), np.uint8)
            )

    def writing(self, recording: int) -> PartialFeatures:
        """Takes the rows of a recording in order."""
        return PartialFeatures(self, recording)


class PartialFeatures:
    """The rows of a recording while they are computed; :meth:`commit` gives them their name.

    Args:
        features: where they belong.
        recording: whose they are.
    """

    def __init__(self, features: Features, recording: int) -> None:
        n = int(features.index.n_frames[recording])
        self._partial = PartialPath(features.path(recording))
        self._partial.path.mkdir()
        dtype = numpy_dtype(features.dtype)
        # written as it comes: a recording of hours does not fit into memory
        self._file = open(self._partial.path / f"{features.field}.npy", "wb")  # noqa: SIM115  # closed by commit and discard
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (n, features.size)}
        np.lib.format.write_array_header_1_0(self._file, header)
        self._readable = np.zeros(n, bool)
        self._next = 0

    def add(self, rows: Tensor, readable: np.ndarray) -> None:
        """Append the rows (T, F) of the next steps, and which of their frames (T,) could be decoded."""
        numpy_view(rows.cpu().contiguous()).tofile(self._file)
        self._readable[self._next : self._next + len(rows)] = readable
        self._next += len(rows)

    @property
    def complete(self) -> bool:
        """Whether all steps were added."""
        return self._next == len(self._readable)

    def commit(self) -> None:
        """Keep them. Another training that has made the same in the meantime keeps its own."""
        self._file.close()
        np.save(self._partial.path / READABLE, self._readable)
        with contextlib.suppress(FileExistsError):  # commit has discarded these
            self._partial.commit()

    def discard(self) -> None:
        """Remove what was written; harmless after :meth:`commit`."""
        self._file.close()
        self._partial.discard()


def _mapped(path: Path) -> np.ndarray:
    """The array of a file, memory-mapped; it stays so for the next windows, until the file is another one."""
    found = os.stat(path)
    return _map(path, found.st_ino, found.st_size, found.st_mtime_ns)


@lru_cache(MAPPED)
def _map(path: Path, *version: int) -> np.ndarray:
    mapped: np.ndarray = np.load(path, mmap_mode="r")
    return mapped


def numpy_view(tensor: Tensor) -> np.ndarray:
    """The memory of a tensor as numpy sees it; bfloat16, which numpy lacks, as int16 of the same bits."""
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def numpy_dtype(dtype: torch.dtype) -> np.dtype:
    """The type that :func:`numpy_view` gives."""
    return numpy_view(torch.empty(0, dtype=dtype)).dtype


def recording_names(index: Index, frame_size: int | Sequence[int]) -> np.ndarray:
    """(R,) names that stand for the videos of recordings and the steps that are taken from them."""
    names = []
    for number, (path, stamp) in enumerate(index.stamps()):
        video = index.video_name(number, frame_size)
        # an annotation may be written anew, with other actions; where the stamp is an archive's it counts whole
        counts = [entry for entry in stamp if entry[0] == video] or stamp
        text = json.dumps([path, video, counts, int(index.n_frames[number]), float(index.target.fps)])
        names.append(hashlib.blake2b(text.encode(), digest_size=12).hexdigest())
    return np.array(names)


def require_room(folder: Path, need: int, frames: int, field: str, remedy: str) -> None:
    """Raise unless a disk has room for what is kept of some frames."""
    free = shutil.disk_usage(folder).free
    if need > free:
        raise UserError(
            f"the {field} of {frames:,} frames take {need / 1e9:,.3g} GB, and {folder} has {free / 1e9:,.3g} GB left; "
            f"free space there, {remedy}"
        )
