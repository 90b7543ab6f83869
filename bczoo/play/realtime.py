"""Games on the wall clock: they go on, whether the player has answered or not.

Place in the pipeline: :func:`bczoo.play.episodes.play` with ``realtime`` takes frames from :class:`RealTimeGames` and
answers them; what that cost is told by a :class:`RealTimeReport`.

A game steps ("ticks") every 1/fps seconds. The deadline of a frame's answer is the next tick, where the game takes
the newest answer that it has:

    tick 7                                      tick 8                        (1/fps seconds later)
    game steps | frame 7 is captured ........... answer received ...... game steps with it | frame 8 is captured
               | capture | resize ... sample | send |
               | <------------- total ------------> |

If no answer to the latest frame is there, the deadline is missed. The game then takes a late answer to an earlier
frame, or, if there is none either, holds what is held: keys, buttons and sticks, but the mouse stands still, since
it has already moved.

A game that takes longer than 1/fps to step is late. Its clock then goes on from there, without catching up: the next
tick comes at once, before any player could have answered, and has no deadline. Misses are the player's, late ticks the
game's.

An episode's clock starts when its first frame has been answered. So the first step has no deadline, and the first
frame's latency is not counted.

Times are told by ``time.perf_counter``, which all processes of a machine share on Linux (CLOCK_MONOTONIC).
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import numpy as np

from bczoo.core.actions import Values
from bczoo.games.game import Game, RunningGame
from bczoo.games.workers import Failure, next_order
from bczoo.play.latency import StageTimes
from bczoo.play.pool import GameProcesses

MOTION = ("mouse_dx", "mouse_dy")  # happens once, where everything else lasts


@dataclass(frozen=True)
class RealTimeReport:
    """How a player kept up with the clock.

    Args:
        ticks: steps of all games.
        missed_deadlines: ticks at which the latest frame had not been answered, without those that follow a late tick,
            where the player has had no time.
        late_ticks: ticks that the game itself took longer for than 1/fps seconds.
        superseded_frames: frames that the player never saw, because a newer one was there first.
        answers: frames that the player answered.
    """

    ticks: int
    missed_deadlines: int
    late_ticks: int
    superseded_frames: int
    answers: int

    def told(self) -> str:
        """Sentences for the terminal."""
        return (
            f"missed deadlines: {_of(self.missed_deadlines, self.ticks)}; frames superseded by a newer one: "
            f"{self.superseded_frames:,}; steps that the game was too slow for: {_of(self.late_ticks, self.ticks)}"
        )


def _of(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,} ({100 * part / max(whole, 1):.1f} %)"


class Shown(NamedTuple):
    """A frame that waits for an answer."""

    number: int  # in its episode, from 0
    frame: np.ndarray  # uint8 (height, width, 3)
    info: dict[str, Any]
    captured: float  # perf_counter
    total: float  # rewards of the episode so far


class Answer(NamedTuple):
    """What was decided after a frame."""

    number: int
    values: Values
    captured: float  # of the frame
    decided: float


@dataclass
class Episode:
    """An episode, told by its game when it is over."""

    total: float = 0.0
    ticks: int = 0
    missed: int = 0
    late: int = 0
    times: StageTimes = field(default_factory=StageTimes)  # send, game and total, as the game has measured them


class RealTimeGames(GameProcesses):
    """Games in processes, each on its own clock.

    Args:
        game: what is played; has to be picklable. Its ``fps`` is the clock's.
        rows: how many of it.
        privileged: open the game as its expert sees it; ``info`` is empty otherwise.
    """

    def __init__(self, game: Game, rows: int, privileged: bool = False) -> None:
        super().__init__(game, rows, privileged, _keep_time)
        self.superseded = 0
        self._news: dict[int, Any] = {}  # row -> its newest message
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> RealTimeGames:
        super().__enter__()
        self._reader.start()
        return self

    def reset(self, row: int, seed: int) -> None:
        """Order the episode of this seed to begin; its clock waits for the first answer."""
        self.send(row, seed)

    def answer(self, row: int, shown: Shown, values: Values) -> None:
        """Let a game take ``values`` at its next tick, if nothing newer comes."""
        self.send(row, Answer(shown.number, values, shown.captured, time.perf_counter()))

    def news(self, rows: Sequence[int] = ()) -> dict[int, Shown | Episode]:
        """What has happened since the last call, by row in order: the newest frame, or the end of an episode.

        Args:
            rows: wait for news of all of these; otherwise for any.
        """
        with self._changed:
            self._changed.wait_for(lambda: (self._news and all(row in self._news for row in rows)) or self._failed())
            news, self._news = self._news, {}
        return {row: self.checked(row, self._raised(news[row])) for row in sorted(news)}

    def _failed(self) -> bool:
        return any(not isinstance(message, Shown | Episode) for message in self._news.values())

    def _raised(self, message: Any) -> Any:
        if isinstance(message, _Ended):
            raise self.ended(message.row)
        return message

    def _read(self) -> None:
        """Take frames as soon as they come, in a thread, so that no game waits for the player."""
        rows: dict[Any, int] = {pipe: row for row, pipe in enumerate(self.pipes)}
        while rows:
            ready: list[Any] = wait(list(rows))
            for pipe in ready:
                row = rows[pipe]
                try:
                    message = pipe.recv()
                except Exception:  # also of a process that has ended in the middle of a message
                    message = _Ended(rows.pop(pipe))
                with self._changed:
                    before = self._news.get(row)
                    self.superseded += isinstance(before, Shown)
                    if not isinstance(before, Failure):  # which is why the process ends
                        self._news[row] = message
                    self._changed.notify()

    def _close_pipes(self) -> None:
        if self._reader.is_alive():
            self._reader.join()  # it ends with the last process
        super()._close_pipes()


class _Ended(NamedTuple):
    row: int


def _keep_time(running: RunningGame, pipe: Connection, privileged: bool) -> None:
    while True:
        order = next_order(pipe)
        if not isinstance(order, Answer):  # an answer came too late for its episode
            pipe.send(_play_episode(running, pipe, privileged, order))


def _play_episode(running: RunningGame, pipe: Connection, privileged: bool, seed: int) -> Episode:
    episode, period = Episode(), 1 / running.game.fps
    frame, info = running.reset(seed)
    captured = time.perf_counter()
    answers = _Answers(pipe, episode)
    due: float | None = None  # the clock stands still
    late = False
    while True:
        pipe.send(Shown(episode.ticks, frame, info if privileged else {}, captured, episode.total))
        values = answers.at(due)
        episode.missed += not late and answers.number < episode.ticks
        started = time.perf_counter()
        frame, reward, done, info = running.step(values)
        captured = time.perf_counter()
        episode.times.add("game", captured - started)
        episode.ticks += 1
        episode.total += reward
        due = (started if due is None else due) + period
        late = captured > due
        episode.late += late
        if done:
            return episode
        due = max(due, captured)


class _Answers:
    """What a game has been told to press."""

    def __init__(self, pipe: Connection, episode: Episode) -> None:
        self.pipe, self.episode = pipe, episode
        self.values: Values = {}
        self.number = -1  # of the newest frame that has been answered

    def at(self, due: float | None) -> Values:
        """What to press at a tick; without one, wait for an answer instead.

        An answer counts once: later it is held, but for the motion of the mouse.
        """
        self.values = {name: 0 if name in MOTION else value for name, value in self.values.items()}
        if due is None:
            self._receive()
            return self.values
        while select.select([self.pipe], [], [], max(0.0, due - time.perf_counter()))[0]:
            self._receive()
        return self.values

    def _receive(self) -> None:
        answer = next_order(self.pipe)
        received = time.perf_counter()
        self.values, self.number = answer.values, answer.number
        if answer.number > 0:
            self.episode.times.add("send", received - answer.decided)
            self.episode.times.add("total", received - answer.captured)
