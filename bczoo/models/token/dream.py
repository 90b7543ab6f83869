"""Pictures that a world model generates, one step after the other, for actions that somebody gives.

Place in the pipeline: ``bczoo dream``, ``bczoo evaluate`` and the game ``dream:WORLD`` (:mod:`bczoo.worlds`) show a
:class:`Dream` some real steps, then give it an action a step. The tokens of a picture are sampled one by one, each
among the codes; the past is a :class:`~bczoo.models.token.memory.TokenMemory`, so that a step costs the same however
long the dream is, and equals a forward pass over the last half of the window's steps to all of them.

Shape legend: R dreams side by side, z tokens of a picture, A action tokens, T steps, V codes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bczoo.core import arguments
from bczoo.models.token.memory import TokenMemory
from bczoo.nn.sampling import probabilities, sample

if TYPE_CHECKING:
    from bczoo.models.token.world import WorldModel


class Dreamt(NamedTuple):
    """A picture of each dream.

    Attributes:
        ids: (R, z).
        probability: (R, z), what each id was sampled with; of a greedy dream, that of the id without temperature.
    """

    ids: Tensor
    probability: Tensor


class Dream:
    """R dreams of one world.

    Args:
        world: in evaluation mode; never changed.
        dreams: R.
        temperature: divides the logits; 0 takes the most likely token.
        top_k: sample among so many of the most likely tokens; all if left out.
        seed: of the random numbers; each dream has its own.
        first: number of the first dream: many dreams in several parts are what they would be side by side.
    """

    def __init__(
        self,
        world: WorldModel,
        dreams: int = 1,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 0,
        first: int = 0,
    ) -> None:
        arguments.number("temperature", temperature, 0)
        if top_k is not None:
            arguments.whole("top_k", top_k, 1)
        self.world, self.temperature, self.top_k = world.eval(), temperature, top_k
        self.memory = TokenMemory(world.transformer, dreams, world.input_spec.window)
        self.all = list(range(dreams))
        self.rngs = [np.random.default_rng([seed, first + i]) for i in self.all]

    @torch.no_grad()
    def see(self, pictures: Tensor, actions: Tensor) -> None:
        """Begin anew from a context: ids of pictures (R, T, z), and the actions (R, T - 1, A) between them."""
        self.memory.reset()
        for t in range(pictures.shape[1]):
            if t:
                self.memory.feed(self.all, self.world.layout.action_tokens(actions[:, t - 1]))
            self.memory.feed(self.all, pictures[:, t].long())

    @torch.no_grad()
    def step(self, actions: Tensor) -> Dreamt:
        """The pictures that follow when the last ones are answered with actions (R, A)."""
        layout, transformer = self.world.layout, self.world.transformer
        output = self.memory.feed(self.all, layout.action_tokens(actions))[:, -1]  # (R, D)
        u = torch.from_numpy(np.stack([rng.random(layout.pictures) for rng in self.rngs]))
        chosen: list[tuple[Tensor, Tensor]] = []  # ids and probabilities (R,)
        for i in range(layout.pictures):
            if i:
                output = self.memory.draft(self.all, chosen[-1][0][:, None], ahead=i - 1)[:, -1]
            chosen.append(self._choose(transformer.choices(output, i), u[:, i]))
        ids, probability = (torch.stack(one, dim=-1) for one in zip(*chosen, strict=True))
        self.memory.feed(self.all, ids)
        return Dreamt(ids, probability)

    def pixels(self, pictures: Tensor) -> np.ndarray:
        """Frames (N, H, W, 3) uint8 of ids (N, z)."""
        with torch.no_grad():
            return self.world.tokenizer.decode(pictures).permute(0, 2, 3, 1).cpu().numpy()

    def _choose(self, logits: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Ids (R,) for logits (R, V) and random numbers (R,), and their probabilities (R,)."""
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k, dim=-1).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        p = probabilities(logits, self.temperature or 1.0)
        ids = sample(p, u) if self.temperature else logits.argmax(dim=-1)
        return ids, p.gather(-1, ids[:, None])[:, 0]
