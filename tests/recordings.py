"""Recordings that commands and policies are tested on; frames that carry their number are in data/synthetic.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bczoo.data.recording import RecordingWriter


def write_moving(root: Path, count: int, steps: int, size: int = 96) -> Path:
    """The picture changes in every step, and so do the actions."""
    rng = np.random.default_rng(0)
    for i in range(count):
        with RecordingWriter(root / f"rec_{i}", size=size) as writer:
            for t in range(steps):
                frame = np.full((size, size, 3), t * 4 % 256, np.uint8)
                frame[:, : size // 2] = rng.integers(0, 256)
                writer.add(frame, user={"keys": ["w"] if t % 3 else [], "mouse_dx": t % 7 - 3})
    return root


def write_telling(root: Path, count: int, steps: int, size: int = 64) -> Path:
    """The picture says what to do: bright frames walk, dark frames turn."""
    rng = np.random.default_rng(0)
    for i in range(count):
        with RecordingWriter(root / f"rec_{i}", size=size) as writer:
            for _ in range(steps):
                bright = rng.random() < 0.5
                frame = np.full((size, size, 3), 220 if bright else 30, np.uint8)
                writer.add(frame, user={"keys": ["w"] if bright else [], "mouse_dx": 0 if bright else 20})
    return root
