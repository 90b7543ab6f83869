"""Games on the wall clock: they go on, whether the player has answered or not.

Place in the pipeline: :func:`bczoo.play.episodes.play` with ``realtime`` takes frames from :class:`RealTimeEnvs` and
answers them; a :class:`RealTimeReport` says what that cost.

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

Times are those of ``time.perf_counter``, which all processes of a machine share on Linux (CLOCK_MONOTONIC).
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
from bczoo.core.workers import Failure, next_order
from bczoo.games.game import Game, RunningGame
from bczoo.play.envs import EnvProcesses
from bczoo.play.latency import StageTimes

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

    def summary(self) -> str:
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
    """What a game reports of an episode that is over."""

    total: float = 0.0
    ticks: int = 0
    missed: int = 0
    late: int = 0
    times: StageTimes = field(default_factory=StageTimes)  # send, game and total, as the game has measured them


class RealTimeEnvs(EnvProcesses):
    """Games in processes, each on its own clock.

    Args:
        game: what is played; has to reach another process. Its ``fps`` is the clock's.
        num_envs: how many of it.
        privileged: open the game as its expert sees it; ``info`` is empty otherwise.
    """

    def __init__(self, game: Game, num_envs: int, privileged: bool = False) -> None:
        super().__init__(game, num_envs, privileged, _keep_time)
        self.superseded = 0
        self._news: dict[int, Any] = {}  # env_id -> its newest message
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> RealTimeEnvs:
        super().__enter__()
        self._reader.start()
        return self

    def reset(self, env_id: int, seed: int) -> None:
        """Order the episode of this seed to begin; its clock waits for the first answer."""
        self.send(env_id, seed)

    def answer(self, env_id: int, shown: Shown, values: Values) -> None:
        """Let a game take ``values`` at its next tick, if nothing newer comes."""
        self.send(env_id, Answer(shown.number, values, shown.captured, time.perf_counter()))

    def news(self, env_ids: Sequence[int] = ()) -> dict[int, Shown | Episode]:
        """What has happened since the last call, by env_id in order: the newest frame, or the end of an episode.

        Args:
            env_ids: wait for news of all of these; otherwise for any.
        """
        with self._changed:
            self._changed.wait_for(lambda: (self._news and self._news.keys() >= set(env_ids)) or self._failed())
            news, self._news = self._news, {}
        return {env_id: self.checked(env_id, self._raised(news[env_id])) for env_id in sorted(news)}

    def _failed(self) -> bool:
        return any(not isinstance(message, Shown | Episode) for message in self._news.values())

    def _raised(self, message: Any) -> Any:
        if isinstance(message, _Ended):
            raise self.ended(message.env_id)
        return message

    def _read(self) -> None:
        """Take frames as soon as they come, in a thread, so that no game waits for the player."""
        open_pipes: dict[Any, int] = {pipe: env_id for env_id, pipe in enumerate(self.pipes)}
        while open_pipes:
            ready: list[Any] = wait(list(open_pipes))
            for pipe in ready:
                env_id = open_pipes[pipe]
                try:
                    message = pipe.recv()
                except Exception:  # also of a process that has ended in the middle of a message
                    message = _Ended(open_pipes.pop(pipe))
                with self._changed:
                    before = self._news.get(env_id)
                    self.superseded += isinstance(before, Shown)
                    if not isinstance(before, Failure):  # which is why the process ends
                        self._news[env_id] = message
                    self._changed.notify()

    def _close_pipes(self) -> None:
        if self._reader.is_alive():
            self._reader.join()  # it ends with the last process
        super()._close_pipes()


class _Ended(NamedTuple):
    env_id: int


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
    """What a game is to press."""

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
