"""``bczoo data export``.

Place in the pipeline: beside training, for those who want recordings of this project in another library. Actions are
taken as they were recorded, not as ids of a policy, so that nothing is rounded to bins.
"""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bczoo.core import arguments
from bczoo.core.actions import ActionSpace, BinnedGroup, HeldGroup, Values
from bczoo.core.errors import UserError
from bczoo.core.files import require_folder_target, sweep, write_errors
from bczoo.core.frames import resize
from bczoo.core.progress import Progress
from bczoo.data.errors import RecordingError, printable
from bczoo.data.index import Index, open_index
from bczoo.data.recording import LABELLED, LEARNED, UNKNOWN, action_values, known_action, read_annotation
from bczoo.data.video import VideoWriter, frame_times, iterate_frames, probe
from bczoo.data.view import instructions
from bczoo.exports.lerobot import DatasetWriter, Episode

LARGEST_PX = 4096
OFF_S = 5e-5  # half of what LeRobot allows a frame to be off its time
USUAL_PX = 192


@dataclass(frozen=True)
class _Frames:
    """Height and width of the frames, whether others are brought to it, and the quality of what is encoded anew."""

    shape: tuple[int, int]
    resize: bool
    crf: int


@dataclass
class ExportReport:
    """What became of recordings.

    Args:
        out: the folder.
        episodes: how many were written.
        steps: of these.
        fps: steps per second.
        copied: videos that were copied as they are.
        not_learned: steps whose action is unknown, or a policy's own.
        beyond: names that the action space lacks, so that no column holds them, and how many steps do.
        problems: why a recording was left out, by its name.
    """

    out: str
    episodes: int = 0
    steps: int = 0
    fps: int = 0
    copied: int = 0
    not_learned: int = 0
    beyond: dict[str, int] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    @property
    def status(self) -> int:
        """Exit status: 1 if a recording was left out."""
        return int(bool(self.problems))

    def __str__(self) -> str:
        hours, known = self.steps / self.fps / 3600, self.steps - self.not_learned
        lines = [
            f"{self.out}: {self.episodes:,} episodes, {hours:.2f} h, {self.steps:,} steps of {self.fps} a second",
            f"  videos   {self.copied:,} of {self.episodes:,} copied as they are, the others encoded anew",
            f"  known    the action of {known:,} steps; of {self.not_learned:,} it is unknown or a policy's own "
            "(known_action is false), among them the last one of every episode",
        ]
        if self.beyond:
            names = ", ".join(f"{name} {steps:,}" for name, steps in self.beyond.items())
            lines.append(f"  beyond   {names} (steps): not in the action space, so in no column")
        if self.problems:
            lines.append(f"{len(self.problems)} not exported:")
            lines += [f"  {name}: {reason}" for name, reason in self.problems.items()]
        return "\n".join(lines)


def export_recordings(
    format: Literal["lerobot"],
    recordings: str,
    out: str,
    fps: int | None = None,
    size: int | None = None,
    action_space: str | dict[str, Any] = "keyboard_mouse",
    crf: int = 23,
) -> ExportReport:
    """Turn recordings into a dataset of another library.

    The dataset appears when it is whole. Videos are copied as they are if they have the wanted size and even times. A
    recording that cannot be used is named with the reason, and the others are exported; the exit status is then 1.

    Args:
        format: lerobot, version 3 of LeRobot's datasets.
        recordings: folder of recordings or of archives of them, an archive, or one recording.
        out: folder to write; must not exist, or be empty.
        fps: steps per second of the dataset, which has one rate; recordings of another are left out. That of most
            recordings if left out.
        size: height and width of the frames in pixels; if left out, that of the first recording's video, and
            recordings of another size are left out.
        action_space: whose names and numbers become the columns of an action.
        crf: quality of videos that have to be encoded anew, 0 (lossless) to 51.
    """
    arguments.whole("crf", crf, 0, 51)
    if fps is not None:
        arguments.whole("fps", fps, 1, 1000)
    if size is not None:
        arguments.whole("size", size, 16, LARGEST_PX)
    require_folder_target(out, "OUT")
    if Path(out).exists() and any(Path(out).iterdir()):
        raise UserError(f"OUT {out} holds something already; datasets are never overwritten, choose another folder")
    space = ActionSpace.of(action_space)
    index = open_index(recordings, space, text_dim=None)
    report = ExportReport(printable(out), beyond=dict(index.unknown.most_common()))
    report.problems = {str(index.names[i]): str(index.problems[i]) for i in np.flatnonzero(index.problems != "")}
    if not len(index.usable):
        raise UserError(f"{recordings}: all {len(index)} recordings are broken; bczoo data check lists what is wrong")
    report.fps = fps or _usual_rate(index)
    frames = _Frames(_shape(index, int(index.usable[0])) if size is None else (size, size), size is not None, crf)
    sweep(Path(out).parent, Path(out).name)
    with write_errors(out):
        writer = DatasetWriter(Path(out), report.fps, _names(space), space.name)
        try:
            for recording in Progress(index.usable.tolist(), "Exporting", len(index.usable), disable=None):
                try:
                    with index.reading(recording) as folder:
                        _export(index, recording, folder, space, writer, report, frames)
                except RecordingError as error:
                    writer.next_video.unlink(missing_ok=True)
                    report.problems[str(index.names[recording])] = error.reason
            if report.episodes:
                writer.close()
        finally:
            writer.discard()
    print(report)
    return report


