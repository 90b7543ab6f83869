"""Frames of any video file, with their own times.

Place in the pipeline: formats that keep their frames in a video read them here. Unlike `bczoo/data/video.py`, which
finds frames of our own files by number, this takes any container and rate, and goes through a file once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import av
import av.error
import numpy as np

from bczoo.data.errors import RecordingError
from bczoo.data.reading import open_regular
from bczoo.data.video import MOST_PIXELS

# Without a format, a text file of a video's name could be a playlist of other files and of addresses.
CONTAINERS = {
    ".mp4": "mp4",
    ".m4v": "mp4",
    ".mov": "mov",
    ".mkv": "matroska",
    ".webm": "matroska",
    ".avi": "avi",
    ".flv": "flv",
    ".ts": "mpegts",
}

SEEK_EARLIER_S = 1.0  # containers seek by decoding time, which runs ahead of the time at which a frame is shown


def timed_frames(
    path: str | Path, start: float = -math.inf, end: float = math.inf
) -> Iterator[tuple[float, Callable[[], np.ndarray]]]:
    """Time in seconds and picture of every frame of a video, in the order in which they are shown.

    Args:
        path: the file; its suffix says what container it is.
        start: time in seconds before which frames are left out.
        end: time from which on they are.

    Yields:
        The time, as the file says it, and a function that gives the frame as (H, W, 3) uint8 in RGB.

    Raises:
        RecordingError: the file cannot be read, or is broken.
    """
    path = Path(path)
    if (container_name := CONTAINERS.get(path.suffix.lower())) is None:
        raise RecordingError(path, f"no video; the names of videos end in {', '.join(CONTAINERS)}")
    number = 0
    try:
        with open_regular(path) as file, av.open(file, "r", format=container_name) as container:
            if not container.streams.video:
                raise RecordingError(path, "the file has no video stream")
            stream = container.streams.video[0]
            if stream.codec_context is None or stream.time_base is None:
                raise RecordingError(path, "the video has a codec that is not known")
            stream.codec_context.thread_count = 1
            stream.codec_context.options = {"max_pixels": str(MOST_PIXELS)}
            if start > SEEK_EARLIER_S:
                container.seek(int((start - SEEK_EARLIER_S) / stream.time_base), stream=stream, backward=True)
            for frame in container.decode(stream):
                if frame.pts is None or frame.is_corrupt:
                    raise RecordingError(path, f"frame {number} cannot be decoded")
                time = float(frame.pts * stream.time_base)
                if time >= end:
                    return
                if time >= start:
                    yield time, partial(frame.to_ndarray, format="rgb24")
                number += 1
    except RecordingError:
        raise
    except (av.error.FFmpegError, OSError) as error:
        what = f"frame {number} cannot be decoded" if number else "the video cannot be opened"
        raise RecordingError(path, f"{what} ({error.strerror})") from error
