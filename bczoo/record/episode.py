"""What demonstrations, corrections and recordings by hand have in common: names and writers of episodes.

Place in the pipeline: :mod:`bczoo.record.command` makes a list of episodes that are to be recorded; whoever plays them
writes each through :func:`episode_writer`. Imports no torch, so that processes that play start fast.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bczoo.data.recording import RecordingWriter
from bczoo.games.game import SMALLEST_PX, Game

Todo = Sequence[tuple[int, Path]]  # seed and folder of every episode that is to be recorded


def episode_name(env: str, agent: str, seed: int, size: int, noise: float, hold: int = 1) -> str:
    """Folder name of an episode; two episodes of one name hold the same frames and actions."""
    game = re.sub(r"[^\w.]+", "-", env)
    disturbed = f"_noise{noise:g}" if noise else ""
    held = f"_hold{hold}" if hold > 1 else ""
    return f"{game}_{agent}{disturbed}{held}_{size}px_{seed:06d}"


class EpisodeWriter(RecordingWriter):
    """Writes an episode and warns at its end if its pictures cannot have shown the game.

    Args:
        game: what is played.
        folder: of the recording.
        **options: of :class:`bczoo.data.recording.RecordingWriter`.
    """

    def __init__(self, game: Game, folder: Path, **options: Any) -> None:
        super().__init__(folder, **options)
        self.game = game
        self._first: np.ndarray | None = None
        self._still = self._plain = True  # so far

    def add(self, frame: np.ndarray, *arguments: Any, **options: Any) -> None:
        if self._first is None:
            self._first = frame.copy()
        elif self._still:
            self._still = np.array_equal(frame, self._first)
        if self._plain:
            self._plain = bool((frame == frame[0, 0]).all())
        super().add(frame, *arguments, **options)

    def close(self) -> None:
        super().close()
        if problem := self._problem():
            warnings.warn(
                f"game {self.game.name!r}: {problem}. Nothing can be learned from pictures that do not show the game: "
                'make its environment with render_mode="rgb_array", or observe larger frames (docs/games.md); '
                "bczoo data view shows what was recorded",
                stacklevel=2,
            )

    def _problem(self) -> str:
        """What is wrong with the frames; empty if nothing is."""
        if self._first is None:
            return ""
        if self._plain:
            return "all frames of an episode have one colour"
        height, width = self._first.shape[:2]
        if min(height, width) < SMALLEST_PX:
            return f"frames have {width} x {height} px, and at least {SMALLEST_PX} are wanted"
        return "the picture never changed in an episode" if self._still and self.n_frames > 1 else ""


def episode_writer(game: Game, folder: Path, size: int, user: str, text: str | None = None) -> RecordingWriter:
    """The writer of one episode of a game.

    Args:
        game: what is played.
        folder: of the recording.
        size: height and width of the stored frames in pixels.
        user: who plays, for the metadata.
        text: instruction, for the metadata.
    """
    name, _, subtype = game.name.partition("/")
    return EpisodeWriter(
        game, folder, fps=game.fps, size=size, env=name, env_subtype=subtype, user=user, task=text or ""
    )
