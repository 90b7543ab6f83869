"""A recording as a video with its actions and instructions drawn in: ``bczoo data view``.

Place in the pipeline: for looking at data before training on it. Drawn under frame i is the action that was
taken after seeing it (annotation i + 1).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tqdm import tqdm

from bczoo.actions import Decision
from bczoo.data.errors import RecordingError
from bczoo.data.index_build import find_recordings
from bczoo.data.recording import SYSTEM, UNKNOWN, USER, action_values, known_action, read_annotation
from bczoo.data.video import VideoWriter, choose_video, iterate_frames

KEYBOARD_MOUSE = ("keys", "mouse_buttons", "mouse_dx", "mouse_dy")
GAMEPAD = ("buttons", "left_stick_x", "left_stick_y", "right_stick_x", "right_stick_y")
WHO = {UNKNOWN: "unknown", USER: "user", SYSTEM: "system"}


def view(recording: str, out: str, start: int = 0, frames: int | None = None) -> str:
    """Write a recording with its actions and instructions drawn in as a video.

    Args:
        recording: folder of the recording.
        out: video file to write.
        start: first frame.
        frames: how many frames; all if left out.

    Returns:
        The path of the video.
    """
    from bczoo.games.draw import draw_decision

    folder = Path(recording)
    rows = find_recordings(folder) if folder.is_dir() else []
    if [row.path for row in rows] != ["."]:
        raise RecordingError(folder, "not the folder of one recording (annotation.proto and a video)")
    if (video := choose_video(rows[0].videos, 10**6)) is None:
        raise RecordingError(folder, "no video")
    message = read_annotation(folder)
    steps = message.frame_annotations
    stop = len(steps) if frames is None else min(start + frames, len(steps))
    if not 0 <= start < stop:
        raise RecordingError(folder, f"has frames 0..{len(steps) - 1}, wanted are {start}..{stop - 1}")
    groups = GAMEPAD if any(_uses_gamepad(step) for step in steps) else KEYBOARD_MOUSE
    fps = message.metadata.frames_per_second or 20.0
    captions = _captions(steps, fps)
    with VideoWriter(out, fps) as writer:
        images = iterate_frames(folder / video, start)
        for i, image in tqdm(zip(range(start, stop), images, strict=False), "Drawing", stop - start, disable=None):
            # The last frame has no annotation after it, so no action is known there.
            kind, action = known_action(steps[i + 1]) if i + 1 < len(steps) else (UNKNOWN, None)
            values = action_values(action, groups) if action is not None else _nothing(groups)
            caption = f"{i / fps:.1f} s  {WHO[kind]}  {captions[min(i + 1, len(steps) - 1)]}"
            writer.add(draw_decision(image, Decision(values), caption.strip()))
    print(f"wrote {out}, {stop - start} frames")
    return out


def _uses_gamepad(step: Any) -> bool:
    return step.user_action.HasField("game_pad") or step.system_action.HasField("game_pad")


def _nothing(groups: tuple[str, ...]) -> dict[str, Any]:
    return {group: [] if group in ("keys", "mouse_buttons", "buttons") else 0 for group in groups}


def _captions(steps: Any, fps: float) -> list[str]:
    """The instruction that holds at every annotation."""
    captions = [""] * len(steps)
    for i, step in enumerate(steps):
        for text in step.frame_text_annotation[:1]:
            for j in range(i, min(i + int(text.duration * fps), len(steps))):
                captions[j] = text.instruction
    return captions
