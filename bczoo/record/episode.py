"""What demonstrations, corrections and recordings by hand have in common: names and writers of episodes.

Place in the pipeline: :mod:`bczoo.record.command` makes a list of episodes that are to be recorded; whoever plays them
writes each through :func:`episode_writer`. Imports no torch, so that processes that play start fast.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from bczoo.data.recording import RecordingWriter
from bczoo.games.game import Game

Todo = Sequence[tuple[int, Path]]  # seed and folder of every episode that is to be recorded


def episode_name(env: str, agent: str, seed: int, size: int, noise: float, hold: int = 1) -> str:
    """Folder name of an episode; two episodes of one name hold the same frames and actions."""
    game = re.sub(r"[^\w.]+", "-", env)
    disturbed = f"_noise{noise:g}" if noise else ""
    held = f"_hold{hold}" if hold > 1 else ""
    return f"{game}_{agent}{disturbed}{held}_{size}px_{seed:06d}"


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
    return RecordingWriter(folder, fps=game.fps, size=size, env=name, env_subtype=subtype, user=user, task=text or "")
