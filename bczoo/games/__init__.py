"""Games: playing them, learning from experts that play them, and adding new ones. Names load on first use.

Playing them is in bczoo.play, recording them in bczoo.record; some of their names are offered here too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bczoo.core.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "Bindings": "bindings",
        "DictBindings": "bindings",
        "DiscreteBindings": "bindings",
        "MultiDiscreteBindings": "bindings",
        "WAIT": "bindings",
        "VectorBindings": "bindings",
        "default_bindings": "default_keys",
        "gymnasium_game": "gymnasium_ids",
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
    },
)

if TYPE_CHECKING:
    from bczoo.games.bindings import Bindings as Bindings
    from bczoo.games.game import Game as Game
