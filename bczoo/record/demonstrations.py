"""Demonstrations: a game's expert or a random player plays, in parallel processes, and every episode is written.

Place in the pipeline: ``bczoo record --agent expert`` comes here from :mod:`bczoo.record.command`; plays a
:class:`~bczoo.games.game.Game` and writes through :class:`bczoo.data.recording.RecordingWriter`. Policies and their
corrections are in :mod:`bczoo.record.corrections`, people in :mod:`bczoo.record.keyboard`.

Under action noise a step holds what was executed, and beside it what the player had decided, which policies learn.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bczoo.core.actions import BinnedGroup, Values
from bczoo.core.workers import Parcel, in_processes
from bczoo.data.recording import RecordingExistsError
from bczoo.games.game import MAKE_IT_THERE, Game
from bczoo.games.players import ActionRepeat, make_player
from bczoo.record.episode import Stored, Todo, episode_writer
from bczoo.record.instruction import NO_INSTRUCTION, Instruction

NOISE_STEPS = (2, 10)  # fewest and most steps of a burst


def demonstrate(
    game: Game,
    agent: str,
    stored: Stored,
    noise: float,
    hold: int,
    workers: int | None,
    todo: Todo,
    on_episode: Callable[[], object] = lambda: None,
    instruction: Instruction = NO_INSTRUCTION,
) -> list[float | None]:
    """Let a game's expert or a random player play, and write every episode.

    Args:
        game: what is played.
        agent: expert or random.
        stored: how frames are stored.
        noise: share of steps that start a burst of :class:`ActionNoise`.
        hold: the player decides every so many steps.
        workers: processes; None takes one per processor core.
        todo: seeds and folders.
        on_episode: called after every episode.
        instruction: written into the recordings.

    Returns:
        Returns of the episodes; None where another process was faster, whose recording stays.
    """
    tasks = [(game, agent, seed, str(folder), stored, noise, hold, instruction) for seed, folder in todo]
    sent = Parcel("the game", hint=MAKE_IT_THERE)
    return in_processes(demonstrate_episode, tasks, workers, lambda _: on_episode(), sent)


def demonstrate_episode(
    game: Game,
    agent: str,
    seed: int,
    folder: str,
    stored: Stored,
    noise: float,
    hold: int = 1,
    instruction: Instruction = NO_INSTRUCTION,
) -> float | None:
    """Play one episode and write it to ``folder``.

    Returns:
        The sum of rewards; None where another process was faster, whose recording stays.
    """
    with contextlib.suppress(RecordingExistsError):
        return _demonstrate_episode(game, agent, seed, Path(folder), stored, noise, hold, instruction)
    return None


def _demonstrate_episode(
    game: Game, agent: str, seed: int, folder: Path, stored: Stored, noise: float, hold: int, instruction: Instruction
) -> float:
    player = ActionRepeat(make_player(agent, game), hold)
    disturbed = ActionNoise(game, noise, seed)
    total, done = 0.0, False
    with (
        game.open(for_expert=player.privileged) as running,
        episode_writer(game, folder, stored, agent, instruction.text) as writer,
    ):
        player.start(1, seed)
        frame, info = running.reset(seed)
        player.reset(0, seed)
        while not done:
            wanted = player.act([0], [frame], [info])[0].values
            executed = disturbed(wanted)
            burst = executed is not wanted  # not the player's action, so stored as a policy's own would be
            writer.add(
                frame,
                user=None if burst else wanted,
                system=executed if burst else None,
                expert=wanted if burst else None,
                text=instruction.text,
                text_embedding=instruction.embedding,
            )
            frame, reward, done, info = running.step(executed)
            total += reward
    return total


class ActionNoise:
    """Action noise: random turning in place of what was decided, in bursts of 2 to 10 steps.

    Where the game binds numbers (mouse motion, sticks), these are random and everything held stays as
    decided; other games get the values of the random player.

    Args:
        game: whose inputs are disturbed.
        share: share of steps that start a burst.
        seed: of the random numbers.
    """

    def __init__(self, game: Game, share: float, seed: int) -> None:
        self.game = game
        self.share = share
        self._rng = np.random.default_rng((seed, 1))  # apart from the random player's numbers
        self._left = 0
        self._turn: Values = {}

    def __call__(self, values: Values) -> Values:
        """What to execute where ``values`` was decided: the same object outside of bursts."""
        if self._left == 0 and self._rng.random() < self.share:
            low, high = NOISE_STEPS
            self._left = int(self._rng.integers(low, high + 1))
            sampled = self.game.random_values(self._rng)
            numbers = {g.name for g in self.game.action_space.groups if isinstance(g, BinnedGroup)}
            turn = {name: value for name, value in sampled.items() if name in numbers}
            self._turn = turn or sampled
        if self._left == 0:
            return values
        self._left -= 1
        return {**values, **self._turn}
