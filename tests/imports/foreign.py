"""Recordings as other recorders write them, by the public descriptions of their formats; frames carry their number."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

WIDTH, HEIGHT = 64, 48


def numbered(i: int) -> np.ndarray:
    """A picture of the bits of its number, black and white stripes from left to right; survives encoding."""
    bits = np.array([i >> b & 1 for b in range(8)], np.uint8) * 255
    return np.broadcast_to(np.repeat(bits, WIDTH // 8)[None, :, None], (HEIGHT, WIDTH, 3)).copy()


def number_of(frame: np.ndarray) -> int:
    stripes = frame.mean((0, 2)).reshape(8, -1).mean(1)
    return sum(int(on) << b for b, on in enumerate(stripes > 127))


def write_video(path: Path, times_ms: list[int]) -> Path:
    """Numbered frames at any times."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1000, options={"crf": "1", "preset": "ultrafast", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for i, ms in enumerate(times_ms):
            frame = av.VideoFrame.from_ndarray(numbered(i), format="rgb24")
            frame.pts, frame.time_base = ms, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def even(count: int, fps: float = 20.0) -> list[int]:
    return [round(1000 * i / fps) for i in range(count)]


def write_owl(folder: Path, rows: list[tuple[float, str, object]], fps: float = 60.0, seconds: float = 1.0) -> Path:
    """A folder of OWL Control; times of rows are seconds after an arbitrary start."""
    write_video(folder / "recording.mp4", even(round(seconds * fps), fps))
    lines = [f'{1.7e9 + t},{kind},"{json.dumps(value).replace(chr(34), chr(34) * 2)}"' for t, kind, value in rows]
    (folder / "inputs.csv").write_text("\n".join(["timestamp,event_type,event_args", *lines, ""]))
    (folder / "metadata.json").write_text('{"game_exe": "doom.exe"}')
    return folder


def vpt_line(i: int, **changes) -> dict:
    """Line ``i`` of a ``.jsonl`` in which nothing is done; mouse and keyboard are changed field by field."""
    mouse = {"x": 640.0, "y": 360.0, "dx": 0.0, "dy": 0.0, "dwheel": 0.0, "buttons": [], "newButtons": []}
    line = {"mouse": mouse, "keyboard": {"keys": [], "newKeys": [], "chars": ""}, "isGuiOpen": False, "hotbar": 0}
    for name, value in changes.items():
        if name in ("mouse", "keyboard"):
            line[name] = line[name] | value
        else:
            line[name] = value
    return line | {"tick": changes.get("tick", i)}


def write_vpt(path: Path, lines: list[dict], frames: int | None = None) -> Path:
    write_video(path, even(len(lines) if frames is None else frames))
    path.with_suffix(".jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
