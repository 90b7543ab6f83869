"""Videos alone: frames without actions.

Place in the pipeline: a format of :mod:`bczoo.imports`. Nobody learns actions from such recordings, but a model that
labels them can write the actions in.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bczoo.imports.format import Format, files_below
from bczoo.imports.frames import CONTAINERS, timed_frames
from bczoo.imports.session import Session


class Video(Format):
    """Video files of any rate.

    Args:
        env: name of the game, which a video does not say.
    """

    name = "video"
    description = f"video files without actions, of any rate ({', '.join(suffix[1:] for suffix in CONTAINERS)})"

    def __init__(self, env: str = "") -> None:
        self.env = env

    def find(self, source: Path) -> Iterator[Path]:
        return files_below(source, *CONTAINERS)

    def read(self, path: Path) -> Session:
        return Session(timed_frames(path), env=self.env, video=path)
