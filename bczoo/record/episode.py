"""What demonstrations, corrections and recordings by hand have in common: names and writers of episodes.

Place in the pipeline: :mod:`bczoo.record.command` makes a list of episodes that are to be recorded; whoever plays them
writes each through :func:`episode_writer`. Imports no torch, so that processes that play start fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bczoo.data.reading import read_metadata
from bczoo.data.recording import ANNOTATION_FILE, RecordingWriter
from bczoo.data.video import probe
from bczoo.games.game import Game
from bczoo.record.origin import game_slug

SIZES = (64, 96, 128, 160, 192)  # pixels that policies take; 192 in the reference
Todo = Sequence[tuple[int, Path]]  # seed and folder of every episode that is to be recorded


def episode_name(env: str, agent: str, seed: int, size: int, noise: float, hold: int = 1) -> str:
    """Folder name of an episode; two episodes of one name hold the same frames and actions."""
    disturbed = f"_noise{noise:g}" if noise else ""
    held = f"_hold{hold}" if hold > 1 else ""
    return f"{game_slug(env)}_{agent}{disturbed}{held}_{size}px_{seed:06d}"


def usual_size(game: Game) -> int:
    """Height and width at which a game's frames are stored: the largest of SIZES that enlarges neither of the two."""
    with game.open() as running:
        frame, _ = running.reset(0)
    return max((size for size in SIZES if size <= min(frame.shape[:2])), default=SIZES[0])


def stored_as(folders: Sequence[Path]) -> str:
    """A line that says how the frames of a game are stored, where that is not as it shows them; from one recording."""
    for folder in folders:
        shown = read_metadata(folder / ANNOTATION_FILE).capture_device_specs.window_specs
        info = probe(next(folder.glob("*x*.mp4")))
        if shown.width and (shown.width, shown.height) != (info.width, info.height):
            squashed = ", squashed" if shown.width * info.height != shown.height * info.width else ""
            return f"frames {shown.width} x {shown.height} stored as {info.width} x {info.height}{squashed} (--size)\n"
    return ""


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
