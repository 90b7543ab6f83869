"""Players: who decides what to press. Experts and random players are here, policies in :mod:`bczoo.play.agent`.

Place in the pipeline: :func:`bczoo.play.episodes.play` runs several games at once, numbered by their *env_id*, and asks
the player for all of them in one call, so that a policy answers with one batched forward pass.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from bczoo.core.actions import Decision
from bczoo.core.arguments import shown
from bczoo.core.errors import UserError
from bczoo.games.checked import ValuesCheck
from bczoo.games.game import Expert, Game

KEYBOARD = "keyboard"  # a person, who is no player here; see bczoo.record.keyboard


class Player(Protocol):
    """What plays: an answer for every running game, step by step.

    A player that needs what only ``Game.expert_env`` shows has an attribute ``privileged = True``.
    """

    def start(self, num_envs: int, seed: int) -> None:
        """Get ready for ``num_envs`` games; called once before playing. ``seed`` is the first episode's."""

    def reset(self, env_id: int, seed: int) -> None:
        """The episode of this seed begins in game ``env_id``: forget the last one.

        What is sampled in an episode has to depend on its seed alone, not on ``env_id``, nor on what runs beside it.
        """

    def act(self, env_ids: list[int], frames: list[np.ndarray], infos: list[dict[str, Any]]) -> list[Decision]:
        """One decision per game of ``env_ids``, after seeing its frame (uint8, height x width x 3)."""


class ExpertPlayer:
    """The expert of a game, one per game side by side."""

    privileged = True

    def __init__(self, game: Game) -> None:
        self.game = game
        self._experts: list[Expert] = []

    def start(self, num_envs: int, seed: int) -> None:
        self._experts = [self.game.make_expert() for _ in range(num_envs)]

    def reset(self, env_id: int, seed: int) -> None:
        self._experts[env_id].reset(seed)

    def act(self, env_ids: list[int], frames: list[np.ndarray], infos: list[dict[str, Any]]) -> list[Decision]:
        return [
            Decision(self._experts[env_id].act(frame, info))
            for env_id, frame, info in zip(env_ids, frames, infos, strict=True)
        ]


class RandomPlayer:
    """Presses what :meth:`Game.random_values` samples; that depends on the episode's seed alone."""

    def __init__(self, game: Game) -> None:
        self.game = game
        self._generators: dict[int, np.random.Generator] = {}

    def start(self, num_envs: int, seed: int) -> None:
        self._generators = {}

    def reset(self, env_id: int, seed: int) -> None:
        self._generators[env_id] = np.random.default_rng(seed)

    def act(self, env_ids: list[int], frames: list[np.ndarray], infos: list[dict[str, Any]]) -> list[Decision]:
        return [Decision(self.game.random_values(self._generators[env_id])) for env_id in env_ids]


class ActionRepeat:
    """Action repeat: another player, asked every few steps only; in between its last decision is repeated.

    Its past actions then say most of its next ones, which tempts an imitator to repeat instead of to look.

    Args:
        player: who decides.
        steps: for how many steps each decision is executed.
    """

    def __init__(self, player: Player, steps: int) -> None:
        self.player = player
        self.steps = steps
        self.privileged = getattr(player, "privileged", False)
        self._ages: dict[int, int] = {}  # env_id -> steps since its episode began
        self._last: dict[int, Decision] = {}

    def start(self, num_envs: int, seed: int) -> None:
        self.player.start(num_envs, seed)

    def reset(self, env_id: int, seed: int) -> None:
        self.player.reset(env_id, seed)
        self._ages[env_id] = 0

    def act(self, env_ids: list[int], frames: list[np.ndarray], infos: list[dict[str, Any]]) -> list[Decision]:
        due = [i for i, env_id in enumerate(env_ids) if self._ages[env_id] % self.steps == 0]
        if due:
            asked = [env_ids[i] for i in due]
            decisions = self.player.act(asked, [frames[i] for i in due], [infos[i] for i in due])
            self._last.update(zip(asked, decisions, strict=True))
        for env_id in env_ids:
            self._ages[env_id] += 1
        return [self._last[env_id] for env_id in env_ids]


class DecisionsCheck:
    """Checks what a player answers with; those of this module check their values themselves.

    Args:
        game: what is played.
        player: who plays; one with an ``action_space`` of its own, as policies have, may know more keys than the game.
    """

    def __init__(self, game: Game, player: Player) -> None:
        self.where = f"game {game.name!r}: player {type(player).__name__}"
        self._check: ValuesCheck | None = None
        if not isinstance(player, ExpertPlayer | RandomPlayer):
            space = getattr(player, "action_space", None)
            self._check = ValuesCheck(game, f"player {type(player).__name__}", space)

    def __call__(self, decisions: Any, wanted: int) -> list[Decision]:
        """The decisions as they are.

        Args:
            decisions: of one call of ``act``.
            wanted: how many games were asked about.

        Raises:
            UserError: they are no decisions, or too few or many, or their values are not of the action space.
        """
        if self._check is None:
            return decisions
        if not isinstance(decisions, list | tuple) or len(decisions) != wanted:
            raise UserError(
                f"{self.where} answered {shown(decisions)}; act returns a list with one Decision for each of its "
                f"env_ids, here {wanted}"
            )
        for decision in decisions:
            if not isinstance(decision, Decision):
                raise UserError(
                    f"{self.where} answered {shown(decision)}, and not a Decision; write Decision({{'keys': ['w']}})"
                )
            self._check(decision.values)
        return list(decisions)


def make_player(name: str, game: Game) -> Player:
    """``expert`` or ``random``, for ``game``."""
    if name == "expert":
        game.make_expert()  # says at once that there is none
        return ExpertPlayer(game)
    if name == "random":
        return RandomPlayer(game)
    if name == KEYBOARD:
        raise UserError("a person plays in `bczoo record --agent keyboard` only; choose expert or random")
    raise UserError(f"there is no player {name!r} for game {game.name!r}; choose expert or random")
