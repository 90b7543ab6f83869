"""Games side by side: in this process, or each in a process of its own.

Place in the pipeline: :func:`bczoo.games.play.play` orders steps from :class:`GamesHere` or :class:`GamePool` and
looks at what they led to; both take the same orders and lead to the same frames. :mod:`bczoo.games.realtime` runs
games on the wall clock in such processes.

A process that runs a game is spawned, so it shares nothing with this one but a pipe. It ends when it is told to, when
the pipe is closed, at SIGTERM and when this process dies, and every time closes its game.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import pickle
import signal
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import numpy as np

from bczoo.actions import Values
from bczoo.errors import UserError
from bczoo.games.game import Game, RunningGame
from bczoo.games.workers import end_with_parent, exit_on_signal, pack, unpack

CLOSING_S = 10.0  # time that a game has to close before it is stopped, and then killed
HERE = "processes=False"  # does without other processes


class GameCrashError(RuntimeError):
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


class GameProcesses:
    """A process per row that runs a game; ``with`` starts and ends them.

    Args:
        game: what is played; has to be picklable.
        rows: how many of it.
        privileged: open the game as its expert sees it, and tell ``info``.
        loop: what a process does with its game: a function with a name, called with the game, the pipe and
            ``privileged``.
    """

    def __init__(self, game: Game, rows: int, privileged: bool, loop: Loop) -> None:
        self.game, self.rows, self.privileged = game, rows, privileged
        self._packed = pack((game, privileged, loop), HERE)
        self.processes: list[BaseProcess] = []
        self.pipes: list[Connection] = []

    def __enter__(self) -> Any:
        try:
            for row in range(self.rows):
                self._start(row)
            for row in range(self.rows):
                self.receive(row)  # the game is open
        except BaseException:
            self._end(at_once=True)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: BaseException | TracebackType | None) -> None:
        self._end(at_once=kind is not None)

    def send(self, row: int, order: Any) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # what is received next tells why
            self.pipes[row].send(order)

    def receive(self, row: int) -> Any:
        """The next message of a game; its failure is raised here."""
        try:
            return self.checked(row, self.pipes[row].recv())
        except (EOFError, ConnectionResetError):
            raise self.ended(row) from None

    def checked(self, row: int, message: Any) -> Any:
        """A message, if it does not tell of a failure."""
        if not isinstance(message, Failure):
            return message
        if message.error is not None:
            raise message.error
        raise GameCrashError(f"{self._told(row)} failed in its process:\n{message.told}")

    def ended(self, row: int) -> GameCrashError:
        """The error for a process that ended without a word."""
        self.processes[row].join(CLOSING_S)
        status = self.processes[row].exitcode
        how = f"signal {-status}" if status is not None and status < 0 else f"status {status}"
        return GameCrashError(f"the process of {self._told(row)} has ended ({how})")

    def _told(self, row: int) -> str:
        return f"game {self.game.name!r} ({row + 1} of {self.rows})"

    def _start(self, row: int) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self.pipes.append(ours)
        process = context.Process(target=_run_game, args=(self._packed, theirs), name=f"{self.game.name} {row}")
        self.processes.append(process)
        resource_tracker.ensure_running()  # it would unblock Ctrl-C
        try:
            with _interrupts_held_back():
                process.start()
        finally:
            theirs.close()

    def _end(self, at_once: bool) -> None:
        started = [process for process in self.processes if process.pid is not None]
        for row in range(len(started)):
            if at_once:
                started[row].terminate()
            else:
                self.send(row, None)
        for process in started:
            for stop in (process.terminate, process.kill):
                process.join(CLOSING_S)
                if process.is_alive():
                    stop()
            process.join()
        self._close_pipes()

    def _close_pipes(self) -> None:
        for pipe in self.pipes:
            pipe.close()


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Ctrl-C reaches all processes of a terminal: it must not meet one that cannot ignore it yet."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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


@dataclass(frozen=True)
class Failure:
    """Why a game process ends: the error where it speaks to the user, and what Python says of any other."""

    error: UserError | None
    told: str


def next_order(pipe: Connection) -> Any:
    """The next order in a game process; ends the process if there will be none."""
    try:
        order = pipe.recv()
    except (EOFError, OSError):
        order = None
    if order is None:
        raise SystemExit(0)
    return order


def _obey(running: RunningGame, pipe: Connection, privileged: bool) -> None:
    while True:
        order, argument = next_order(pipe)
        seen = order(running, argument)
        pipe.send(seen if privileged else seen._replace(info={}))


def _run_game(packed: bytes, pipe: Connection) -> None:
    """A game process from its beginning to its end."""
    end_with_parent(exit_on_signal)
    os.set_inheritable(pipe.fileno(), False)  # an engine that outlives this process must not hold it open
    try:
        game, privileged, loop = unpack(packed, HERE)
        with game.open(for_expert=privileged) as running:
            pipe.send(None)
            loop(running, pipe, privileged)
    except Exception as error:
        with contextlib.suppress(OSError):  # nobody listens any more
            pipe.send(_failure(error))


def _failure(error: Exception) -> Failure:
    told = "".join(traceback.format_exception(error))
    if not isinstance(error, UserError):
        return Failure(None, told)
    try:
        return Failure(pickle.loads(pickle.dumps(error)), told)
    except Exception:
        return Failure(UserError(str(error)), told)
