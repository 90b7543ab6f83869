"""How the steps of an environment are brought to the rate at which players decide.

Place in the pipeline: :class:`bczoo.games.game.RunningGame` asks :func:`pace_of` for every environment that it starts
and repeats an action for as many steps as :meth:`Pace.steps` says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bczoo.games.game import Game

TURN_BASED_FPS = 10.0  # up to here an environment's rate only says how fast to show it
CLOSE = 1e-3  # rates that differ by less are the same


@dataclass(frozen=True)
class Pace:
    """Steps of the environment per decision.

    Args:
        per_decision: on average, at least 1; 2.5 gives 2, 3, 2, 3, ...
        doubt: how the game's rate contradicts its environment's; empty if it does not.
    """

    per_decision: float = 1.0
    doubt: str = ""

    def steps(self, decision: int) -> int:
        """For how many steps the action of a decision is held.

        Args:
            decision: its number in the episode, from 0.
        """
        return self._before(decision + 1) - self._before(decision)

    def _before(self, decision: int) -> int:
        return math.floor(decision * self.per_decision + 1e-6)  # 1e-6: 3 * (5 / 3) is 5


def own_rate(env: Any) -> float | None:
    """The rate that an environment says it runs at (``metadata["render_fps"]``), in steps a second; None for none."""
    metadata = getattr(env, "metadata", None)
    rate = metadata.get("render_fps") if isinstance(metadata, Mapping) else None
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < math.inf:
        return None
    return float(rate)


def pace_of(game: Game, env: Any) -> Pace:
    """The pace of a game.

    Args:
        game: with ``fps``, ``env_fps`` and ``frame_skip``.
        env: its environment.
    """
    if game.frame_skip is not None:
        return Pace(float(game.frame_skip))
    own = own_rate(env)
    if own is not None and own <= TURN_BASED_FPS:
        own = None
    if game.env_fps is not None:
        doubt = ""
        if own is not None and abs(own - game.env_fps) > CLOSE:
            doubt = (
                f"game {game.name!r} says env_fps={game.env_fps:g}, but its environment says {own:g} steps a second "
                f'(metadata["render_fps"]): it runs at {game.env_fps / own:.2f} times its speed. Leave env_fps out, or '
                "give frame_skip where the number of steps is meant"
            )
        return Pace(game.env_fps / game.fps, doubt)
    if own is None:
        return Pace()
    if own < game.fps - CLOSE:
        return Pace(
            doubt=f"game {game.name!r} has fps={game.fps:g}, but its environment runs at {own:g} steps a second "
            f'(metadata["render_fps"]): it runs at {game.fps / own:.2f} times its speed. Give the Game fps={own:g}, '
            "or frame_skip=1 where one step a decision is meant"
        )
    return Pace(own / game.fps) if own > game.fps + CLOSE else Pace()
