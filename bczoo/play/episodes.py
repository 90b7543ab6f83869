"""Closed loop: a player plays whole episodes, and the returns are reported with their uncertainty.

Place in the pipeline: :mod:`bczoo.games.game` gives the game, :mod:`bczoo.games.players` or
:mod:`bczoo.play.agent` the player; :class:`PlayResult` goes to :func:`score_table`, to callbacks and to model
cards. Several episodes run side by side (:mod:`bczoo.play.envs`), so that a policy answers all of them with one
forward pass. They wait for its answer, or go on without it (:mod:`bczoo.play.realtime`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bczoo.core.actions import Decision
from bczoo.core.errors import UserError
from bczoo.core.files import require_file_target
from bczoo.core.progress import Progress
from bczoo.core.statistics import Interval, interval_over_episodes
from bczoo.core.tables import markdown_table
from bczoo.core.workers import Parcel, closing_on_sigterm, in_processes
from bczoo.games.bindings import inputs_in
from bczoo.games.game import MAKE_IT_THERE, Game, as_game
from bczoo.games.players import DecisionsCheck, Player, make_player
from bczoo.games.render import render_decision
from bczoo.play.envs import SubprocessEnvs, SyncEnvs
from bczoo.play.loop import EpisodeTable, OnStep, in_real_time, in_step
from bczoo.play.realtime import RealTimeEnvs, RealTimeReport

if TYPE_CHECKING:
    from bczoo.core.spec import InputSpec  # brings in torch

ENOUGH_EPISODES = 5  # of each player, for a share of the gap between random and expert

POLICY = "policy"  # its name among the players
PLAYED = Parcel("the game", hint=MAKE_IT_THERE)


@dataclass(frozen=True)
class PlayResult:
    """What came out of playing: one entry per episode, in the order of their seeds.

    Args:
        game: name of the game.
        returns: sum of rewards.
        lengths: steps.
        seeds: seed of each episode.
        seconds: wall-clock time of all of them together, once the games are open and the player has warmed up (in
            :func:`play_in_processes` from the start on).
        latency: durations by stage in milliseconds (:meth:`bczoo.play.latency.StageTimes.summary`), if they were
            measured.
        realtime: how the player kept up with the clock, if there was one.
    """

    game: str
    returns: list[float]
    lengths: list[int]
    seeds: list[int]
    seconds: float
    latency: dict[str, dict[str, float]] | None = None
    realtime: RealTimeReport | None = None

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def interval(self) -> Interval | None:
        """95 % interval of the mean return: bootstrap over episodes, 10,000 resamples; None for a single one."""
        if len(self.returns) < 2:
            return None
        return interval_over_episodes(np.asarray(self.returns), np.ones(len(self.returns)))

    @property
    def actions_per_second(self) -> float:
        """Decisions of the player per second of wall-clock time: in real time it may not answer every frame."""
        answers = sum(self.lengths) if self.realtime is None else self.realtime.answers
        return answers / self.seconds if self.seconds > 0 else float("nan")


class PlayInterrupted(KeyboardInterrupt):
    """A Ctrl-C while games were played.

    Args:
        results: by player what came out of the episodes that were over; a player may have none.
    """

    def __init__(self, results: Mapping[str, PlayResult]) -> None:
        super().__init__("games were interrupted")
        self.results = dict(results)


def check_playable(game: Game, spec: InputSpec) -> None:
    """Raise if a policy's action space or rate does not fit a game."""
    if missing := sorted(game.inputs - inputs_in(spec.actions)):
        raise UserError(
            f"{game.name} is played with {missing}, which the policy's action space {spec.actions.name!r} lacks"
        )
    if game.fps != spec.fps:
        raise UserError(f"{game.name} runs at {game.fps} steps a second, but the policy at {spec.fps}; set its fps")


