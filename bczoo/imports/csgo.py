"""Pearce and Zhu's Counter-Strike: ``.hdf5`` files of a thousand frames, 16 a second, with actions as one-hot vectors.

Place in the pipeline: a format of :mod:`bczoo.imports`. Fields are those of the README and ``config.py`` of
TeaPearce/Counter-Strike_Behavioural_Cloning (paper 2104.04258), which may be used for research and personal projects,
not commercially.

Frame i has ``frame_i_x``, its picture, and ``frame_i_y``, the action taken at it: 11 keys, 2 mouse buttons, and one of
23 and one of 15 mouse motions. What has to be known:

* Pictures are BGR.
* The order of the keys is that of ``actions_to_onehot``, w, a, s, d, and not that of the comment beside it.
* Motions were clipped to 1000 and 200 pixels and brought to the nearest of :data:`MOUSE_DX` and :data:`MOUSE_DY`.
* Downloads that broke off leave files that cannot be opened, or without their last frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bczoo.data.errors import RecordingError
from bczoo.data.reading import open_regular
from bczoo.imports.format import Format, files_below, needed
from bczoo.imports.session import Event, Picture, Session, held_events

FPS = 16.0
KEYS = ("w", "a", "s", "d", "Space", "LeftControl", "LeftShift", "1", "2", "3", "r", "mouse_left", "mouse_right")
MOUSE_DX = (
    -1000, -500, -300, -200, -100, -60, -30, -20, -10, -4, -2, 0,
    2, 4, 10, 20, 30, 60, 100, 200, 300, 500, 1000,
)  # fmt: skip
MOUSE_DY = (-200, -100, -50, -20, -10, -4, -2, 0, 2, 4, 10, 20, 50, 100, 200)
LENGTH = len(KEYS) + len(MOUSE_DX) + len(MOUSE_DY)
USUAL = 1000  # frames of a file
MOST_SIDE = 4096  # pixels


class CounterStrike(Format):
    """Counter-Strike deathmatch of Pearce and Zhu."""

    name = "csgo"
    description = "Pearce and Zhu's Counter-Strike recordings: .hdf5 files of 1000 frames"

    def find(self, source: Path) -> Iterator[Path]:
        return files_below(source, ".hdf5")

    def read(self, path: Path) -> Session:
        h5py = needed("h5py")
        try:
            with open_regular(path) as file, h5py.File(file, "r") as data:
                names = [name for name in data if name.startswith("frame_") and name.endswith("_y")]
                numbers = sorted(int(name.split("_")[1]) for name in names)
                actions = [np.asarray(data[f"frame_{i}_y"]).reshape(-1) for i in numbers]
        except Exception as error:  # whatever upsets the library is damage of this file
            raise RecordingError(path, f"cannot be read ({type(error).__name__}: {error})") from error
        if numbers != list(range(len(numbers))) or not numbers:
            raise RecordingError(path, f"holds {len(numbers)} frames, which are not numbered from 0 on without a gap")
        for i, action in enumerate(actions):
            if len(action) != LENGTH:
                raise RecordingError(
                    path, f"the action of frame {i} has {len(action)} values, where {LENGTH} are known"
                )
        onehot = np.stack(actions)  # (n, 51)
        times = [i / FPS for i in numbers]
        held = onehot[:, : len(KEYS)] > 0.5
        events = held_events(times, [{KEYS[k] for k in np.flatnonzero(row)} for row in held])
        of_x, of_y = np.split(onehot[:, len(KEYS) :], [len(MOUSE_DX)], axis=1)
        if len(none := np.flatnonzero(~((of_x.max(1) > 0.5) & (of_y.max(1) > 0.5)))):  # nor is NaN
            raise RecordingError(path, f"the action of frame {none[0]} has none of the mouse motions")
        for time, x, y in zip(times, of_x.argmax(1), of_y.argmax(1), strict=True):
            events += [Event(time, "mouse_dx", MOUSE_DX[x]), Event(time, "mouse_dy", MOUSE_DY[y])]
        notes = [] if len(numbers) >= USUAL else [f"holds {len(numbers)} frames, where {USUAL} are usual"]
        return Session(
            _frames(h5py, path, len(numbers)), events, fps=FPS, end=len(numbers) / FPS, env="csgo", notes=notes
        )


def _frames(h5py: Any, path: Path, count: int) -> Iterator[tuple[float, Picture]]:
    with open_regular(path) as file, h5py.File(file, "r") as data:
        for i in range(count):
            yield i / FPS, _picture(data, path, i)


def _picture(data: Any, path: Path, i: int) -> np.ndarray:
    try:
        found = data[f"frame_{i}_x"]
        if found.ndim != 3 or found.shape[2] != 3 or not 0 < min(found.shape[:2]) <= max(found.shape[:2]) <= MOST_SIDE:
            raise ValueError(f"a picture of shape {found.shape}")
        return np.ascontiguousarray(np.asarray(found[...], np.uint8)[..., ::-1])
    except Exception as error:
        raise RecordingError(path, f"frame {i} cannot be read ({type(error).__name__}: {error})") from error
