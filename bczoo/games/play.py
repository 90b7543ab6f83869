"""Closed loop: a player plays whole episodes, and the returns are told with their uncertainty.

Place in the pipeline: :mod:`bczoo.games.game` gives the game, :mod:`bczoo.games.players` or
:mod:`bczoo.agent` the player; :class:`PlayResult` goes to :func:`score_table`, to callbacks and to model
cards. Several episodes run side by side in one process, so that a policy answers all of them with one forward
pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from bczoo.actions import Decision
from bczoo.errors import UserError
from bczoo.games.bindings import inputs_in
from bczoo.games.draw import draw_decision
from bczoo.games.game import Game, RunningGame
from bczoo.games.players import Player, make_player
from bczoo.games.workers import closing_on_sigterm, in_processes
from bczoo.intervals import interval_over_episodes

if TYPE_CHECKING:
    from bczoo.spec import InputSpec  # brings in torch

REFRESH_S = 0.3  # the progress bar tells steps at most this often
OnStep = Callable[[int, np.ndarray, Decision, float], None]


@dataclass(frozen=True)
class PlayResult:
    """What came out of playing: one entry per episode, in the order of their seeds.

    Args:
        game: name of the game.
        returns: sum of rewards.
        lengths: steps.
        seeds: seed of each episode.
        seconds: wall-clock time of all of them together.
    """

    game: str
    returns: list[float]
    lengths: list[int]
    seeds: list[int]
    seconds: float

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the mean return: bootstrap over episodes, 10,000 draws."""
        return interval_over_episodes(np.asarray(self.returns), np.ones(len(self.returns)))

    @property
    def steps_per_second(self) -> float:
        """Steps of all episodes per second of wall-clock time."""
        return sum(self.lengths) / self.seconds if self.seconds > 0 else float("nan")


def check_playable(game: Game, spec: InputSpec) -> None:
    """Raise if a policy's action space or rate does not fit a game."""
    if missing := sorted(game.inputs - inputs_in(spec.action_space)):
        raise UserError(
            f"{game.name} is played with {missing}, which the policy's action space {spec.action_space.name!r} lacks"
        )
    if game.fps != spec.fps:
        raise UserError(f"{game.name} runs at {game.fps} steps a second, but the policy at {spec.fps}; set its fps")


def play(
    game: Game,
    player: Player,
    episodes: int,
    seed: int = 0,
    parallel: int = 8,
    progress: bool = True,
    on_step: OnStep | None = None,
) -> PlayResult:
    """Play ``episodes`` episodes in this process, up to ``parallel`` of them side by side.

    Args:
        game: what is played.
        player: who plays.
        episodes: how many; episode i has the seed ``seed + i``, whatever runs beside it.
        seed: seed of the first episode.
        parallel: games that run at the same time.
        progress: show a progress bar: episodes that are over, steps so far and their rate.
        on_step: called as ``on_step(episode, frame, decision, reward)`` after every step; the frame is the
            one that the decision answers.
    """
    if episodes < 1 or parallel < 1:
        raise UserError(f"episodes and parallel must be at least 1, got {episodes} and {parallel}")
    started = time.perf_counter()
    returns, lengths = [0.0] * episodes, [0] * episodes
    rows = min(parallel, episodes)
    running: list[RunningGame] = []
    with closing_on_sigterm(), tqdm(total=episodes, desc=game.name, disable=not progress, unit="ep") as bar:
        try:
            for _ in range(rows):
                running.append(game.open(for_expert=getattr(player, "privileged", False)))
            player.start(rows, seed)
            todo = iter(range(episodes))
            count = _StepCount(bar)
            current: dict[int, tuple[int, np.ndarray, dict[str, Any]]] = {}  # row -> episode, frame, info

            def begin(row: int) -> None:
                if (episode := next(todo, None)) is not None:
                    current[row] = (episode, *running[row].reset(seed + episode))
                    player.reset(row, seed + episode)

            for row in range(rows):
                begin(row)
            while current:
                active = sorted(current)
                decisions = player.act(active, [current[r][1] for r in active], [current[r][2] for r in active])
                for row, decision in zip(active, decisions, strict=True):
                    episode, frame, _ = current.pop(row)
                    next_frame, reward, done, info = running[row].step(decision.values)
                    returns[episode] += reward
                    lengths[episode] += 1
                    if on_step is not None:
                        on_step(episode, frame, decision, reward)
                    if not done:
                        current[row] = (episode, next_frame, info)
                        continue
                    bar.update()
                    begin(row)
                count.add(len(active))
            count.show()
        finally:
            for one in running:
                one.close()
    seconds = time.perf_counter() - started
    return PlayResult(game.name, returns, lengths, [seed + i for i in range(episodes)], seconds)


