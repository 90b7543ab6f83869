"""A policy in closed loop: the agent, games side by side and on the clock, latency. Names load on first use."""

from __future__ import annotations

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
