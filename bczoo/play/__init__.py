"""A policy in closed loop: the agent, games side by side and on the clock, latency. Names load on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bczoo.core.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "Agent": "agent",
        "PolicyPlayer": "agent",
        "PlayResult": "episodes",
        "play": "episodes",
        "play_in_processes": "episodes",
        "play_to_video": "episodes",
        "score_table": "episodes",
        "open_policy": "open",
    },
)

if TYPE_CHECKING:
    from bczoo.play.agent import Agent as Agent
    from bczoo.play.agent import PolicyPlayer as PolicyPlayer
    from bczoo.play.episodes import PlayResult as PlayResult
    from bczoo.play.episodes import play as play
    from bczoo.play.episodes import play_in_processes as play_in_processes
    from bczoo.play.episodes import play_to_video as play_to_video
    from bczoo.play.episodes import score_table as score_table
    from bczoo.play.open import open_policy as open_policy