def _usual_rate(index: Index) -> int:
    """The rate of most recordings."""
    rates = Counter(_rate(index, recording) for recording in index.usable.tolist())
    rate = rates.most_common(1)[0][0]
    if rate != round(rate):
        raise UserError(
            f"most recordings have {rate:g} steps per second, where a dataset needs a whole number; give --fps"
        )
    return round(rate)


def _rate(index: Index, recording: int) -> float:
    return float(index.recorded_fps[recording]) or index.target.fps


def _shape(index: Index, recording: int) -> tuple[int, int]:
    """Height and width of a recording's video."""
    with index.reading(recording) as folder:
        info = probe(folder / index.video_name(recording, USUAL_PX))
    return info.height, info.width


def _export(
    index: Index,
    recording: int,
    folder: Path,
    space: ActionSpace,
    writer: DatasetWriter,
    report: ExportReport,
    wanted: _Frames,
) -> None:
    """Append a recording to the dataset, or raise a RecordingError and leave it as it is."""
    fps = report.fps
    if (rate := _rate(index, recording)) != fps:
        raise RecordingError(folder, f"has {rate:g} steps per second, the dataset {fps}; export it with --fps {rate:g}")
    annotation = read_annotation(folder)
    frames, metadata = annotation.frame_annotations, annotation.metadata
    n = len(frames)
    groups = [group.name for group in space.groups]
    actions, known = np.zeros((n, len(_names(space))), np.float32), np.zeros(n, bool)
    for i in range(1, n):  # annotation i is the action taken after frame i - 1
        kind, action = known_action(frames[i])
        if kind == UNKNOWN:
            continue
        values = action_values(frames[i].expert_action if kind == LABELLED else action, groups)
        actions[i - 1], known[i - 1] = _numbers(values, space), kind in LEARNED
    if not np.isfinite(actions).all():
        raise RecordingError(
            folder, f"annotation {int(np.isfinite(actions).all(1).argmin()) + 1} holds no finite number"
        )
    texts = instructions(folder, frames, fps)
    task = next(iter(metadata.tasks), "")
    about = {
        "recording": str(index.names[recording]),
        "env": metadata.env.env,
        "env_subtype": metadata.env.env_subtype,
        "user": metadata.user,
        "task": task,
    }
    start, copied = _write_video(
        folder / index.video_name(recording, wanted.shape[0]), writer.next_video, n, fps, wanted
    )
    writer.add(Episode(actions, known, [text or task for text in (*texts[1:], texts[-1])], start, about))
    report.episodes, report.steps = report.episodes + 1, report.steps + n
    report.copied, report.not_learned = report.copied + copied, report.not_learned + int((~known).sum())


def _names(space: ActionSpace) -> list[str]:
    """Names of the numbers of an action: ``keys:w``, ``mouse_buttons:0``, ``mouse_dx``."""
    names: list[str] = []
    for group in space.groups:
        if isinstance(group, BinnedGroup):
            names.append(group.name)
        else:  # id 0 of things held is "nothing"
            names += [f"{group.name}:{name}" for name in group.names[isinstance(group, HeldGroup) :]]
    return names


def _numbers(values: Values, space: ActionSpace) -> list[float]:
    """The numbers of an action: 1 for what is held and 0 for what is not, motions and positions as they are."""
    numbers: list[float] = []
    for group in space.groups:
        value = values[group.name]
        if isinstance(group, BinnedGroup):
            numbers.append(value)
        else:
            numbers += [float(name in value) for name in group.names[isinstance(group, HeldGroup) :]]
    return numbers


def _write_video(source: Path, target: Path, n: int, fps: int, wanted: _Frames) -> tuple[float, bool]:
    """Copy a video, or encode it anew where size or times are not those of the dataset.

    Returns:
        Time of its first frame in seconds, and whether it was copied.
    """
    info, times = probe(source), frame_times(source)
    if len(times) != n:
        raise RecordingError(source, f"{source.name}: {len(times)} of {n} frames are there")
    fits = (info.height, info.width) == wanted.shape
    if fits and all(abs(time - times[0] - i / fps) < OFF_S for i, time in enumerate(times)):
        shutil.copyfile(source, target)
        return times[0], True
    if not fits and not wanted.resize:
        height, width = wanted.shape
        reason = f"frames of {info.width}x{info.height}, the dataset has {width}x{height}; --size makes them alike"
        raise RecordingError(source, reason)
    with VideoWriter(target, fps, crf=wanted.crf) as video:
        for frame in iterate_frames(source):
            video.add(frame if fits else resize(frame, wanted.shape[0]))
        if video.n_frames != n:
            raise RecordingError(source, f"{source.name}: {video.n_frames} of {n} frames can be decoded")
    return 0.0, False
