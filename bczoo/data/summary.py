"""What recordings hold, in a few lines, and what of it nobody can learn from.

Place in the pipeline: the data module prints a summary when a training starts, ``bczoo data check`` at its end.
Counts come from the index. Frames are looked at in a bounded sample, a few of at most eight recordings, none of which
has to be brought first, so that a start is not delayed by more than about a second; the summary says how large the
sample was.

Shape legend: n steps of a recording, A action tokens per step.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from bczoo.core.actions import BinnedGroup, HeldGroup
from bczoo.data.errors import RecordingError
from bczoo.data.index import Index
from bczoo.data.recording import LEARNED
from bczoo.data.video import sample_frames

MOST_STEPS = 2_000_000  # whose actions are looked at, 28 hours
MOST_VIDEOS = 8
PLACES = 4  # of a video, evenly spaced
RUN = 5  # frames in a row at a place
SECONDS = 1.0  # after which no further place is looked at
SAME = 4  # levels of 256 by which frames of one picture differ in a video
BLACK = 24  # brightest level of a frame that counts as black
FEW_WINDOWS = 10
NAMES_SHOWN = 12


@dataclass
class FrameSample:
    """What a sample of frames shows.

    Args:
        recordings: recordings that were looked at.
        frames: frames that were looked at.
        pairs: how many of these directly followed another one.
        unchanged: how many of the pairs show the same twice.
        black: how many frames are black.
        still: recordings in which all frames of the sample are the same.
        brightness: mean level of every frame, 0 to 255.
    """

    recordings: int = 0
    frames: int = 0
    pairs: int = 0
    unchanged: int = 0
    black: int = 0
    still: list[str] = field(default_factory=list)
    brightness: list[float] = field(default_factory=list)


@dataclass
class Summary:
    """What recordings hold.

    Args:
        recordings: how many.
        hours: of play.
        windows: of the policy's steps; None if nobody asked.
        steps: actions of a user that were looked at.
        sampled: recordings that these are of.
        idle: how many of these steps press and move nothing.
        never: names that none of these steps holds, as ``group:name``.
        single_action: all these steps hold the same action.
        sample: frames that were looked at; None if nobody asked.
        resampled: how many recordings are resampled, a line for each rate.
    """

    recordings: int
    hours: float
    windows: int | None = None
    steps: int = 0
    sampled: int = 0
    idle: int = 0
    never: list[str] = field(default_factory=list)
    single_action: bool = False
    sample: FrameSample | None = None
    resampled: list[str] = field(default_factory=list)

    @property
    def size(self) -> str:
        """Recordings, hours and windows, in words."""
        text = f"{self.recordings:,} recording{'s' * (self.recordings != 1)}, {self.hours:.2f} h"
        return text if self.windows is None else f"{text}, {self.windows:,} window{'s' * (self.windows != 1)}"

    def lines(self) -> list[str]:
        """Rates, actions and frames, a line each."""
        out = [f"rate     {line}" for line in self.resampled]
        if self.steps:
            of = "" if self.sampled == self.recordings else f", of {self.sampled:,} recordings"
            never = ", ".join(self.never[:NAMES_SHOWN]) + (", ..." if len(self.never) > NAMES_SHOWN else "")
            out.append(
                f"actions  {self.idle / self.steps:.1%} of {self.steps:,} steps are no-ops{of}"
                + (
                    f"; {len(self.never)} keys or buttons nobody presses, so nor will the policy: {never}"
                    if never
                    else ""
                )
            )
        if (sample := self.sample) is not None and sample.frames:
            out.append(
                f"frames   {sample.unchanged / max(sample.pairs, 1):.1%} show the same as the one before, "
                f"{sample.black / sample.frames:.1%} are black (of {sample.frames} frames of {sample.recordings} "
                f"recording{'s' * (sample.recordings != 1)})"
            )
        return out

    def warnings(self) -> list[str]:
        """What nothing, or hardly anything, can be learned from."""
        out = []
        if self.steps and self.single_action:
            what = "presses and moves nothing" if self.idle == self.steps else "is the same action"
            out.append(f"every step {what}; a policy learns to do just that, whatever it sees")
        if (sample := self.sample) is not None and sample.frames:
            if sample.black == sample.frames:
                out.append(f"all {sample.frames} frames that were looked at are black; was the right window recorded?")
            elif sample.still:
                names = ", ".join(sample.still[:3]) + (", ..." if len(sample.still) > 3 else "")
                out.append(
                    f"the picture never changes in {len(sample.still)} of {sample.recordings} recordings that were "
                    f"looked at ({names}); actions cannot be inferred from it"
                )
        if self.windows is not None and 0 < self.windows < FEW_WINDOWS:
            out.append(f"training has only {self.windows} windows, too few to learn more than these by heart")
        return out


def summarise(
    index: Index,
    recordings: Sequence[int] | np.ndarray,
    windows: int | None = None,
    frame_size: int | tuple[int, int] | None = None,
    seconds: float = SECONDS,
    videos: int = MOST_VIDEOS,
) -> Summary:
    """Sum up recordings.

    Args:
        index: of the recordings.
        recordings: (R,) their numbers.
        windows: how many windows they give, if that is of interest.
        frame_size: height and width in pixels of the frames to look at; None looks at none.
        seconds: after which no further frames are looked at.
        videos: of how many recordings frames are looked at, at most.
    """
    recordings = np.asarray(recordings, np.int64)
    summary = Summary(len(recordings), float(index.n_frames[recordings].sum()) / index.target.fps / 3600, windows)
    summary.resampled = index.resampled(recordings)
    _count_actions(index, recordings, summary)
    if frame_size is not None:
        near = _spread(index.at_hand(recordings), videos)
        summary.sample = _look(index, near, frame_size, time.monotonic() + seconds)
    return summary


def report(training: Summary, validation: Summary | None) -> str:
    """The lines that a training starts with; ``validation`` is None where none was wanted."""
    held_out = "none" if validation is None else validation.size
    lines = [f"data     training {training.size}; validation {held_out}", *training.lines()]
    warnings = training.warnings()
    if validation is not None and not validation.recordings:
        warnings.append("no recording is left for validation; record more, or name a data.val_root")
    return "\n".join([*lines, *(f"warning  {text}" for text in warnings)])


def _spread(recordings: np.ndarray, most: int) -> np.ndarray:
    """At most that many of the recordings, evenly spaced."""
    if len(recordings) <= most:
        return recordings
    return recordings[np.linspace(0, len(recordings) - 1, most).astype(np.int64)]


def _count_actions(index: Index, recordings: np.ndarray, summary: Summary) -> None:
    """Look at the actions of a user, in as many recordings as the bound allows."""
    space = index.target.space
    if space is None:
        return
    neutral = np.array([i for ids in space.neutral.values() for i in ids])
    held = [np.zeros(group.choices if isinstance(group, HeldGroup) else group.tokens, bool) for group in space.groups]
    first: np.ndarray | None = None
    single = True
    average = index.n_frames[recordings].mean() if len(recordings) else 1
    for recording in _spread(recordings, max(int(MOST_STEPS / average), 1)):
        ids, kind = index.labels(int(recording)), index.steps(int(recording))[1]  # (n, A), (n,)
        ids = ids[1:][np.isin(kind[1:], LEARNED)][:MOST_STEPS]
        summary.sampled += 1
        if not len(ids):
            continue
        first = ids[0] if first is None else first
        single = single and bool((ids == first).all())
        summary.steps += len(ids)
        summary.idle += int((ids == neutral).all(axis=1).sum())
        for group, seen in zip(space.groups, held, strict=True):
            tokens = ids[:, space.slices[group.name]]
            if isinstance(group, HeldGroup):
                seen[np.unique(tokens)] = True
            elif not isinstance(group, BinnedGroup):
                seen |= tokens.any(axis=0)
    summary.single_action = single
    for group, seen in zip(space.groups, held, strict=True):
        if not isinstance(group, BinnedGroup):
            nothing = int(isinstance(group, HeldGroup))  # id 0
            names = zip(group.names[nothing:], seen[nothing:], strict=True)
            summary.never += [f"{group.name}:{name}" for name, was in names if not was]


def _look(index: Index, recordings: np.ndarray, frame_size: int | tuple[int, int], deadline: float) -> FrameSample:
    """Look at frames of recordings until the deadline; what cannot be read is left to those who read all of it."""
    sample = FrameSample()
    for recording in recordings.tolist():
        if time.monotonic() > deadline:
            break
        shown: list[np.ndarray] = []  # the first frame of every place
        changes = False
        for run in _runs(index, recording, frame_size, deadline):
            sample.frames += len(run)
            sample.brightness += [float(frame.mean()) for frame in run]
            sample.black += sum(int(frame.max()) < BLACK for frame in run)
            same = [_same(a, b) for a, b in pairwise(run)]
            sample.pairs += len(same)
            sample.unchanged += sum(same)
            changes |= not all(same)
            shown.append(run[0])
        sample.recordings += bool(shown)
        if shown and not changes and all(_same(shown[0], other) for other in shown[1:]):
            sample.still.append(str(index.names[recording]))
    return sample


def _runs(
    index: Index, recording: int, frame_size: int | tuple[int, int], deadline: float
) -> Iterator[list[np.ndarray]]:
    try:
        with index.reading(recording) as folder:
            for run in sample_frames(folder / index.video_name(recording, frame_size), PLACES, RUN):
                yield run
                if time.monotonic() > deadline:
                    return
    except RecordingError:
        return


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and int((np.maximum(a, b) - np.minimum(a, b)).max()) <= SAME
