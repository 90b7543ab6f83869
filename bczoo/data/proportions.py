"""Whether recordings and policy bring pictures to a square in the same way.

Place in the pipeline: the data module asks once when it opens its recordings. A policy that learned from squashed
pictures and plays with black bars, or the other way round, sees pictures that it never saw.
"""

from __future__ import annotations

from pathlib import Path

from bczoo.core.frames import LETTERBOX
from bczoo.data.errors import RecordingError
from bczoo.data.index import Index
from bczoo.data.reading import read_metadata
from bczoo.data.recording import ANNOTATION_FILE
from bczoo.data.video import probe

MOST = 64  # recordings that are looked at


def mismatch(index: Index, frame_size: int | tuple[int, int], resize: str) -> str | None:
    """What is wrong with pairing recordings and a policy; None if nothing is, or nothing is known.

    Looks at some of the recordings that need not be brought first.

    Args:
        index: of the recordings.
        frame_size: height and width in pixels of the policy's frames.
        resize: how the policy brings frames to it.
    """
    near = index.at_hand(index.usable)
    for recording in near[:: max(1, len(near) // MOST)].tolist():
        with index.reading(recording) as folder:
            if wrong := _mismatch(folder / index.video_name(recording, frame_size), resize):
                return wrong
    return None


def _mismatch(video: Path, resize: str) -> str | None:
    try:
        metadata, info = read_metadata(video.parent / ANNOTATION_FILE), probe(video)
    except RecordingError:
        return None  # who reads all of it tells so
    shown = metadata.capture_device_specs.window_specs
    if shown.width == shown.height or info.width != info.height:
        return None  # nothing had to be chosen when they were recorded
    boxed = metadata.video_source_info.video_filter_info == LETTERBOX
    if boxed == (resize == LETTERBOX):
        return None
    if boxed:
        how = f"lie between black bars, and this policy squashes frames in play; train with --model.resize {LETTERBOX}"
    else:
        how = "are squashed, and this policy puts black bars round frames in play; record with --fit letterbox"
    return f"the pictures of {video.parent} ({shown.width} x {shown.height} as the game showed them) {how}"
