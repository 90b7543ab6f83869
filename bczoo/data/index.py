"""The index of recordings: everything but the pixels, in flat memory-mapped arrays.

Place in the pipeline: `open_index` brings the cached index up to date (`index_build.py`) and serves steps and
texts to `windows.py` and `dataset.py`. Recordings are numbered through all roots. Worker processes share the
mapped pages. :meth:`Index.reading` is where a recording becomes a folder: its own, or one in the cache (`cache.py`).

Shape legend: R recordings, n steps of one, A action tokens per step, E text events of one, D text width, W
windows.
"""

from __future__ import annotations

import hashlib
import itertools
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bczoo.core.actions import ActionSpace
from bczoo.data.cache import Cache, Pack
from bczoo.data.errors import NoRecordingsError, RecordingError
from bczoo.data.index_build import update
from bczoo.data.index_files import COUNTS, Build, Target, layout, open_arrays, read_table, total_unknown
from bczoo.data.listing import base, exists, walk_recordings
from bczoo.data.recording import PSEUDO
from bczoo.data.resample import Resampling
from bczoo.data.stores import Root, is_url
from bczoo.data.video import choose_video


def open_index(
    roots: str | Path | Sequence[str | Path],
    space: ActionSpace | None,
    fps: float = 20.0,
    text_dim: int | None = 768,
    scan: bool = True,
    processes: int = 0,
    verify: bool = False,
    cache: Cache | None = None,
) -> Index:
    """The index of all recordings under one or several roots.

    Args:
        roots: folders of recordings or of archives of them, archives, and URLs of either (``hf://``, ``s3://``, ...).
        space: action space that actions are mapped to; None reads only whose the actions are.
        fps: steps per second that recordings are brought to.
        text_dim: values of a text embedding; None reads no text.
        scan: look for new and changed recordings; False takes the last index as it is, if there is one.
        processes: parallel processes for parsing new recordings.
        verify: compare the index on disk with its checksums first.
        cache: where archives and recordings of stores are unpacked; the default one if left out.

    Raises:
        NoRecordingsError: a root does not exist or holds no recording; says how to get some.
        UserError: a store cannot be read.
    """
    target, cache = Target(space, fps, text_dim), cache or Cache()
    builds = []
    for root in as_roots(roots):
        build = None if scan else Build.open(root, target, verify)
        if build is None and exists(root):
            build = update(root, target, processes, verify, cache)
        if build is None:
            raise _no_recordings(root)
        builds.append((root, build))
    return Index(builds, target, cache)


def as_roots(roots: str | Path | Sequence[str | Path]) -> list[Root]:
    """One or several roots as a list: paths, and URLs as they are."""
    listed = [roots] if isinstance(roots, str | Path) else roots
    return [root if isinstance(root, str) and is_url(root) else Path(root) for root in listed]


def require_recordings(roots: str | Path | Sequence[str | Path]) -> None:
    """Raise a NoRecordingsError that says how to get recordings, unless every root has some.

    Looks no further than the first recording of each, and not into stores, which are listed when they are indexed.
    """
    for root in as_roots(roots):
        if not is_url(root) and (not exists(root) or next(walk_recordings(root), None) is None):
            raise _no_recordings(root)


def _no_recordings(root: Root) -> NoRecordingsError:
    if isinstance(root, str):
        return NoRecordingsError(f"{root} holds neither recordings nor archives of them (*.tar, *.tar.gz)")
    what = "holds no recordings" if root.is_dir() else "(data.root) is not a folder"
    return NoRecordingsError(
        f"{root} {what}. Record some: "
        f"bczoo record --env doom/defend_the_center --agent expert --episodes 20 --out {root}; "
        f"or bring some of the public Pixels2Play dataset: bczoo data download p2p-toy --out {root}"
    )


