"""Demonstrations: experts play, and every episode becomes a recording that policies train on.

Place in the pipeline: plays a :class:`~bczoo.games.game.Game` in parallel processes and writes through
:class:`bczoo.data.recording.RecordingWriter`. ``bczoo record`` calls :func:`record`; a config that should
train without a step before it names :class:`PlayedRecordings` as its source.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from bczoo.actions import BinnedGroup, Values
from bczoo.data.recording import RecordingWriter
from bczoo.data.source import RecordingSource
from bczoo.errors import UserError
from bczoo.games.game import Game, make_game
from bczoo.games.players import Holding, make_player
from bczoo.games.workers import in_processes

BURST_STEPS = (2, 10)


def record(
    env: str,
    out: str,
    agent: str = "expert",
    episodes: int = 20,
    seed: int = 0,
    size: int = 192,
    noise: float = 0.0,
    workers: int | None = None,
    hold: int = 1,
) -> list[str]:
    """Play a game and write every episode as a recording.

    An episode that is already in the folder is kept and not played again, so the same command goes on with a
    recording that was interrupted, and a larger number of episodes adds to it. Episodes of other games,
    agents and seeds may lie in the same folder.

    Args:
        env: the game, such as doom/defend_the_center, or package.module:function for your own.
        out: folder of the recordings.
        agent: who plays, expert or random.
        episodes: how many episodes.
        seed: seed of the first episode; the others follow.
        size: height and width of the stored frames in pixels.
        noise: share of steps that start a burst of random turning (2 to 10 steps long). The recording holds
            what the expert would have done instead, which teaches a policy to recover from its own mistakes.
        workers: processes that play at the same time; one per processor core if left out.
        hold: the player decides every so many steps and holds its decision in between.

    Returns:
        The folders of the episodes.
    """
    if episodes < 1:
        raise UserError(f"episodes must be at least 1, got {episodes}")
    if not 0 <= noise < 1:
        raise UserError(f"noise is a share of steps from 0 up to (not including) 1, got {noise}")
    if hold < 1:
        raise UserError(f"hold is a number of steps from 1 on, got {hold}")
    game = make_game(env)
    make_player(agent, game)
    folders = [Path(out) / episode_name(env, agent, seed + i, size, noise, hold) for i in range(episodes)]
    todo = [(i, folder) for i, folder in enumerate(folders) if not folder.exists()]
    tasks = [(game, agent, seed + i, str(folder), size, noise, hold) for i, folder in todo]
    with tqdm(total=episodes, initial=episodes - len(todo), desc=f"recording {env}", unit="ep") as bar:
        returns = in_processes(record_episode, tasks, workers, lambda _: bar.update())
    kept = episodes - len(todo)
    print(
        f"{episodes} episodes of {env} in {out}"
        + (f", {kept} of them were already there" if kept else "")
        + (f"; mean return {np.mean(returns):.1f}" if returns else "")
    )
    return [str(folder) for folder in folders]


def episode_name(env: str, agent: str, seed: int, size: int, noise: float, hold: int = 1) -> str:
    """Folder name of an episode; two episodes of one name hold the same frames and actions."""
    game = re.sub(r"[^\w.]+", "-", env)
    disturbed = f"_noise{noise:g}" if noise else ""
    held = f"_hold{hold}" if hold > 1 else ""
    return f"{game}_{agent}{disturbed}{held}_{size}px_{seed:06d}"


def record_episode(game: Game, agent: str, seed: int, folder: str, size: int, noise: float, hold: int = 1) -> float:
    """Play one episode and write it to ``folder``; returns the sum of rewards."""
    player = Holding(make_player(agent, game), hold)
    bursts = Bursts(game, noise, seed)
    name, _, subtype = game.name.partition("/")
    total, done = 0.0, False
    with (
        game.open(for_expert=player.privileged) as running,
        RecordingWriter(folder, fps=game.fps, size=size, env=name, env_subtype=subtype, user=agent) as writer,
    ):
        player.start(1, seed)
        frame, info = running.reset(seed)
        player.reset(0, seed)
        while not done:
            values = player.act([0], [frame], [info])[0].values
            writer.add(frame, user=values)
            frame, reward, done, info = running.step(bursts(values))
            total += reward
    return total


class Bursts:
    """Random turning in place of what was decided, for 2 to 10 steps at a time.

    Where the game binds numbers (mouse motion, sticks), these are random and everything held stays as
    decided; other games get the values of the random player.

    Args:
        game: whose inputs are disturbed.
        share: share of steps that start a burst.
        seed: of the draws.
    """

    def __init__(self, game: Game, share: float, seed: int) -> None:
        self.game = game
        self.share = share
        self._rng = np.random.default_rng((seed, 1))  # apart from the random player's draws
        self._left = 0
        self._turn: Values = {}

    def __call__(self, values: Values) -> Values:
        """What to execute where ``values`` was decided."""
        if self._left == 0 and self._rng.random() < self.share:
            low, high = BURST_STEPS
            self._left = int(self._rng.integers(low, high + 1))
            drawn = self.game.random_values(self._rng)
            numbers = {g.name for g in self.game.action_space.groups if isinstance(g, BinnedGroup)}
            turn = {name: value for name, value in drawn.items() if name in numbers}
            self._turn = turn or drawn
        if self._left == 0:
            return values
        self._left -= 1
        return {**values, **self._turn}


class PlayedRecordings(RecordingSource):
    """Recordings that an expert plays when training starts; see :func:`record`.

    Args:
        env: the game, such as doom/defend_the_center, or package.module:function for your own; or several.
        agent: who plays, expert or random.
        episodes: how many episodes of each game; one number, or one per game.
        seed: seed of the first episode.
        size: height and width of the stored frames in pixels.
        noise: share of steps that start a burst of random turning.
        workers: processes that play at the same time; one per processor core if left out.
        hold: the player decides every so many steps and holds its decision in between.
    """

    def __init__(
        self,
        env: str | list[str],
        agent: str = "expert",
        episodes: int | list[int] = 20,
        seed: int = 0,
        size: int = 192,
        noise: float = 0.0,
        workers: int | None = None,
        hold: int = 1,
    ) -> None:
        self.env = env
        self.agent = agent
        self.episodes = episodes
        self.seed = seed
        self.size = size
        self.noise = noise
        self.workers = workers
        self.hold = hold

    def describe(self) -> dict[str, Any]:
        return {
            "env": self.env,
            "agent": self.agent,
            "episodes": self.episodes,
            "seed": self.seed,
            "noise": self.noise,
            "hold": self.hold,
        }

    def prepare(self, root: Path) -> None:
        """Play what is not yet in ``root``."""
        envs = [self.env] if isinstance(self.env, str) else self.env
        counts = [self.episodes] * len(envs) if isinstance(self.episodes, int) else self.episodes
        if len(counts) != len(envs):
            raise UserError(f"{len(envs)} games need one number of episodes or one for each, got {counts}")
        for env, episodes in zip(envs, counts, strict=True):
            record(env, str(root), self.agent, episodes, self.seed, self.size, self.noise, self.workers, self.hold)
