"""A policy that plays while it is recorded.

Place in the pipeline: :mod:`bczoo.record.corrections` and :mod:`bczoo.record.keyboard` let a :class:`PlayingPolicy`
play; its name is part of the recordings' names.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from bczoo.nn.weights import add_weights
from bczoo.play.agent import Agent
from bczoo.play.open import OpenedPolicy, open_policy


@dataclass(frozen=True)
class PlayingPolicy:
    """A policy and how it plays.

    Args:
        opened: the policy and its instruction.
        temperature: of its sampling.
        greedy: takes the most likely action instead of sampling.
    """

    opened: OpenedPolicy
    temperature: float = 1.0
    greedy: bool = False

    @classmethod
    def load(
        cls, source: str, text: str | None, temperature: float, greedy: bool, device: str, revision: str | None
    ) -> PlayingPolicy:
        """The policy of a folder, run, checkpoint or repository; options as of :func:`bczoo.record.command.record`."""
        opened = open_policy(source, revision, device, text=text, temperature=temperature)
        playing = cls(opened, temperature, greedy)
        _ = playing.embedding  # an instruction that cannot be followed ends the command here
        return playing

    @property
    def text(self) -> str | None:
        return self.opened.text

    @cached_property
    def embedding(self) -> np.ndarray | None:
        """The embedded instruction, (E,)."""
        embedding = self.opened.embedding()
        return None if embedding is None else embedding.numpy()

    @cached_property
    def name(self) -> str:
        """Eight digits that change with the weights, the architecture and the way of playing."""
        policy = self.opened.policy
        settings = [policy.config, self.text, self.temperature, self.greedy]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        add_weights(digest, policy)
        return f"policy-{digest.hexdigest()[:8]}"

    @property
    def described(self) -> str:
        """Who plays, for the metadata of a recording."""
        return f"{self.opened.source} ({self.name})"

    @contextlib.contextmanager
    def agent(self, num_envs: int, seed: int) -> Iterator[Agent]:
        """Plays ``num_envs`` games, with one processor thread while a small policy plays."""
        threads = torch.get_num_threads()
        try:
            yield self.opened.for_play().agent(num_envs, temperature=self.temperature, greedy=self.greedy, seed=seed)
        finally:
            torch.set_num_threads(threads)