class Index:
    """Recordings of one or several roots, by number.

    Attributes:
        target: action space, rate and text width that the steps are in.
        names: (R,) names, the folder below the root.
        problems: (R,) what is wrong with a recording, or "".
        n_frames: (R,) int64, steps; 0 where there is a problem.
        n_recorded: (R,) int64, frames of the videos; other than the steps where a recording is resampled.
        recorded_fps: (R,) frames per second from which a recording is resampled; 0 if it is not.
        hashes: (R,) uint64, from the folder's own name, so that moving batches of recordings changes nothing.
        unknown: names that the action space lacks, and how many steps hold them.
        without_embedding: instructions without a usable embedding.
        packs: what has to be brought as a whole before its recordings can be read.
        pack_of: (R,) int64, number of a recording's pack; -1 where the recording lies in a folder of this computer.
        cache: where packs are unpacked.
        roots: the folders, archives and URLs.
        root_of: (R,) int64, number of a recording's root.
    """

    def __init__(self, builds: Sequence[tuple[Root, Build]], target: Target, cache: Cache) -> None:
        self.target = target
        self.cache = cache
        rows = [row for _, build in builds for row in build.rows]
        self.names = np.array([row.name for row in rows])
        self.problems = np.array([row.problem for row in rows])
        self.n_frames = np.array([row.n_frames for row in rows], np.int64)
        self.n_recorded = np.array([row.n_recorded for row in rows], np.int64)
        self.recorded_fps = np.array([row.recorded_fps for row in rows])
        self.hashes = np.array([name_hash(row.name) for row in rows], np.uint64)
        self.unknown: Counter[str] = total_unknown(rows)
        self.without_embedding = sum(row.without_embedding for row in rows)
        self.roots = [root for root, _ in builds]
        self._paths = np.array([row.path for row in rows])
        self._videos = np.array(["/".join(row.videos) for row in rows])
        self._folders = [build.folder for _, build in builds]
        self._arrays = [build.arrays for _, build in builds]
        self.root_of = np.repeat(np.arange(len(builds)), [len(build.rows) for _, build in builds])
        self._bytes = np.array([row.n_bytes for row in rows], np.int64)
        packs: dict[tuple[int, str], tuple[int, Pack]] = {}
        for part, row in zip(self.root_of.tolist(), rows, strict=True):
            if row.pack:
                packs.setdefault((part, row.pack), (len(packs), Pack(base(self.roots[part]), row.pack, row.stamp)))
        self.packs = [pack for _, pack in packs.values()]
        numbers = [packs.get((int(part), row.pack), (-1,))[0] for part, row in zip(self.root_of, rows, strict=True)]
        self.pack_of = np.array(numbers, np.int64)

        # How many rows of the arrays each recording has, and where they begin in those of its own root.
        self._counted_by = {name: of for name, (_, _, of) in layout(target).items()}
        self._count = {of: np.array([getattr(row, of) for row in rows], np.int64) for of in COUNTS}
        self._start = {of: np.zeros(len(rows), np.int64) for of in COUNTS}
        for part, of in itertools.product(range(len(builds)), COUNTS):
            count = self._count[of][here := self.root_of == part]
            self._start[of][here] = np.cumsum(count) - count
        # System runs of all recordings on one axis, on which recording r covers n_frames[r] places from
        # _axis[r].
        self._axis = np.cumsum(self.n_frames) - self.n_frames
        runs = np.concatenate([build.arrays["system_runs"] for _, build in builds])
        self._runs = runs + np.repeat(self._axis, self._count["n_runs"])[:, None]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def usable(self) -> np.ndarray:
        """Numbers of the recordings without a problem."""
        return np.flatnonzero(self.n_frames > 0)

    @contextmanager
    def reading(self, recording: int) -> Iterator[Path]:
        """The folder of a recording, which stays as long as the block runs; its pack is brought if it is not there.

        Raises:
            UserError: the pack cannot be brought.
        """
        path, number = str(self._paths[recording]), int(self.pack_of[recording])
        if number < 0:
            yield Path(self.roots[self.root_of[recording]]) / path
            return
        pack = self.packs[number]
        with self.cache.hold(pack) as folder:
            yield folder / path.removeprefix(pack.path).lstrip("/")

    def at_hand(self, recordings: np.ndarray) -> np.ndarray:
        """Those of the recordings that can be read without bringing a pack first."""
        there = np.array([self.cache.has(pack) for pack in self.packs] + [True])  # the last one is number -1
        return recordings[there[self.pack_of[recordings]]]

    def pack_sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """Recordings and bytes of every pack once it is unpacked, each (P,)."""
        packed, count = self.pack_of >= 0, len(self.packs)
        where = self.pack_of[packed]
        recordings = np.bincount(where, minlength=count)
        return recordings, np.bincount(where, self._bytes[packed], count).astype(np.int64)

    def video_name(self, recording: int, size: int | Sequence[int]) -> str:
        """The file of a recording to read frames of a size from: of a square, or height and width."""
        return choose_video(self.video_names(recording), size) or ""

    def video_frames(self, recording: int, start: int, count: int) -> Sequence[int]:
        """Numbers of the frames in the video that steps ``start .. start + count - 1`` show."""
        if not (fps := float(self.recorded_fps[recording])):
            return range(start, start + count)
        return Resampling(fps, self.target.fps).frames(start, count).tolist()

    def resampled(self, recordings: np.ndarray | None = None) -> list[str]:
        """From which rate to which how many of the recordings are resampled, a line for each rate."""
        rates = self.recorded_fps[self.usable if recordings is None else recordings]
        counts = Counter(rates[rates > 0].tolist())
        return [
            f"{n} recording{'s' * (n != 1)} resampled from {fps:g} to {self.target.fps:g} fps"
            for fps, n in sorted(counts.items())
        ]

    def stamps(self) -> list[tuple[str, list[list]]]:
        """Per recording its path and what its files were when it was indexed, read from the table on disk."""
        return [(row.path, row.stamp) for folder in self._folders for row in read_table(folder)[0]]

    def video_names(self, recording: int) -> list[str]:
        """All videos of a recording."""
        return str(self._videos[recording]).split("/")

    def steps(self, recording: int) -> tuple[np.ndarray, np.ndarray]:
        """Action ids (n, A) and kinds (n,) by annotation."""
        return np.asarray(self._rows("ids", recording)), np.asarray(self._rows("kind", recording))

    @property
    def has_labels(self) -> bool:
        """Whether a recording holds an expert's labels apart from what was done."""
        return bool(self._count["n_labels"].any())

    def labels(self, recording: int) -> np.ndarray:
        """Action ids (n, A) by annotation that are learned from: an expert's, or what was done."""
        apart = self._rows("labels", recording)
        return np.asarray(apart) if len(apart) else self.steps(recording)[0]

    def has_guesses(self, recording: int) -> bool:
        """Whether a recording holds steps that a model has labelled and nobody else."""
        return bool(self._count["n_confidences"][recording])

    def confidence(self, recording: int) -> np.ndarray:
        """How sure a model was of the steps (n,) that it has labelled, float16; 1 at all others."""
        if not self.has_guesses(recording):
            return np.ones(self.n_frames[recording], np.float16)
        return np.where(self.steps(recording)[1] == PSEUDO, self._rows("confidence", recording), np.float16(1))

    def texts(self, recording: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Text events: first annotation (E,), steps (E,) and embeddings (E, D, still on disk)."""
        begins, steps, embeddings = (self._rows(name, recording) for name in ("text_start", "text_steps", "text"))
        return np.asarray(begins), np.asarray(steps), embeddings

    def _rows(self, array: str, recording: int) -> np.ndarray:
        """The rows of a recording in an array of its root."""
        of = self._counted_by[array]
        start = self._start[of][recording]
        rows: np.ndarray = self._arrays[self.root_of[recording]][array][start : start + self._count[of][recording]]
        return rows

    def system_only(self, recording: np.ndarray, first: np.ndarray, steps: int) -> np.ndarray:
        """Whether annotations ``first .. first + steps - 1`` are all system actions, (W,) bool."""
        if not len(self._runs):
            return np.zeros(len(recording), bool)
        begin = self._axis[recording] + first
        run = np.searchsorted(self._runs[:, 0], begin, side="right") - 1
        return (run >= 0) & (self._runs[run, 1] >= begin + steps)

    def report(self, strict: bool = False, warn: bool = True) -> None:
        """Warn once of broken recordings and once of unknown names; raise instead if ``strict``.

        Args:
            strict: raise instead of warning.
            warn: False for all but one of several processes, which raise the same but need not repeat warnings.
        """
        broken = np.flatnonzero(self.problems != "")
        if len(broken):
            first = "; ".join(f"{self.names[i]} ({self.problems[i]})" for i in broken[:3])
            more = "" if len(broken) <= 3 else "; ..."
            roots = " ".join(str(root) for root in self.roots)
            text = (
                f"{len(broken)} of {len(self)} recordings are broken: {first}{more}. "
                f"`bczoo data check {roots}` lists all"
            )
            if strict:
                raise RecordingError(roots, text)
            if warn:
                warnings.warn(f"{text}; they are skipped.", stacklevel=2)
        if self.unknown:
            space = self.target.space.name if self.target.space else ""
            most = ", ".join(f"{name} ({steps} steps)" for name, steps in self.unknown.most_common(5))
            text = f"the action space {space!r} lacks names that the recordings hold: {most}"
            if strict:
                raise RecordingError(self.roots[0], f"{text}. Add them to the action space")
            if warn:
                warnings.warn(f"{text}. They are left out; add them to the action space to learn them.", stacklevel=2)
        if not len(self.usable):
            raise RecordingError(self.roots[0], "no recording is usable; see the warning above")

    def __getstate__(self) -> dict[str, Any]:
        """Arrays on disk are not copied to other processes, but opened there."""
        return {k: v for k, v in self.__dict__.items() if k != "_arrays"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._arrays = [open_arrays(folder) for folder in self._folders]


def name_hash(name: str) -> int:
    """64 bits from the last part of a recording's name."""
    return int.from_bytes(hashlib.blake2b(name.rsplit("/", 1)[-1].encode(), digest_size=8).digest(), "little")
