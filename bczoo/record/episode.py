"""What demonstrations, corrections and recordings by hand have in common: names and writers of episodes.

Place in the pipeline: :mod:`bczoo.record.command` makes a list of episodes that are to be recorded; whoever plays them
writes each through :func:`episode_writer`. Imports no torch, so that processes that play start fast.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from bczoo.core.frames import LETTERBOX, named_size
from bczoo.data.reading import read_metadata
from bczoo.data.recording import ANNOTATION_FILE, RecordingWriter
from bczoo.data.video import probe
from bczoo.games.game import SMALLEST_PX, Game
from bczoo.record.origin import game_slug

SIZES = (64, 96, 128, 160, 192)  # pixels that policies take; 192 in the reference
Todo = Sequence[tuple[int, Path]]  # seed and folder of every episode that is to be recorded
Fit = Literal["squash", "letterbox"]


class Stored(NamedTuple):
    """How frames are stored: at a size (one number for a square), squashed into it or between black bars."""

    size: int | tuple[int, int]
    fit: Fit = "squash"

    @property
    def name(self) -> str:
        """For names of episodes."""
        size = self.size if isinstance(self.size, int) else named_size(self.size, "x")
        return f"{size}px" + (f"_{self.fit}" if self.fit != "squash" else "")


def episode_name(env: str, agent: str, seed: int, stored: Stored, noise: float, hold: int = 1) -> str:
    """Folder name of an episode; two episodes of one name hold the same frames and actions."""
    disturbed = f"_noise{noise:g}" if noise else ""
    held = f"_hold{hold}" if hold > 1 else ""
    return f"{game_slug(env)}_{agent}{disturbed}{held}_{stored.name}_{seed:06d}"


def usual_size(game: Game) -> int:
    """Height and width at which a game's frames are stored: the largest of SIZES that enlarges neither of the two."""
    with game.open() as running:
        frame, _ = running.reset(0)
    return max((size for size in SIZES if size <= min(frame.shape[:2])), default=SIZES[0])


def stored_as(folders: Sequence[Path]) -> str:
    """A line that says how the frames of a game are stored, where that is not as it shows them; from one recording."""
    for folder in folders:
        metadata = read_metadata(folder / ANNOTATION_FILE)
        shown = metadata.capture_device_specs.window_specs
        info = probe(next(folder.glob("*x*.mp4")))
        if shown.width and (shown.width, shown.height) != (info.width, info.height):
            how, options = "", "--size"
            if shown.width * info.height != shown.height * info.width:
                boxed = metadata.video_source_info.video_filter_info == LETTERBOX
                how = ", between black bars; train with --model.resize letterbox" if boxed else ", squashed"
                options = "--size, --fit"
            sizes = f"frames {shown.width} x {shown.height} stored as {info.width} x {info.height}"
            return f"{sizes}{how} ({options})\n"
    return ""


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


def episode_writer(game: Game, folder: Path, stored: Stored, user: str, text: str | None = None) -> RecordingWriter:
    """The writer of one episode of a game.

    Args:
        game: what is played.
        folder: of the recording.
        stored: how frames are stored.
        user: who plays, for the metadata.
        text: instruction, for the metadata.
    """
    name, _, subtype = game.name.partition("/")
    return EpisodeWriter(
        game,
        folder,
        fps=game.fps,
        size=stored.size,
        resize=LETTERBOX if stored.fit == "letterbox" else "hamming",
        env=name,
        env_subtype=subtype,
        user=user,
        task=text or "",
    )
