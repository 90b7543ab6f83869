"""Corrections: a policy plays, an expert takes over at times, and a policy learns from what the expert did.

Place in the pipeline: ``bczoo record --policy P --expert E`` (:mod:`bczoo.record.command`) loads a policy and comes
here; the recordings go to ``bczoo fit`` beside the demonstrations. Every frame is marked with whose action followed it:
the policy's own (system) stay in view as past actions but are not learned from, the expert's (user) are (paper
2601.04575, correction data). With ``dagger`` those of the policy also hold what
the expert would have done: that is what is learned of them, after the same past (DAgger, Ross et al. 2011).

Several games are played side by side, so that the policy answers all of them with one forward pass. A person takes
over in :mod:`bczoo.record.keyboard`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bczoo.core.actions import Decision, Values
from bczoo.core.errors import UserError
from bczoo.core.workers import closing_on_sigterm
from bczoo.data.recording import RecordingExistsError
from bczoo.games.game import Expert, Game, RunningGame
from bczoo.play.episodes import check_playable
from bczoo.record.episode import Stored, Todo, episode_writer
from bczoo.record.playing import PlayingPolicy


@dataclass(frozen=True)
class TakeoverRule:
    """When the expert takes over from the policy, and what is learned from.

    Args:
        share: probability, at every step that the policy plays, that the expert takes over.
        steps: fewest and most steps that it then plays.
        dagger: where the policy plays, label the step with what the expert would have done.
    """

    share: float = 0.05
    steps: tuple[int, int] = (10, 30)
    dagger: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise UserError(f"takeover is a probability per step from 0 to 1, got {self.share}")
        if not 1 <= self.steps[0] <= self.steps[1]:
            raise UserError(f"takeover_steps are the fewest and the most steps, from 1 on, got {list(self.steps)}")
        if self.share == 0 and not self.dagger:
            raise UserError(
                "without takeovers (takeover 0) the expert teaches nothing; give --takeover or --dagger true"
            )

    @property
    def name(self) -> str:
        """What of this changes a recording, for its name."""
        low, high = self.steps
        taken = f"takeover{self.share:g}x{low}-{high}" if self.share else ""
        return "_".join(part for part in ("dagger" if self.dagger else "", taken) if part)


class Takeovers:
    """Who plays, step by step, in one episode; what it samples depends on the episode's seed alone.

    Args:
        rule: when the expert takes over.
        seed: of the episode.
    """

    def __init__(self, rule: TakeoverRule, seed: int) -> None:
        self.rule = rule
        self._rng = np.random.default_rng((seed, 2))  # apart from the policy's numbers
        self._left = 0  # steps that the expert still plays

    def __call__(self) -> bool:
        """Whether the expert plays the next step."""
        if self._left == 0:
            if self._rng.random() >= self.rule.share:
                return False
            low, high = self.rule.steps
            self._left = int(self._rng.integers(low, high + 1))
        self._left -= 1
        return True


def record_corrections(
    game: Game,
    playing: PlayingPolicy,
    rule: TakeoverRule | None,
    stored: Stored,
    parallel: int,
    todo: Todo,
    on_episode: Callable[[], object] = lambda: None,
) -> list[float | None]:
    """Let a policy play, its game's expert correct it, and write every episode.

    Args:
        game: what is played.
        playing: the policy.
        rule: when the expert takes over; None for the policy alone.
        stored: how frames are stored.
        parallel: games that run side by side.
        todo: seeds and folders.
        on_episode: called after every episode.

    Returns:
        Returns in the order in which the episodes ended; None where another process was faster, whose recording stays.
    """
    if parallel < 1:
        raise UserError(f"parallel must be at least 1, got {parallel}")
    check_playable(game, playing.opened.policy.input_spec)
    waiting, env_ids = iter(todo), range(min(parallel, len(todo)))
    returns: list[float | None] = []
    current: dict[int, _Episode] = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(closing_on_sigterm())
        running = [stack.enter_context(game.open(for_expert=rule is not None)) for _ in env_ids]
        stack.callback(_discard, current)  # what is cut short
        agent = stack.enter_context(playing.agent(len(env_ids), todo[0][0] if todo else 0))

        def begin(env_id: int) -> None:
            for seed, folder in waiting:
                try:
                    current[env_id] = _Episode(game, running[env_id], playing, rule, seed, folder, stored)
                except RecordingExistsError:
                    ended(None)
                else:
                    agent.reset(env_id, seed)
                    return

        def ended(total: float | None) -> None:
            returns.append(total)
            on_episode()

        for env_id in env_ids:
            begin(env_id)
        while current:
            active = sorted(current)
            frames = [current[env_id].frame for env_id in active]
            decisions = agent.step_many(active, frames, [playing.embedding] * len(active))
            for env_id, decision in zip(active, decisions, strict=True):
                episode = current[env_id]
                done = episode.step(decision)
                if episode.executed is not decision.values:
                    agent.override_last_action(env_id, episode.executed)
                if done:
                    try:
                        episode.writer.close()
                        ended(episode.total)
                    except RecordingExistsError:
                        ended(None)
                    del current[env_id]
                    begin(env_id)
    return returns


def _discard(episodes: dict[int, _Episode]) -> None:
    for episode in episodes.values():
        episode.writer.discard()


class _Episode:
    """One game that is being played and written."""

    def __init__(
        self,
        game: Game,
        running: RunningGame,
        playing: PlayingPolicy,
        rule: TakeoverRule | None,
        seed: int,
        folder: Path,
        stored: Stored,
    ) -> None:
        self.running, self.playing, self.rule = running, playing, rule
        self.expert: Expert | None = None
        if rule is not None:
            self.expert = game.make_expert()
            self.expert.reset(seed)
            self._takes_over = Takeovers(rule, seed)
        self.total = 0.0
        self.executed: Values = {}  # in the last step
        self.frame, self.info = running.reset(seed)
        user = playing.described + (" and expert" if rule is not None else "")
        self.writer = episode_writer(game, folder, stored, user, playing.text)

    def step(self, decision: Decision) -> bool:
        """Play and write one step, the policy's decision or the expert's; returns whether the episode is over."""
        wanted, taken_over = None, False
        if self.expert is not None:
            wanted = self.expert.act(self.frame, self.info)
            taken_over = self._takes_over()
        self.executed = wanted if taken_over and wanted is not None else decision.values
        dagger = self.rule is not None and self.rule.dagger
        self.writer.add(
            self.frame,
            user=wanted if taken_over else None,
            system=None if taken_over else decision.values,
            expert=wanted if dagger and not taken_over else None,
            text=self.playing.text,
            text_embedding=self.playing.embedding,
        )
        self.frame, reward, done, self.info = self.running.step(self.executed)
        self.total += reward
        return done
