"""Whose recordings lie in a folder, so that no game is recorded among those of another.

Place in the pipeline: :func:`bczoo.record.command.record` asks here before it plays anything. Whoever trains on a
folder trains on all recordings in it, so those of another game, recorded by mistake, spoil the user's own. A recording
names its game in its metadata; one that names none counts as of this game if it has the name that ``bczoo record``
gives.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from bczoo.core.errors import UserError
from bczoo.data.errors import RecordingError, printable
from bczoo.data.listing import walk_recordings
from bczoo.data.reading import read_metadata
from bczoo.data.recording import ANNOTATION_FILE

UNKNOWN_GAME = ""


class OtherGameError(UserError):
    """A folder holds recordings of another game; ``found`` says so, the text also says what to do."""

    def __init__(self, found: str, advice: str) -> None:
        super().__init__(f"{found}; {advice}")
        self.found = found


def game_slug(env: str) -> str:
    """A game's name as part of the name of a folder."""
    return re.sub(r"[^\w.]+", "-", env)


def game_of(metadata: Any) -> str:
    """The game that a recording's metadata names, such as ``doom/basic``; empty for none."""
    env = metadata.env
    return printable(f"{env.env}/{env.env_subtype}" if env.env_subtype else env.env)


def check_origin(folder: Path, games: Collection[str], env: str, advice: str) -> None:
    """Raise if a folder holds a recording of a game that is not among ``games``, or of one that nobody knows.

    Looks no further than the first such recording.

    Args:
        folder: where recordings are to be written; need not exist.
        games: names of the games that may lie there.
        env: the game that is to be recorded, as the user named it.
        advice: what to do instead.

    Raises:
        OtherGameError: it does.
    """
    if not folder.is_dir():
        return
    for row in walk_recordings(folder):
        if row.pack:  # an archive, which nobody unpacks for this
            continue
        game = _game_at(folder / row.path)
        if game in games or (game == UNKNOWN_GAME and Path(row.path).name.startswith(f"{game_slug(env)}_")):
            continue
        what = f"of {game}" if game else "that name no game"
        raise OtherGameError(f"{folder} holds recordings {what} ({row.name}), so {env} is not recorded there", advice)


def _game_at(folder: Path) -> str:
    try:
        return game_of(read_metadata(folder / ANNOTATION_FILE))
    except RecordingError:  # a broken recording is told by who reads all of it
        return UNKNOWN_GAME
