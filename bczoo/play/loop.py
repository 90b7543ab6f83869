"""Episodes from the first frame to the last: the loops of games that wait for the player, and of games that do not.

Place in the pipeline: :func:`bczoo.play.episodes.play` opens games (:mod:`bczoo.play.envs`,
:mod:`bczoo.play.realtime`) and lets them be played here; an :class:`EpisodeTable` keeps what comes out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np

from bczoo.core.actions import Decision
from bczoo.core.progress import Progress
from bczoo.games.game import Game
from bczoo.games.players import DecisionsCheck, Player
from bczoo.play.envs import Envs, Seen
from bczoo.play.latency import StageTimes
from bczoo.play.realtime import Episode, RealTimeEnvs, RealTimeReport, Shown

REFRESH_S = 0.3  # the progress bar shows steps at most this often
OnStep = Callable[[int, np.ndarray, Decision, float], None]


class EpisodeTable:
    """Who plays which episode where, and what has come out so far.

    Args:
        game: what is played.
        player: who plays. One that measures its stages adds their durations to its attribute ``times``, a
            :class:`~bczoo.play.latency.StageTimes` or None.
        episodes: how many.
        seed: of the first episode.
        bar: shows how many are over.
        on_step: see :func:`bczoo.play.episodes.play`.
        measured: warm the player up, and have it measure its stages.
    """

    def __init__(
        self,
        game: Game,
        player: Player,
        episodes: int,
        seed: int,
        bar: Progress,
        on_step: OnStep | None,
        measured: bool,
    ) -> None:
        self.check = DecisionsCheck(game, player)
        self.player, self.seed, self.measured = player, seed, measured
        self.on_step: OnStep = on_step or (lambda *step: None)
        self.returns, self.lengths = [0.0] * episodes, [0] * episodes
        self.times = StageTimes()
        self.episodes: dict[int, int] = {}  # env_id -> episode that runs there
        self.bar, self.count = bar, StepCount(bar)
        self.over: list[int] = []  # episodes, in the order of their end
        self.seconds = 0.0
        self._todo = iter(range(episodes))
        self._started = 0.0

    def begin(self, games: Envs | RealTimeEnvs, env_id: int) -> bool:
        """Order the next episode to begin in a game; False if none is left."""
        if (episode := next(self._todo, None)) is None:
            return False
        self.episodes[env_id] = episode
        games.reset(env_id, self.seed + episode)
        self.player.reset(env_id, self.seed + episode)
        return True

    def end(self, env_id: int) -> None:
        """The episode in a game is over."""
        self.over.append(self.episodes.pop(env_id))
        self.bar.update()

    def start(self, first: Mapping[int, Seen | Shown]) -> None:
        """The first frames are there, and time runs from here; a player that is measured is warmed up before."""
        if self.measured:
            env_ids = sorted(first)
            for some in (env_ids[: i + 1] for i in range(len(env_ids))):
                self.act({env_id: first[env_id] for env_id in some})
            for env_id in env_ids:
                self.player.reset(env_id, self.seed + self.episodes[env_id])
            self._measure_into(self.times)
        self.count = StepCount(self.bar)
        self._started = time.perf_counter()

    def act(self, seen: Mapping[int, Seen | Shown]) -> dict[int, Decision]:
        """The player's decisions by env_id, in order."""
        env_ids = sorted(seen)
        newest = [seen[env_id] for env_id in env_ids]
        decisions = self.player.act(env_ids, [one.frame for one in newest], [one.info for one in newest])
        return dict(zip(env_ids, self.check(decisions, len(env_ids)), strict=True))

    def finish(self) -> None:
        """All episodes are over."""
        self.seconds = time.perf_counter() - self._started
        self.count.show()
        self._measure_into(None)

    def _measure_into(self, times: StageTimes | None) -> None:
        if hasattr(self.player, "times"):
            self.player.times = times


