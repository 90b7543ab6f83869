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
    from bczoo.games.bindings import WAIT as WAIT
    from bczoo.games.bindings import Bindings as Bindings
    from bczoo.games.bindings import DictBindings as DictBindings
    from bczoo.games.bindings import DiscreteBindings as DiscreteBindings
    from bczoo.games.bindings import MultiDiscreteBindings as MultiDiscreteBindings
    from bczoo.games.bindings import VectorBindings as VectorBindings
    from bczoo.games.default_keys import default_bindings as default_bindings
    from bczoo.games.game import Expert as Expert
    from bczoo.games.game import Game as Game
    from bczoo.games.game import RunningGame as RunningGame
    from bczoo.games.game import UnknownGameError as UnknownGameError
    from bczoo.games.game import game_names as game_names
    from bczoo.games.game import make_game as make_game
    from bczoo.games.game import register_game as register_game
    from bczoo.games.gymnasium_ids import gymnasium_game as gymnasium_game
    from bczoo.games.players import ExpertPlayer as ExpertPlayer
    from bczoo.games.players import Player as Player
    from bczoo.games.players import RandomPlayer as RandomPlayer
    from bczoo.games.players import make_player as make_player
    from bczoo.games.render import render_decision as render_decision
    from bczoo.play.episodes import PlayResult as PlayResult
    from bczoo.play.episodes import play_in_processes as play_in_processes
    from bczoo.play.episodes import play_to_video as play_to_video
    from bczoo.play.episodes import score_table as score_table
    from bczoo.record.command import PlayedRecordings as PlayedRecordings
