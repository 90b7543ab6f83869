"""Helpers: tiny synthetic recordings whose frames carry their own number."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from bczoo.data.recording import RecordingWriter

SIZE = 48
GOLDEN = Path(__file__).parents[1] / "golden"


def numbered(i: int, size: int = SIZE) -> np.ndarray:
    """A frame that shows ``i`` as 16 black and white fields, 8 to a row; survives encoding."""
    bits = np.array([(i >> b) & 1 for b in range(16)], np.uint8).reshape(2, 8)
    grey = np.kron(bits, np.ones((size // 2, size // 8), np.uint8)) * 255
    return np.repeat(grey[..., None], 3, axis=2)


def number_of(frame: np.ndarray) -> int:
    """The number that a frame shows; ``frame`` is (H, W, 3)."""
    height, width = frame.shape[0] // 2, frame.shape[1] // 8
    fields = np.asarray(frame)[: height * 2, : width * 8].astype(float).mean(2)
    fields = fields.reshape(2, height, 8, width).mean((1, 3)).reshape(-1)
    return sum(int(on) << b for b, on in enumerate(fields > 127))


def write_recording(folder: Path, n: int, size: int = SIZE, first: int = 0, **arguments) -> Path:
    """A recording of ``n`` frames numbered from ``first``; step i presses the key named by i % 4 + 1."""
    with RecordingWriter(folder, size=size, **arguments) as writer:
        for i in range(n - 1):
            writer.add(numbered(first + i, size), user={"keys": [str(i % 4 + 1)], "mouse_dx": i % 7 - 3})
        writer.add(numbered(first + n - 1, size))
    return folder


def write_recordings(root: Path, count: int = 8, n: int = 30, **arguments) -> Path:
    """``count`` recordings of n, n + 1, ... frames; recording r's frames are numbered from 1000 * r."""
    for r in range(count):
        write_recording(root / f"rec-{r}", n + r, first=1000 * r, **arguments)
    return root


def write_video(
    path: Path, count: int, pts=lambda i: i, ticks: int = 20, size: int = SIZE, mux: dict | None = None, **options
) -> Path:
    """Numbered frames, encoded with any x264 options; frame i is shown ``pts(i)`` ticks after the start."""
    with av.open(str(path), "w", options=mux or {}) as container:
        stream = container.add_stream("libx264", rate=20)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = Fraction(1, ticks)
        stream.options = {k.replace("_", "-"): str(v) for k, v in options.items()}
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(numbered(i, size), format="rgb24")
            frame.pts, frame.time_base = pts(i), Fraction(1, ticks)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def damage(video: Path, share: float = 0.5, length: int = 400) -> None:
    """Overwrite a stretch of the payload and leave the header as it is."""
    data = bytearray(video.read_bytes())
    begin = data.index(b"mdat") + 8
    end = data.index(b"moov") if data.index(b"moov") > begin else len(data)
    at = begin + int((end - begin) * share)
    data[at : at + length] = bytes(255 for _ in range(min(length, end - at)))
    stat = video.stat()
    video.write_bytes(bytes(data))
    os.utime(video, ns=(stat.st_atime_ns, stat.st_mtime_ns))
