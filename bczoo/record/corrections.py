"""Corrections: a policy plays, an expert takes over at times, and a policy learns from what the expert did.

Place in the pipeline: ``bczoo record --policy P --expert E`` (:mod:`bczoo.record.demonstrations`) loads a policy and comes here;
the recordings go to ``bczoo fit`` beside the demonstrations. Every frame is marked with whose action followed it: the
policy's own (system) stay in view as past actions but are not learned from, the expert's (user) are (paper 2601.04575,
correction data). With ``dagger`` every frame is labelled with what the expert would have done instead.

Several games are played side by side, so that the policy answers all of them with one forward pass. A person takes
over in :mod:`bczoo.record.keyboard`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bczoo.core.actions import Decision, Values
from bczoo.core.devices import play_threads, usable_device
from bczoo.core.errors import UserError
from bczoo.data.recording import RecordingExistsError
from bczoo.games.game import Expert, Game, RunningGame
from bczoo.games.workers import closing_on_sigterm
from bczoo.hub.source import locate
from bczoo.models.policy import Policy
from bczoo.nn.sampling import check_sampling
from bczoo.play.agent import Agent
from bczoo.play.episodes import check_playable
from bczoo.record.demonstrations import Todo, recording_of


@dataclass(frozen=True)
class TakeoverRule:
    """When the expert takes over from the policy, and what is learned from.

    Args:
        share: probability, at every step that the policy plays, that the expert takes over.
        steps: fewest and most steps that it then plays.
        dagger: label every step with the expert's action, whoever played.
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
    """Who plays, step by step, in one episode; its draws depend on the episode's seed alone.

    Args:
        rule: when the expert takes over.
        seed: of the episode.
    """

    def __init__(self, rule: TakeoverRule, seed: int) -> None:
        self.rule = rule
        self._rng = np.random.default_rng((seed, 2))  # apart from the policy's draws
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


@dataclass
class PlayingPolicy:
    """A policy that plays while it is recorded.

    Args:
        policy: the policy.
        name: tells its weights and how it plays; recordings of different policies have different names.
        source: where it came from, as the user named it.
        text: its instruction.
        embedding: of the instruction, (E,).
        temperature: of its sampling.
        greedy: takes the most likely action instead of sampling.
    """

    policy: Policy
    name: str
    source: str
    text: str | None = None
    embedding: np.ndarray | None = None
    temperature: float = 1.0
    greedy: bool = False

    @classmethod
    def load(
        cls, source: str, text: str | None, temperature: float, greedy: bool, device: str, revision: str | None
    ) -> PlayingPolicy:
        """The policy of a folder, run, checkpoint or repository; options as of :func:`bczoo.record.demonstrations.record`."""
        check_sampling(temperature)
        found = locate(source, revision)
        policy = found.load(device=usable_device(device))
        if text is None and (text := found.record.get("instruction")):
            print(f"instruction: {text}")
        name = f"policy-{_fingerprint(policy, text, temperature, greedy)}"
        return cls(
            policy, name, source, text or None, policy.embed(text).numpy() if text else None, temperature, greedy
        )

    def agent(self, games: int, seed: int) -> Agent:
        return self.policy.for_play().agent(games, temperature=self.temperature, greedy=self.greedy, seed=seed)

    @contextlib.contextmanager
    def suited_threads(self) -> Iterator[None]:
        """One processor thread while a small policy plays."""
        threads = torch.get_num_threads()
        play_threads(self.policy)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _fingerprint(policy: Policy, text: str | None, temperature: float, greedy: bool) -> str:
    """Eight digits that change with the weights, the architecture and the way of playing."""
    digest = hashlib.sha256(json.dumps([policy.config, text, temperature, greedy], sort_keys=True).encode())
    for name, tensor in sorted(policy.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:8]


def record_corrections(
    game: Game,
    playing: PlayingPolicy,
    rule: TakeoverRule | None,
    size: int,
    parallel: int,
    todo: Todo,
    on_episode: Callable[[], object] = lambda: None,
) -> list[float | None]:
    """Let a policy play, its game's expert correct it, and write every episode.

    Args:
        game: what is played.
        playing: the policy.
        rule: when the expert takes over; None for the policy alone.
        size: height and width of the stored frames in pixels.
        parallel: games that run side by side.
        todo: seeds and folders.
        on_episode: called after every episode.

    Returns:
        Returns in the order in which the episodes ended; None where another process was faster, whose recording stays.
    """
    if parallel < 1:
        raise UserError(f"parallel must be at least 1, got {parallel}")
    check_playable(game, playing.policy.input_spec)
    waiting, rows = iter(todo), range(min(parallel, len(todo)))
    returns: list[float | None] = []
    current: dict[int, _Episode] = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(closing_on_sigterm())
        stack.enter_context(playing.suited_threads())
        running = [stack.enter_context(game.open(for_expert=rule is not None)) for _ in rows]
        stack.callback(_discard, current)  # what is cut short
        agent = playing.agent(len(rows), todo[0][0] if todo else 0)

        def begin(row: int) -> None:
            for seed, folder in waiting:
                try:
                    current[row] = _Episode(game, running[row], playing, rule, seed, folder, size)
                except RecordingExistsError:
                    ended(None)
                else:
                    agent.reset(row, seed)
                    return

        def ended(total: float | None) -> None:
            returns.append(total)
            on_episode()

        for row in rows:
            begin(row)
        while current:
            active = sorted(current)
            frames = [current[row].frame for row in active]
            decisions = agent.step_many(active, frames, [playing.embedding] * len(active))
            for row, decision in zip(active, decisions, strict=True):
                episode = current[row]
                done = episode.step(decision)
                if episode.executed is not decision.values:
                    agent.override_last_action(row, episode.executed)
                if done:
                    try:
                        episode.writer.close()
                        ended(episode.total)
                    except RecordingExistsError:
                        ended(None)
                    del current[row]
                    begin(row)
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
        size: int,
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
        user = f"{playing.source} ({playing.name})" + (" and expert" if rule is not None else "")
        self.writer = recording_of(game, folder, size, user, playing.text)

    def step(self, decision: Decision) -> bool:
        """Play and write one step, the policy's decision or the expert's; returns whether the episode is over."""
        wanted, taken_over = None, False
        if self.expert is not None:
            wanted = self.expert.act(self.frame, self.info)
            taken_over = self._takes_over()
        self.executed = wanted if taken_over and wanted is not None else decision.values
        labelled = taken_over or (self.rule is not None and self.rule.dagger)
        self.writer.add(
            self.frame,
            user=wanted if labelled else None,
            system=None if labelled else decision.values,
            text=self.playing.text,
            text_embedding=self.playing.embedding,
        )
        self.frame, reward, done, self.info = self.running.step(self.executed)
        self.total += reward
        return done
