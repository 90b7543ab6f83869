"""Games side by side: in this process, or each in a process of its own.

Place in the pipeline: :func:`bczoo.play.episodes.play` orders steps from :class:`SyncEnvs` or :class:`SubprocessEnvs`
and looks at what they led to; both take the same orders and lead to the same frames. :mod:`bczoo.play.realtime` runs
games on the wall clock in such processes.

A process that runs a game is spawned, so it shares nothing with this one but a pipe. It ends when it is ordered to,
when the pipe is closed, at SIGTERM and when this process dies, and closes its game each time.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol

import numpy as np

from bczoo.core.actions import Values
from bczoo.core.workers import Parcel, WorkerError, Workers, next_order, pack, unpack, warn_again, warnings_kept
from bczoo.games.game import MAKE_IT_THERE, Game, RunningGame

GAME = Parcel("the game", "processes=False", MAKE_IT_THERE)


class GameCrashError(WorkerError):
    """A game failed in its process, or the process ended."""


class Seen(NamedTuple):
    """What a step (or the beginning of an episode) led to."""

    frame: np.ndarray  # uint8 (height, width, 3)
    reward: float
    done: bool
    info: dict[str, Any]


class Envs(Protocol):
    """Games by number (``env_id``): every order is followed by a look at what it led to."""

    def __enter__(self) -> Envs: ...

    def __exit__(self, *exception: Any) -> None: ...

    def reset(self, env_id: int, seed: int) -> None:
        """Order the episode of this seed to begin."""

    def step(self, env_id: int, values: Values) -> None:
        """Order ``values`` to be pressed for one step."""

    def see(self, env_id: int) -> Seen:
        """What the last order led to; waits for it."""


class SyncEnvs:
    """Games in this process; they follow their orders when they are looked at.

    Args:
        game: what is played.
        num_envs: how many of it.
        privileged: open the game as its expert sees it.
    """

    def __init__(self, game: Game, num_envs: int, privileged: bool = False) -> None:
        self.game, self.num_envs, self.privileged = game, num_envs, privileged
        self._running: list[RunningGame] = []
        self._orders: dict[int, Callable[[], Seen]] = {}
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> SyncEnvs:
        with contextlib.ExitStack() as opened:
            for _ in range(self.num_envs):
                self._running.append(opened.enter_context(self.game.open(for_expert=self.privileged)))
            self._closing = opened.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._closing.close()

    def reset(self, env_id: int, seed: int) -> None:
        self._orders[env_id] = functools.partial(begin, self._running[env_id], seed)

    def step(self, env_id: int, values: Values) -> None:
        self._orders[env_id] = functools.partial(advance, self._running[env_id], values)

    def see(self, env_id: int) -> Seen:
        return self._orders.pop(env_id)()


def begin(running: RunningGame, seed: int) -> Seen:
    """The first frame of an episode."""
    frame, info = running.reset(seed)
    return Seen(frame, 0.0, False, info)


def advance(running: RunningGame, values: Values) -> Seen:
    """What a step leads to."""
    return Seen(*running.step(values))


Loop = Callable[[RunningGame, Connection, bool], None]


class EnvProcesses(Workers):
    """A process per game; ``with`` starts and ends them.

    Args:
        game: what is played; has to reach another process, see :func:`bczoo.core.workers.pack`.
        num_envs: how many of it.
        privileged: open the game as its expert sees it, and send its ``info``.
        loop: what a process does with its game: a function with a name, called with the game, the pipe and
            ``privileged``.
    """

    failure = GameCrashError

    def __init__(self, game: Game, num_envs: int, privileged: bool, loop: Loop) -> None:
        super().__init__(num_envs, f"game {game.name!r}", _run_game, pack((game, privileged, loop), GAME))

    def _started(self) -> None:
        for env_id in range(self.count):
            warn_again(self.receive(env_id))  # the game is open


class SubprocessEnvs(EnvProcesses):
    """Games in processes of their own, in step with the player; same orders as :class:`SyncEnvs`.

    Args:
        game: what is played; has to reach another process, see :func:`bczoo.core.workers.pack`.
        num_envs: how many of it.
        privileged: open the game as its expert sees it; ``info`` is empty otherwise.
    """

    def __init__(self, game: Game, num_envs: int, privileged: bool = False) -> None:
        super().__init__(game, num_envs, privileged, _obey)

    def reset(self, env_id: int, seed: int) -> None:
        self.send(env_id, (begin, seed))

    def step(self, env_id: int, values: Values) -> None:
        self.send(env_id, (advance, values))

    def see(self, env_id: int) -> Seen:
        return self.receive(env_id)


def _obey(running: RunningGame, pipe: Connection, privileged: bool) -> None:
    while True:
        order, argument = next_order(pipe)
        seen = order(running, argument)
        pipe.send(seen if privileged else seen._replace(info={}))


def _run_game(pipe: Connection, packed: bytes) -> None:
    game, privileged, loop = unpack(packed, GAME)
    with warnings_kept() as warned:
        opened = game.open(for_expert=privileged)
    with opened as running:
        pipe.send(warned)
        loop(running, pipe, privileged)
