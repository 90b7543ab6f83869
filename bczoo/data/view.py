"""A recording as a video with its actions and instructions drawn in: ``bczoo data view``.

Place in the pipeline: for looking at data before training on it. Drawn beside frame i is the action that was
taken after seeing it (annotation i + 1), and under it what is held before and after
(:mod:`bczoo.data.timeline`).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from bczoo.core.actions import Decision
from bczoo.core.errors import UserError
from bczoo.core.files import require_file_target
from bczoo.core.progress import Progress
from bczoo.data.cache import located
from bczoo.data.errors import RecordingError, printable
from bczoo.data.listing import find_recordings
from bczoo.data.reading import Frames
from bczoo.data.recording import (
    LABELLED,
    PSEUDO,
    SYSTEM,
    UNKNOWN,
    USER,
    action_values,
    known_action,
    read_annotation,
    text_length,
)
from bczoo.data.video import VideoWriter, choose_video, iterate_frames, probe

KEYBOARD_MOUSE = ("keys", "mouse_buttons", "mouse_dx", "mouse_dy")
GAMEPAD = ("buttons", "left_stick_x", "left_stick_y", "right_stick_x", "right_stick_y")
SLOWEST, FASTEST = 0.01, 1000.0  # frames per second that a video can show
CONTAINERS = (".mp4", ".mkv", ".mov", ".avi")
WHO = {UNKNOWN: "unknown", USER: "user", SYSTEM: "system", LABELLED: "system, expert labelled", PSEUDO: "pseudo"}


def view(recording: str, out: str, start: int = 0, frames: int | None = None) -> str:
    """Write a recording with its actions and instructions drawn in as a video.

    Beside every frame is the action that was taken after seeing it, and under it a timeline of two seconds before and
    after: what is held when, and the mouse's or the sticks' motion. What begins at its white line answers the frame.

    Args:
        recording: folder of the recording, its folder in an archive (batches/batch_1.tar.gz/REC), or a URL of either.
        out: video file to write.
        start: first frame.
        frames: how many frames; all if left out.

    Returns:
        The path of the video.
    """
    with located(recording) as folder:
        _draw(folder, out, start, frames)
    return out


def _draw(folder: Path, out: str, start: int, frames: int | None) -> None:
    """Write what :func:`view` writes of the recording in a folder."""
    from bczoo.data.timeline import Timeline
    from bczoo.games.render import render_decision

    rows = find_recordings(folder) if folder.is_dir() else []
    if [row.path for row in rows] != ["."]:
        raise RecordingError(folder, "not the folder of one recording (annotation.proto and a video)")
    if (video := choose_video(rows[0].videos, 10**6)) is None:
        raise RecordingError(folder, "no video")
    _check_out(out)
    probe(folder / video)
    annotation = read_annotation(folder)
    steps, fps = annotation.frame_annotations, annotation.metadata.frames_per_second or 20.0
    if not SLOWEST <= fps <= FASTEST:
        raise RecordingError(folder, f"recorded at {fps:g} frames per second, which no video can show")
    stop = len(steps) if frames is None else min(start + frames, len(steps))
    if not 0 <= start < stop:
        raise RecordingError(folder, f"has frames 0..{len(steps) - 1}, wanted are {start}..{stop - 1}")
    groups = _groups(folder, steps)
    captions = instructions(folder, steps, fps)
    timeline = Timeline(steps, groups, fps)
    with VideoWriter(out, fps) as writer:
        images = iterate_frames(folder / video, start)
        for i, image in Progress(zip(range(start, stop), images, strict=False), "Drawing", stop - start, disable=None):
            # The last frame has no annotation after it, so no action is known there.
            kind, action = known_action(steps[i + 1]) if i + 1 < len(steps) else (UNKNOWN, None)
            values = action_values(action, groups) if action is not None else _nothing(groups)
            caption = f"{i / fps:.1f} s  {WHO[kind]}  {captions[min(i + 1, len(steps) - 1)]}"
            picture = render_decision(image, Decision(values), caption.strip())
            writer.add(np.concatenate([picture, timeline.draw(i, picture.shape[1])]))
    print(f"wrote {printable(out)}, {stop - start} frames")


def _check_out(out: str) -> None:
    """Raise unless a video can be written to ``out``."""
    path = Path(out)
    if path.suffix not in CONTAINERS and not path.is_dir():
        raise UserError(f"--out {out} does not end like a video file: {', '.join(CONTAINERS)}")
    require_file_target(path, "--out", "clip.mp4")
    if not path.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {path.parent}")


def _groups(folder: Path, steps: Frames) -> tuple[str, ...]:
    """The action groups to draw, gamepad or keyboard and mouse; an error if one holds no finite number."""
    groups = GAMEPAD if any(_uses_gamepad(step) for step in steps) else KEYBOARD_MOUSE
    for i, step in enumerate(steps):
        kind, action = known_action(step)
        values = {} if kind == UNKNOWN else action_values(action, groups)
        for group, value in values.items():
            if not isinstance(value, list) and not math.isfinite(value):
                raise RecordingError(folder, f"annotation {i}: {group} is {value}")
    return groups


def _uses_gamepad(step: Any) -> bool:
    return known_action(step)[0] != UNKNOWN and known_action(step)[1].HasField("game_pad")


def _nothing(groups: tuple[str, ...]) -> dict[str, Any]:
    return {group: [] if group in ("keys", "mouse_buttons", "buttons") else 0 for group in groups}


def instructions(folder: Path, steps: Frames, fps: float) -> list[str]:
    """The instruction that holds at every annotation, "" for none."""
    captions = [""] * len(steps)
    for i, step in enumerate(steps):
        for text in step.frame_text_annotation[:1]:
            length = min(max(text_length(text.duration, fps, folder, i), 0), len(steps) - i)
            captions[i : i + length] = [text.instruction] * length
    return captions