def play_in_processes(
    game: Game, player: str, episodes: int, seed: int = 0, workers: int | None = None, progress: bool = True
) -> PlayResult:
    """The same as :func:`play` for the players ``expert`` and ``random``, spread over processes.

    Args:
        game: what is played; has to be picklable.
        player: ``expert`` or ``random``.
        episodes: how many; episode i has the seed ``seed + i``.
        seed: seed of the first episode.
        workers: processes; None takes one per processor core.
        progress: show a progress bar.
    """
    make_player(player, game)
    started = time.perf_counter()
    share = max(1, min(10, episodes // 4))  # episodes per task: few enough to keep every process busy to the end
    tasks = [(game, player, min(share, episodes - i), seed + i) for i in range(0, episodes, share)]
    with tqdm(total=episodes, desc=f"{game.name} {player}", disable=not progress, unit="ep") as bar:
        parts = in_processes(_play_some, tasks, workers, lambda part: bar.update(len(part.returns)))
    return PlayResult(
        game.name,
        returns=[r for part in parts for r in part.returns],
        lengths=[n for part in parts for n in part.lengths],
        seeds=[s for part in parts for s in part.seeds],
        seconds=time.perf_counter() - started,
    )


def play_beside_baselines(
    game: Game, player: Player, episodes: int, seed: int = 0, parallel: int = 8, baselines: bool = True
) -> dict[str, PlayResult]:
    """The same games played by a policy, by the game's expert (where it has one) and at random.

    Args:
        game: what is played.
        player: the policy.
        episodes: how many games each of them plays.
        seed: of the first game.
        parallel: games that the policy plays side by side.
        baselines: False for the policy alone.
    """
    results = {"policy": play(game, player, episodes, seed, parallel=parallel)}
    for name in (("expert", "random") if game.expert else ("random",)) if baselines else ():
        results[name] = play_in_processes(game, name, episodes, seed)
    return results


def score_table(results: Mapping[str, PlayResult]) -> str:
    """A Markdown table of players by name: mean return, its 95 % interval, episodes.

    Where both ``random`` and ``expert`` are among the names, every other player is also placed between them:
    0 % is random, 100 % the expert.
    """
    scale = (results["random"].mean, results["expert"].mean) if {"random", "expert"} <= set(results) else None
    lines = ["| player | mean return | 95 % interval | episodes |", "|---|---:|---:|---:|"]
    for name, result in results.items():
        low, high = result.interval
        lines.append(f"| {name} | {result.mean:.1f} | {low:.1f} to {high:.1f} | {len(result.returns)} |")
    for name, result in results.items():
        if scale and scale[0] != scale[1] and name not in ("random", "expert"):
            share = 100 * (result.mean - scale[0]) / (scale[1] - scale[0])
            lines += ["", f"{name} closes {share:.0f} % of the gap between random and expert."]
    return "\n".join(lines)


def record_play(
    game: Game, player: Player, path: str | Path, seed: int = 0, max_seconds: float = 60.0, size: int = 384
) -> float:
    """Write a video of one episode, with what the player pressed drawn beside every frame.

    Args:
        game: what is played.
        player: who plays.
        path: the video file, such as ``play.mp4``.
        seed: seed of the episode.
        max_seconds: the video ends after this much game time.
        size: height of the frames in pixels.

    Returns:
        The return up to the end of the video.
    """
    from bczoo.data.video import VideoWriter  # brings in the video library

    total = 0.0
    bar = tqdm(total=int(max_seconds * game.fps), desc=f"{game.name} video", unit="frame")
    with VideoWriter(path, fps=game.fps) as video, bar:
        for step, (frame, decision, reward) in enumerate(_episode(game, player, seed)):
            caption = f"{game.name}   {step / game.fps:5.1f} s   return {total:.1f}"
            video.add(draw_decision(frame, decision, caption, size, game.action_space))
            total += reward
            bar.update()
            if (step + 1) / game.fps >= max_seconds:
                break
    return total


def _episode(game: Game, player: Player, seed: int) -> Iterator[tuple[np.ndarray, Decision, float]]:
    with closing_on_sigterm(), game.open(for_expert=getattr(player, "privileged", False)) as running:
        player.start(1, seed)
        frame, info = running.reset(seed)
        player.reset(0, seed)
        done = False
        while not done:
            decision = player.act([0], [frame], [info])[0]
            next_frame, reward, done, info = running.step(decision.values)
            yield frame, decision, reward
            frame = next_frame


class _StepCount:
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


def _play_some(game: Game, player: str, episodes: int, seed: int) -> PlayResult:
    return play(game, make_player(player, game), episodes, seed, parallel=1, progress=False)
