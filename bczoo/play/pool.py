"""Games side by side: in this process, or each in a process of its own.

Place in the pipeline: :func:`bczoo.play.episodes.play` orders steps from :class:`GamesHere` or :class:`GamePool` and
looks at what they led to; both take the same orders and lead to the same frames. :mod:`bczoo.play.realtime` runs
games on the wall clock in such processes.

A process that runs a game is spawned, so it shares nothing with this one but a pipe. It ends when it is told to, when
the pipe is closed, at SIGTERM and when this process dies, and every time closes its game.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol

import numpy as np

from bczoo.core.actions import Values
from bczoo.games.game import Game, RunningGame
from bczoo.games.workers import WorkerError, Workers, next_order, pack, unpack

HERE = "processes=False"  # does without other processes


class GameCrashError(WorkerError):
    """A game failed in its process, or the process ended."""


class Seen(NamedTuple):
    """What a step (or the beginning of an episode) led to."""

    frame: np.ndarray  # uint8 (height, width, 3)
    reward: float
    done: bool
    info: dict[str, Any]


class Games(Protocol):
    """Games by row: every order is followed by a look at what it led to."""

    def __enter__(self) -> Games: ...

    def __exit__(self, *exception: Any) -> None: ...

    def reset(self, row: int, seed: int) -> None:
        """Order the episode of this seed to begin."""

    def step(self, row: int, values: Values) -> None:
        """Order ``values`` to be pressed for one step."""

    def see(self, row: int) -> Seen:
        """What the last order led to; waits for it."""


class GamesHere:
    """Games in this process; they follow their orders when they are looked at.

    Args:
        game: what is played.
        rows: how many of it.
        privileged: open the game as its expert sees it.
    """

    def __init__(self, game: Game, rows: int, privileged: bool = False) -> None:
        self.game, self.rows, self.privileged = game, rows, privileged
        self._running: list[RunningGame] = []
        self._orders: dict[int, Callable[[], Seen]] = {}
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> GamesHere:
        with contextlib.ExitStack() as opened:
            for _ in range(self.rows):
                self._running.append(opened.enter_context(self.game.open(for_expert=self.privileged)))
            self._closing = opened.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._closing.close()

    def reset(self, row: int, seed: int) -> None:
        self._orders[row] = functools.partial(begin, self._running[row], seed)

    def step(self, row: int, values: Values) -> None:
        self._orders[row] = functools.partial(advance, self._running[row], values)

    def see(self, row: int) -> Seen:
        return self._orders.pop(row)()


def begin(running: RunningGame, seed: int) -> Seen:
    """The first frame of an episode."""
    frame, info = running.reset(seed)
    return Seen(frame, 0.0, False, info)


def advance(running: RunningGame, values: Values) -> Seen:
    """What a step leads to."""
    return Seen(*running.step(values))


Loop = Callable[[RunningGame, Connection, bool], None]


class GameProcesses(Workers):
    """A process per row that runs a game; ``with`` starts and ends them.

    Args:
        game: what is played; has to be picklable.
        rows: how many of it.
        privileged: open the game as its expert sees it, and tell ``info``.
        loop: what a process does with its game: a function with a name, called with the game, the pipe and
            ``privileged``.
    """

    failure = GameCrashError

    def __init__(self, game: Game, rows: int, privileged: bool, loop: Loop) -> None:
        super().__init__(rows, f"game {game.name!r}", _run_game, pack((game, privileged, loop), HERE))

    def _started(self) -> None:
        for row in range(self.count):
            self.receive(row)  # the game is open


class GamePool(GameProcesses):
    """Games in processes of their own, in step with the player; same orders as :class:`GamesHere`.

    Args:
        game: what is played; has to be picklable.
        rows: how many of it.
        privileged: open the game as its expert sees it; ``info`` is empty otherwise.
    """

    def __init__(self, game: Game, rows: int, privileged: bool = False) -> None:
        super().__init__(game, rows, privileged, _obey)

    def reset(self, row: int, seed: int) -> None:
        self.send(row, (begin, seed))

    def step(self, row: int, values: Values) -> None:
        self.send(row, (advance, values))

    def see(self, row: int) -> Seen:
        return self.receive(row)


def _obey(running: RunningGame, pipe: Connection, privileged: bool) -> None:
    while True:
        order, argument = next_order(pipe)
        seen = order(running, argument)
        pipe.send(seen if privileged else seen._replace(info={}))


def _run_game(pipe: Connection, packed: bytes) -> None:
    game, privileged, loop = unpack(packed, HERE)
    with game.open(for_expert=privileged) as running:
        pipe.send(None)
        loop(running, pipe, privileged)
