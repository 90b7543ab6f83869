"""Players: who decides what to press. Experts and random players are here, policies in :mod:`bczoo.play.agent`.

Place in the pipeline: :func:`bczoo.play.episodes.play` runs several games at once, a game per *row*, and asks
the player for all of them in one call, so that a policy answers with one batched forward pass.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from bczoo.core.actions import Decision
from bczoo.core.errors import UserError
from bczoo.games.game import Expert, Game

KEYBOARD = "keyboard"  # a person, who is no player here; see bczoo.record.keyboard


class Player(Protocol):
    """What plays: an answer for every running game, step by step.

    A player that needs what only ``Game.expert_env`` tells has an attribute ``privileged = True``.
    """

    def start(self, games: int, seed: int) -> None:
        """Get ready for ``games`` rows; called once before playing. ``seed`` is the first episode's."""

    def reset(self, row: int, seed: int) -> None:
        """The episode of this seed begins in ``row``: forget the last one.

        What is drawn in an episode has to depend on its seed alone, not on its row, nor on what runs beside it.
        """

    def act(self, rows: list[int], frames: list[np.ndarray], infos: list[dict[str, Any]]) -> list[Decision]:
        """One decision per row of ``rows``, after seeing its frame (uint8, height x width x 3)."""


class ExpertPlayer:
    """The expert of a game, one per row."""

    privileged = True

    def __init__(self, game: Game) -> None:
        self.game = game
        self._experts: list[Expert] = []

    def start(self, games: int, seed: int) -> None:
        self._experts = [self.game.make_expert() for _ in range(games)]

    def reset(self, row: int, seed: int) -> None:
        self._experts[row].reset(seed)

    def act(self, rows: list[int], frames: list[np.ndarray], infos: list[dict[str, Any]]) -> list[Decision]:
        return [
            Decision(self._experts[row].act(frame, info)) for row, frame, info in zip(rows, frames, infos, strict=True)
        ]


class RandomPlayer:
    """Presses what :meth:`Game.random_values` draws; an episode's draws depend on its seed alone."""

    def __init__(self, game: Game) -> None:
        self.game = game
        self._generators: dict[int, np.random.Generator] = {}

    def start(self, games: int, seed: int) -> None:
        self._generators = {}

    def reset(self, row: int, seed: int) -> None:
        self._generators[row] = np.random.default_rng(seed)

    def act(self, rows: list[int], frames: list[np.ndarray], infos: list[dict[str, Any]]) -> list[Decision]:
        return [Decision(self.game.random_values(self._generators[row])) for row in rows]


class Holding:
    """Another player, asked every few steps only; in between its last decision is held.

    Its past actions then tell most of its next ones, which tempts an imitator to repeat instead of to look.

    Args:
        player: who decides.
        steps: for how many steps each decision is held.
    """

    def __init__(self, player: Player, steps: int) -> None:
        self.player = player
        self.steps = steps
        self.privileged = getattr(player, "privileged", False)
        self._ages: dict[int, int] = {}  # row -> steps since its episode began
        self._held: dict[int, Decision] = {}

    def start(self, games: int, seed: int) -> None:
        self.player.start(games, seed)

    def reset(self, row: int, seed: int) -> None:
        self.player.reset(row, seed)
        self._ages[row] = 0

    def act(self, rows: list[int], frames: list[np.ndarray], infos: list[dict[str, Any]]) -> list[Decision]:
        due = [i for i, row in enumerate(rows) if self._ages[row] % self.steps == 0]
        if due:
            asked = [rows[i] for i in due]
            decisions = self.player.act(asked, [frames[i] for i in due], [infos[i] for i in due])
            self._held.update(zip(asked, decisions, strict=True))
        for row in rows:
            self._ages[row] += 1
        return [self._held[row] for row in rows]


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
