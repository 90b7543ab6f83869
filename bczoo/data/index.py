"""The index of recordings: everything but the pixels, in flat memory-mapped arrays.

Place in the pipeline: `open_index` brings the cached index up to date (`index_build.py`) and serves steps and
texts to `windows.py` and `dataset.py`. Recordings are numbered through all roots. Worker processes share the
mapped pages.

Shape legend: R recordings, n steps of one, A action tokens per step, E text events of one, D text width, W
windows.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bczoo.core.actions import ActionSpace
from bczoo.data.errors import NoRecordingsError, RecordingError
from bczoo.data.index_build import update, walk_recordings
from bczoo.data.index_files import Build, Target, open_arrays, total_unknown
from bczoo.data.recording import PSEUDO
from bczoo.data.resample import Resampling
from bczoo.data.video import choose_video


def open_index(
    roots: str | Path | Sequence[str | Path],
    space: ActionSpace | None,
    fps: float = 20.0,
    text_dim: int | None = 768,
    scan: bool = True,
    processes: int = 0,
    verify: bool = False,
) -> Index:
    """The index of all recordings under one or several folders.

    Args:
        roots: folders of recordings.
        space: action space that actions are mapped to; None reads only whose the actions are.
        fps: steps per second that recordings are brought to.
        text_dim: values of a text embedding; None reads no text.
        scan: look for new and changed recordings; False takes the last index as it is, if there is one.
        processes: parallel processes for parsing new recordings.
        verify: compare the index on disk with its checksums first.

    Raises:
        NoRecordingsError: a root does not exist or holds no recording; says how to get some.
    """
    target = Target(space, fps, text_dim)
    builds = []
    for root in as_paths(roots):
        build = None if scan else Build.open(root, target, verify)
        if build is None and root.is_dir():
            build = update(root, target, processes, verify)
        if build is None:
            raise _no_recordings(root)
        builds.append((root, build))
    return Index(builds, target)


def as_paths(roots: str | Path | Sequence[str | Path]) -> list[Path]:
    """One or several folders as a list."""
    return [Path(roots)] if isinstance(roots, str | Path) else [Path(root) for root in roots]


def require_recordings(roots: str | Path | Sequence[str | Path]) -> None:
    """Raise a NoRecordingsError that says how to get recordings, unless every root has some.

    Looks no further than the first recording of each.
    """
    for root in as_paths(roots):
        if not root.is_dir() or next(walk_recordings(root), None) is None:
            raise _no_recordings(root)


def _no_recordings(root: Path) -> NoRecordingsError:
    if packed := sorted(root.glob("*.tar.gz")):
        return NoRecordingsError(
            f"{root} holds {len(packed)} packed batches ({packed[0].name}, ...), which are not read. "
            f"Unpack them first: for f in {root}/*.tar.gz; do tar -xzf $f -C {root}; done"
        )
    what = "holds no recordings" if root.is_dir() else "(data.root) is not a folder"
    return NoRecordingsError(
        f"{root} {what}. Record some: "
        f"bczoo record --env doom/defend_the_center --agent expert --episodes 20 --out {root}; "
        "or unpack batches of the public Pixels2Play dataset (8,300 h, on the Hugging Face Hub) there."
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
    """

    def __init__(self, builds: Sequence[tuple[Path, Build]], target: Target) -> None:
        self.target = target
        rows = [row for _, build in builds for row in build.rows]
        self.names = np.array([row.name for row in rows])
        self.problems = np.array([row.problem for row in rows])
        self.n_frames = np.array([row.n_frames for row in rows], np.int64)
        self.n_recorded = np.array([row.n_recorded for row in rows], np.int64)
        self.recorded_fps = np.array([row.recorded_fps for row in rows])
        self.hashes = np.array([name_hash(row.name) for row in rows], np.uint64)
        self.unknown: Counter[str] = total_unknown(rows)
        self.without_embedding = sum(row.without_embedding for row in rows)
        self._roots = [root for root, _ in builds]
        self._paths = np.array([row.path for row in rows])
        self._videos = np.array(["/".join(row.videos) for row in rows])
        self._folders = [build.folder for _, build in builds]
        self._arrays = [build.arrays for _, build in builds]
        self._part = np.repeat(np.arange(len(builds)), [len(build.rows) for _, build in builds])

        def starts(counts: list[np.ndarray]) -> np.ndarray:
            """Where each recording begins in the arrays of its own root."""
            return np.concatenate([np.cumsum(c) - c for c in counts])

        self._step_start = starts([np.array([r.n_frames for r in b.rows], np.int64) for _, b in builds])
        self._n_texts = np.array([row.n_texts for row in rows], np.int64)
        self._text_start = starts([np.array([r.n_texts for r in b.rows], np.int64) for _, b in builds])
        self._n_labels = np.array([row.n_labels for row in rows], np.int64)
        self._label_start = starts([np.array([r.n_labels for r in b.rows], np.int64) for _, b in builds])
        self._n_confidences = np.array([row.n_confidences for row in rows], np.int64)
        self._confidence_start = starts([np.array([r.n_confidences for r in b.rows], np.int64) for _, b in builds])
        # System runs of all recordings on one axis, on which recording r covers n_frames[r] places from
        # _axis[r].
        self._axis = np.cumsum(self.n_frames) - self.n_frames
        n_runs = np.array([row.n_runs for row in rows], np.int64)
        runs = np.concatenate([build.arrays["system_runs"] for _, build in builds])
        self._runs = runs + np.repeat(self._axis, n_runs)[:, None]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def usable(self) -> np.ndarray:
        """Numbers of the recordings without a problem."""
        return np.flatnonzero(self.n_frames > 0)

    def folder(self, recording: int) -> Path:
        """The folder of a recording."""
        return self._roots[self._part[recording]] / str(self._paths[recording])

    def video(self, recording: int, size: int) -> Path:
        """The video to read frames of ``size`` pixels from."""
        name = choose_video(str(self._videos[recording]).split("/"), size)
        return self.folder(recording) / (name or "")

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

    def videos(self, recording: int) -> list[Path]:
        """All videos of a recording."""
        return [self.folder(recording) / name for name in str(self._videos[recording]).split("/")]

    def steps(self, recording: int) -> tuple[np.ndarray, np.ndarray]:
        """Action ids (n, A) and kinds (n,) by annotation."""
        arrays, start = self._arrays[self._part[recording]], self._step_start[recording]
        where = slice(start, start + self.n_frames[recording])
        return np.asarray(arrays["ids"][where]), np.asarray(arrays["kind"][where])

    @property
    def has_labels(self) -> bool:
        """Whether a recording holds an expert's labels apart from what was done."""
        return bool(self._n_labels.any())

    def labels(self, recording: int) -> np.ndarray:
        """Action ids (n, A) by annotation that are learned from: an expert's, or what was done."""
        if not self._n_labels[recording]:
            return self.steps(recording)[0]
        start = self._label_start[recording]
        return np.asarray(self._arrays[self._part[recording]]["labels"][start : start + self.n_frames[recording]])

    def has_guesses(self, recording: int) -> bool:
        """Whether a recording holds steps that a model has labelled and nobody else."""
        return bool(self._n_confidences[recording])

    def confidence(self, recording: int) -> np.ndarray:
        """How sure a model was of the steps (n,) that it has labelled, float16; 1 at all others."""
        if not self._n_confidences[recording]:
            return np.ones(self.n_frames[recording], np.float16)
        start = self._confidence_start[recording]
        sure = self._arrays[self._part[recording]]["confidence"][start : start + self.n_frames[recording]]
        return np.where(self.steps(recording)[1] == PSEUDO, sure, np.float16(1))

    def texts(self, recording: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Text events: first annotation (E,), steps (E,) and embeddings (E, D, still on disk)."""
        arrays, start = self._arrays[self._part[recording]], self._text_start[recording]
        where = slice(start, start + self._n_texts[recording])
        return (
            np.asarray(arrays["text_start"][where]),
            np.asarray(arrays["text_steps"][where]),
            arrays["text"][where],
        )

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
            roots = " ".join(str(root) for root in self._roots)
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
                raise RecordingError(self._roots[0], f"{text}. Add them to the action space")
            if warn:
                warnings.warn(f"{text}. They are left out; add them to the action space to learn them.", stacklevel=2)
        if not len(self.usable):
            raise RecordingError(self._roots[0], "no recording is usable; see the warning above")

    def __getstate__(self) -> dict[str, Any]:
        """Arrays on disk are not copied to other processes, but opened there."""
        return {k: v for k, v in self.__dict__.items() if k != "_arrays"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._arrays = [open_arrays(folder) for folder in self._folders]


def name_hash(name: str) -> int:
    """64 bits from the last part of a recording's name."""
    return int.from_bytes(hashlib.blake2b(name.rsplit("/", 1)[-1].encode(), digest_size=8).digest(), "little")