def play(
    game: Game | str,
    player: Player,
    episodes: int,
    seed: int = 0,
    parallel: int = 8,
    progress: bool = True,
    on_step: OnStep | None = None,
    processes: bool = False,
    realtime: bool = False,
    measure: bool = False,
) -> PlayResult:
    """Play ``episodes`` episodes, up to ``parallel`` of them side by side.

    The games wait for the player, unless ``realtime`` is set. What comes out then depends on the seeds alone, not on
    ``processes``.

    Args:
        game: what is played, or its name; sent to other processes where it runs in them.
        player: who plays, in this process.
        episodes: how many; episode i has the seed ``seed + i``, whatever runs beside it.
        seed: seed of the first episode.
        parallel: games that run at the same time.
        progress: show a progress bar: episodes that are over, steps so far and their rate.
        on_step: called as ``on_step(episode, frame, decision, reward)`` after every step; the frame is the
            one that the decision answers. In real time it is called after every decision, and the reward is what
            came since the one before.
        processes: run every game in a process of its own; a player that is not ``privileged`` gets no infos then.
        realtime: let the games (in processes) run on the wall clock, see :mod:`bczoo.play.realtime`.
        measure: report the latency by stage, as is always done in real time. The player is warmed up before.
    """
    game = as_game(game)
    if episodes < 1 or parallel < 1:
        raise UserError(f"episodes and parallel must be at least 1, got {episodes} and {parallel}")
    num_envs, privileged = min(parallel, episodes), getattr(player, "privileged", False)
    with closing_on_sigterm(), Progress(total=episodes, desc=game.name, disable=not progress, unit="ep") as bar:
        table, report = EpisodeTable(game, player, episodes, seed, bar, on_step, measure or realtime), None
        try:
            if realtime:
                with RealTimeEnvs(game, num_envs, privileged) as ticking:
                    player.start(num_envs, seed)
                    report = in_real_time(ticking, table, num_envs)
            else:
                with (SubprocessEnvs if processes else SyncEnvs)(game, num_envs, privileged) as envs:
                    player.start(num_envs, seed)
                    in_step(envs, table, num_envs)
        except KeyboardInterrupt:
            raise PlayInterrupted({POLICY: _of_finished(game, table)}) from None  # one traceback is enough
    latency = table.times.summary() if table.measured else None
    seeds = [seed + i for i in range(episodes)]
    return PlayResult(game.name, table.returns, table.lengths, seeds, table.seconds, latency, report)


def _of_finished(game: Game, table: EpisodeTable) -> PlayResult:
    """The episodes that were over when playing was interrupted."""
    over = sorted(table.over)
    returns, lengths = [table.returns[i] for i in over], [table.lengths[i] for i in over]
    return PlayResult(game.name, returns, lengths, [table.seed + i for i in over], seconds=0.0)