def in_step(games: Envs, table: EpisodeTable, num_envs: int) -> None:
    """Play all episodes, with games that wait for the player.

    ``capture`` is the time from having sent all actions to having all frames that they lead to, ``total`` that from
    having the frames to having sent the actions.
    """
    begun = [env_id for env_id in range(num_envs) if table.begin(games, env_id)]
    seen = {env_id: games.see(env_id) for env_id in begun}
    table.start(seen)
    while seen:
        there = time.perf_counter()
        decisions = table.act(seen)
        decided = time.perf_counter()
        for env_id, decision in decisions.items():
            games.step(env_id, decision.values)
        sent = time.perf_counter()
        after = {env_id: games.see(env_id) for env_id in decisions}
        for stage, seconds in (("send", sent - decided), ("total", sent - there)):
            table.times.add(stage, seconds)
        table.times.add("capture", time.perf_counter() - sent)
        for env_id, decision in decisions.items():
            episode = table.episodes[env_id]
            table.returns[episode] += after[env_id].reward
            table.lengths[episode] += 1
            table.on_step(episode, seen[env_id].frame, decision, after[env_id].reward)
        table.count.add(len(after))
        seen = {env_id: one for env_id, one in after.items() if not one.done}
        over = [env_id for env_id in after if env_id not in seen]
        for env_id in over:
            table.end(env_id)
        begun = [env_id for env_id in over if table.begin(games, env_id)]
        seen |= {env_id: games.see(env_id) for env_id in begun}
    table.finish()


def in_real_time(games: RealTimeEnvs, table: EpisodeTable, num_envs: int) -> RealTimeReport:
    """Play all episodes, with games that do not wait; always answers the newest frames that are there."""
    begun = [env_id for env_id in range(num_envs) if table.begin(games, env_id)]
    news = games.news(begun)
    table.start({env_id: one for env_id, one in news.items() if isinstance(one, Shown)})
    before: dict[int, Shown] = {}  # env_id -> the frame that was answered last
    answers = missed = late = 0
    while table.episodes:
        shown = {env_id: one for env_id, one in news.items() if isinstance(one, Shown)}
        if shown:
            taken = time.perf_counter()
            decisions = table.act(shown)
            for env_id, decision in decisions.items():
                games.answer(env_id, shown[env_id], decision.values)
            for env_id, decision in decisions.items():
                frame, last = shown[env_id], before.get(env_id, shown[env_id])
                if frame.number > 0:
                    table.times.add("capture", taken - frame.captured)
                table.on_step(table.episodes[env_id], frame.frame, decision, frame.total - last.total)
                table.count.add(frame.number - last.number)
            answers += len(shown)
            before |= shown
        for env_id, over in news.items():
            if isinstance(over, Episode):
                table.returns[table.episodes[env_id]], table.lengths[table.episodes[env_id]] = over.total, over.ticks
                table.count.add(over.ticks - before.pop(env_id).number)
                missed, late = missed + over.missed, late + over.late
                for stage, durations in over.times.stages.items():
                    table.times.merge(stage, durations)
                table.end(env_id)
                table.begin(games, env_id)
        if table.episodes:
            news = games.news()
    table.finish()
    return RealTimeReport(sum(table.lengths), missed, late, games.superseded, answers)


class StepCount:
    """Steps beside a bar of episodes: games side by side may all end together, with nothing to see until then."""

    def __init__(self, bar: Progress) -> None:
        self.bar, self.steps = bar, 0
        self.started = self.shown = time.perf_counter()

    def add(self, steps: int) -> None:
        self.steps += steps
        if time.perf_counter() - self.shown >= REFRESH_S:
            self.show()

    def show(self) -> None:
        self.shown = time.perf_counter()
        rate = self.steps / max(self.shown - self.started, 1e-9)
        self.bar.set_postfix_str(f"{self.steps} steps, {rate:.0f} steps/s")
