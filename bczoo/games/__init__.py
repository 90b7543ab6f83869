"""Games: playing them, learning from experts that play them, and adding new ones. Names load on first use.

The functions ``play`` and ``record`` are in the modules of the same names (``bczoo.play.episodes.play``), whose
names they would hide here.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_EXPORTS = {
    "Bindings": "bindings",
    "DictBindings": "bindings",
    "DiscreteBindings": "bindings",
    "VectorBindings": "bindings",
    "Expert": "game",
    "Game": "game",
    "RunningGame": "game",
    "UnknownGameError": "game",
    "game_names": "game",
    "make_game": "game",
    "register_game": "game",
    "ExpertPlayer": "players",
    "Player": "players",
    "RandomPlayer": "players",
    "make_player": "players",
    "PlayResult": "bczoo.play.episodes",
    "play_in_processes": "bczoo.play.episodes",
    "play_to_video": "bczoo.play.episodes",
    "score_table": "bczoo.play.episodes",
    "render_decision": "render",
    "PlayedRecordings": "bczoo.record.command",
}
__all__ = sorted(_EXPORTS)

if TYPE_CHECKING:
    from bczoo.games.bindings import Bindings as Bindings
    from bczoo.games.game import Game as Game


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    where = _EXPORTS[name]
    return getattr(import_module(where if "." in where else f"{__name__}.{where}"), name)