def play_in_processes(
    game: Game | str, player: str, episodes: int, seed: int = 0, workers: int | None = None, progress: bool = True
) -> PlayResult:
    """The same as :func:`play` for the players ``expert`` and ``random``, spread over processes.

    Args:
        game: what is played, or its name; sent to other processes.
        player: ``expert`` or ``random``.
        episodes: how many; episode i has the seed ``seed + i``.
        seed: seed of the first episode.
        workers: processes; None takes one per processor core.
        progress: show a progress bar.
    """
    game = as_game(game)
    make_player(player, game)
    started = time.perf_counter()
    share = max(1, min(10, episodes // 4))  # episodes per task: few enough to keep every process busy to the end
    tasks = [(game, player, min(share, episodes - i), seed + i) for i in range(0, episodes, share)]
    with Progress(total=episodes, desc=f"{game.name} {player}", disable=not progress, unit="ep") as bar:
        over: list[PlayResult] = []

        def note(part: PlayResult) -> None:
            over.append(part)
            bar.update(len(part.returns))

        try:
            parts = in_processes(_play_some, tasks, workers, note, PLAYED)
        except KeyboardInterrupt:
            raise PlayInterrupted({player: _together(game, over, 0.0)}) from None
    return _together(game, parts, time.perf_counter() - started)


def _together(game: Game, parts: Sequence[PlayResult], seconds: float) -> PlayResult:
    return PlayResult(
        game.name,
        returns=[r for part in parts for r in part.returns],
        lengths=[n for part in parts for n in part.lengths],
        seeds=[s for part in parts for s in part.seeds],
        seconds=seconds,
    )


def play_beside_baselines(
    game: Game, player: Player, episodes: int, seed: int = 0, parallel: int = 8, baselines: bool = True, **options: Any
) -> dict[str, PlayResult]:
    """The same games played by a policy, by the game's expert (where it has one) and at random.

    Args:
        game: what is played.
        player: the policy.
        episodes: how many games each of them plays.
        seed: of the first game.
        parallel: games that the policy plays side by side.
        baselines: False for the policy alone.
        **options: of :func:`play`, for the policy.
    """
    results = {POLICY: play(game, player, episodes, seed, parallel=parallel, **options)}
    for name in (("expert", "random") if game.expert else ("random",)) if baselines else ():
        try:
            results[name] = play_in_processes(game, name, episodes, seed)
        except PlayInterrupted as stop:
            raise PlayInterrupted(results | stop.results) from stop
    return results


def score_table(results: Mapping[str, PlayResult]) -> str:
    """A Markdown table of players by name: mean return, its 95 % interval, episodes.

    Where both ``random`` and ``expert`` are among the names, every other player is also placed between them:
    0 % is random, 100 % the expert. A single episode has no interval, and a few say nothing about a share.
    """
    rows = [["player", "mean return", "95 % interval", "episodes"]]
    for name, result in results.items():
        interval = "n/a" if result.interval is None else "{:.1f} to {:.1f}".format(*result.interval)
        rows.append([name, f"{result.mean:.1f}", interval, str(len(result.returns))])
    return "\n".join([markdown_table(rows, padded=False), *_between_baselines(results)])


def _between_baselines(results: Mapping[str, PlayResult]) -> list[str]:
    """Where players are between random and expert, in words."""
    others = [name for name in results if name not in ("random", "expert")]
    if not {"random", "expert"} <= set(results) or not others:
        return []
    fewest = min(len(result.returns) for result in results.values())
    if fewest < ENOUGH_EPISODES:
        few = f"{fewest} episode{'s' * (fewest != 1)}"
        return ["", f"{few} a player: too few to say how much of the gap between random and expert is closed."]
    low, high = results["random"].mean, results["expert"].mean
    if low == high:
        return ["", "The expert does no better than random play here, so there is no gap to close."]
    lines = []
    for name in others:
        share = 100 * (results[name].mean - low) / (high - low)
        lines += ["", f"{name} closes {share:.0f} % of the gap between random and expert."]
    return lines


def require_video_target(path: str | Path, option: str) -> None:
    """Raise, before anything is played, if no video can be written to a path.

    Args:
        path: where an mp4 file is to be.
        option: that it was given by, for the error.
    """
    if Path(path).suffix != ".mp4" and not Path(path).is_dir():
        raise UserError(f"{option}: a video is an mp4 file, got {str(path)!r}")
    require_file_target(path, option, "play.mp4")


def play_to_video(
    game: Game, player: Player, path: str | Path, seed: int = 0, max_seconds: float = 60.0, size: int = 384
) -> float:
    """Write a video of one episode, with what the player pressed beside every frame.

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
    bar = Progress(total=int(max_seconds * game.fps), desc=f"{game.name} video", unit="frames")
    with VideoWriter(path, fps=game.fps) as video, bar:
        for step, (frame, decision, reward) in enumerate(_episode(game, player, seed)):
            caption = f"{game.name}   {step / game.fps:5.1f} s   return {total:.1f}"
            space = getattr(player, "action_space", game.action_space)  # a policy may know more keys than the game
            video.add(render_decision(frame, decision, caption, size, space))
            total += reward
            bar.update()
            if (step + 1) / game.fps >= max_seconds:
                break
        bar.total = bar.n  # the game may have been shorter
    return total


def _episode(game: Game, player: Player, seed: int) -> Iterator[tuple[np.ndarray, Decision, float]]:
    with closing_on_sigterm(), game.open(for_expert=getattr(player, "privileged", False)) as running:
        player.start(1, seed)
        frame, info = running.reset(seed)
        player.reset(0, seed)
        check, done = DecisionsCheck(game, player), False
        while not done:
            decision = check(player.act([0], [frame], [info]), 1)[0]
            next_frame, reward, done, info = running.step(decision.values)
            yield frame, decision, reward
            frame = next_frame


def _play_some(game: Game, player: str, episodes: int, seed: int) -> PlayResult:
    return play(game, make_player(player, game), episodes, seed, parallel=1, progress=False)
