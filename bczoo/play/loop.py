"""Episodes from the first frame to the last: the loops of games that wait for the player, and of games that do not.

Place in the pipeline: :func:`bczoo.play.episodes.play` opens games (:mod:`bczoo.play.pool`,
:mod:`bczoo.play.realtime`) and lets them be played here; an :class:`EpisodeTable` keeps what comes out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
from tqdm import tqdm

from bczoo.core.actions import Decision
from bczoo.games.players import Player
from bczoo.play.latency import StageTimes
from bczoo.play.pool import Games, Seen
from bczoo.play.realtime import Episode, RealTimeGames, RealTimeReport, Shown

REFRESH_S = 0.3  # the progress bar tells steps at most this often
OnStep = Callable[[int, np.ndarray, Decision, float], None]


class EpisodeTable:
    """Who plays which episode where, and what has come out so far.

    Args:
        player: who plays. One that can tell how long its stages take adds them to its attribute ``times``, a
            :class:`~bczoo.play.latency.StageTimes` or None.
        episodes: how many.
        seed: of the first episode.
        bar: shows how many are over.
        on_step: see :func:`bczoo.play.episodes.play`.
        measured: warm the player up, and have it measure its stages.
    """

    def __init__(
        self, player: Player, episodes: int, seed: int, bar: tqdm, on_step: OnStep | None, measured: bool
    ) -> None:
        self.player, self.seed, self.measured = player, seed, measured
        self.on_step: OnStep = on_step or (lambda *step: None)
        self.returns, self.lengths = [0.0] * episodes, [0] * episodes
        self.times = StageTimes()
        self.episodes: dict[int, int] = {}  # row -> episode that runs there
        self.bar, self.count = bar, StepCount(bar)
        self.seconds = 0.0
        self._todo = iter(range(episodes))
        self._started = 0.0

    def begin(self, games: Games | RealTimeGames, row: int) -> bool:
        """Order the next episode to begin in a row; False if none is left."""
        if (episode := next(self._todo, None)) is None:
            return False
        self.episodes[row] = episode
        games.reset(row, self.seed + episode)
        self.player.reset(row, self.seed + episode)
        return True

    def end(self, row: int) -> None:
        """The episode in a row is over."""
        del self.episodes[row]
        self.bar.update()

    def start(self, first: Mapping[int, Seen | Shown]) -> None:
        """The first frames are there, and time runs from here; a player that is measured is warmed up before."""
        if self.measured:
            rows = sorted(first)
            for some in (rows[: i + 1] for i in range(len(rows))):
                self.act({row: first[row] for row in some})
            for row in rows:
                self.player.reset(row, self.seed + self.episodes[row])
            self._tell_times_to(self.times)
        self.count = StepCount(self.bar)
        self._started = time.perf_counter()

    def act(self, seen: Mapping[int, Seen | Shown]) -> dict[int, Decision]:
        """The player's decisions by row, in order."""
        rows = sorted(seen)
        decisions = self.player.act(rows, [seen[row].frame for row in rows], [seen[row].info for row in rows])
        return dict(zip(rows, decisions, strict=True))

    def finish(self) -> None:
        """All episodes are over."""
        self.seconds = time.perf_counter() - self._started
        self.count.show()
        self._tell_times_to(None)

    def _tell_times_to(self, times: StageTimes | None) -> None:
        if hasattr(self.player, "times"):
            self.player.times = times


def in_step(games: Games, table: EpisodeTable, rows: int) -> None:
    """Play all episodes, with games that wait for the player.

    ``capture`` is the time from having sent all actions to having all frames that they lead to, ``total`` that from
    having the frames to having sent the actions.
    """
    begun = [row for row in range(rows) if table.begin(games, row)]
    seen = {row: games.see(row) for row in begun}
    table.start(seen)
    while seen:
        there = time.perf_counter()
        decisions = table.act(seen)
        decided = time.perf_counter()
        for row, decision in decisions.items():
            games.step(row, decision.values)
        sent = time.perf_counter()
        after = {row: games.see(row) for row in decisions}
        for stage, seconds in (("send", sent - decided), ("total", sent - there)):
            table.times.add(stage, seconds)
        table.times.add("capture", time.perf_counter() - sent)
        for row, decision in decisions.items():
            episode = table.episodes[row]
            table.returns[episode] += after[row].reward
            table.lengths[episode] += 1
            table.on_step(episode, seen[row].frame, decision, after[row].reward)
        table.count.add(len(after))
        seen = {row: one for row, one in after.items() if not one.done}
        over = [row for row in after if row not in seen]
        for row in over:
            table.end(row)
        begun = [row for row in over if table.begin(games, row)]
        seen |= {row: games.see(row) for row in begun}
    table.finish()


def in_real_time(games: RealTimeGames, table: EpisodeTable, rows: int) -> RealTimeReport:
    """Play all episodes, with games that do not wait; always answers the newest frames that are there."""
    begun = [row for row in range(rows) if table.begin(games, row)]
    news = games.news(begun)
    table.start({row: one for row, one in news.items() if isinstance(one, Shown)})
    before: dict[int, Shown] = {}  # row -> the frame that was answered last
    answers = missed = late = 0
    while table.episodes:
        shown = {row: one for row, one in news.items() if isinstance(one, Shown)}
        if shown:
            taken = time.perf_counter()
            decisions = table.act(shown)
            for row, decision in decisions.items():
                games.answer(row, shown[row], decision.values)
            for row, decision in decisions.items():
                frame, last = shown[row], before.get(row, shown[row])
                if frame.number > 0:
                    table.times.add("capture", taken - frame.captured)
                table.on_step(table.episodes[row], frame.frame, decision, frame.total - last.total)
                table.count.add(frame.number - last.number)
            answers += len(shown)
            before |= shown
        for row, over in news.items():
            if isinstance(over, Episode):
                table.returns[table.episodes[row]], table.lengths[table.episodes[row]] = over.total, over.ticks
                table.count.add(over.ticks - before.pop(row).number)
                missed, late = missed + over.missed, late + over.late
                for stage, durations in over.times.stages.items():
                    table.times.merge(stage, durations)
                table.end(row)
                table.begin(games, row)
        if table.episodes:
            news = games.news()
    table.finish()
    return RealTimeReport(sum(table.lengths), missed, late, games.superseded, answers)


class StepCount:
    """Steps beside a bar of episodes: games side by side may all end together, with nothing to see until then."""

    def __init__(self, bar: tqdm) -> None:
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
