"""The memory of a streaming agent: keys and values of the last steps, in preallocated ring buffers.

Place in the pipeline: in play the backbone sees one step at a time. Every layer's keys and values are kept here, and
each call attends to them under the very mask of training (``masks.may_attend``). The reference's memory holds
``window`` steps including the current one; older steps roll off, while what is kept still carries their context.

One backbone pass a frame is enough: the action tokens of the previous step enter together with the observation of
this one. They look one step further back than the observation, so the ring holds ``window + 1`` steps. action_out is
seen by nobody but itself and goes to a scratch column::

    columns   [ sinks | ring place 0 | ring place 1 | ... | ring place window | action_out | unused ]

Shape legend: R rows (games), r rows and n tokens of a call, S tokens of a step, M key/value heads, H head dim, K sinks,
C columns of a buffer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bczoo.core.errors import UserError
from bczoo.models.bc.layout import StepLayout
from bczoo.models.bc.masks import may_attend
from bczoo.models.bc.transformer import PolicyTransformer
from bczoo.nn.attention import Sinks, sdpa
from bczoo.nn.blocks import Attention, Rotation

NEVER = -(1 << 40)  # no step
ALIGNMENT = 16  # columns; kernels on a GPU take masks in whole units of this
MOST_NUMBERS = 1 << 27  # of a game's memory, whatever the policy ...
MOST_NUMBERS_PER_WEIGHT = 16  # ... and more for every weight of the backbone


def check_size(transformer: PolicyTransformer, layout: StepLayout, window: int) -> None:
    """Raise if the memory of one game would be out of all proportion to the policy.

    A window is only a number in a config, so that a small file could ask for all memory of a machine. Counted are keys
    and values, and the masks and their tables in bytes.
    """
    columns = transformer.sinks + (window + 1) * (layout.length - 1)
    attentions: list[Any] = [block.attention for block in transformer.blocks]
    kept = sum(2 * a.kv_heads * a.head_dim for a in attentions)
    seen = 2 * len(set(transformer.histories)) * layout.length
    weights = sum(p.numel() for p in transformer.parameters())
    needed, allowed = columns * (kept + seen), MOST_NUMBERS + MOST_NUMBERS_PER_WEIGHT * weights
    if needed > allowed:
        raise UserError(
            f"the memory of a game would hold {needed:,} numbers (window {window:,}, {layout.length:,} tokens a step, "
            f"{len(attentions)} layers); with {weights:,} weights in the backbone at most {allowed:,} are "
            "allowed, so choose a shorter window or fewer tokens"
        )


@dataclass
class LayerMemory:
    """Keys and values of one layer, each (R, M, C, H); the first K columns hold the sinks."""

    k: Tensor
    v: Tensor


class Memory:
    """Memory of R games that play with one policy. Every tensor is as large from the first step on as it ever gets.

    Args:
        transformer: the backbone whose keys and values are kept.
        layout: order of the tokens inside a step.
        window: steps that an observation looks back over, its own included.
        rows: R.
    """

    def __init__(self, transformer: PolicyTransformer, layout: StepLayout, window: int, rows: int) -> None:
        self.transformer, self.layout, self.rows = transformer, layout, rows
        self.steps = window + 1
        self.sinks = transformer.sinks
        self.device = next(transformer.parameters()).device
        self.kept = [slot for slot in range(layout.length) if slot != layout.action_out]
        self.scratch = self.sinks + self.steps * len(self.kept)
        self.columns = -(-(self.scratch + 1) // ALIGNMENT) * ALIGNMENT
        self.held = torch.full((rows, self.steps), NEVER, device=self.device)  # the step in each place of the ring
        self.every = torch.arange(rows, device=self.device)
        self.tables = {h: self._table(min(h, window - 1)) for h in set(transformer.histories)}
        self.layers = [self._layer(block.attention) for block in transformer.blocks]  # type: ignore[arg-type]

    def _table(self, reach: int) -> Tensor:
        """Who may look at whom, by age of the key's step plus one, slot of the query, kept slot of the key.

        Age -1 stands for steps to come, the last one for steps that have rolled off; nobody sees either.
        """
        age = torch.arange(-1, self.steps + 1)[:, None, None]
        query, key = torch.arange(self.layout.length)[:, None], torch.tensor(self.kept)
        seen = may_attend(self.layout, reach, age, query, torch.zeros_like(age), key)
        return (seen & (age >= 0) & (age < self.steps)).to(self.device)  # (steps + 2, S, S - 1)

    def _layer(self, attention: Attention) -> LayerMemory:
        """An empty buffer for one layer, its sinks in place."""
        shape = (self.rows, attention.kv_heads, self.columns, attention.head_dim)
        like = attention.k_norm.scale
        memory = LayerMemory(like.new_zeros(shape), like.new_zeros(shape))
        if attention.sinks is not None:
            k, v = attention.sinks
            memory.k[:, :, : self.sinks], memory.v[:, :, : self.sinks] = k.detach(), v.detach()
        return memory

    @property
    def bytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(2 * layer.k.numel() * layer.k.element_size() for layer in self.layers)

    def reset(self, row: int | None = None) -> None:
        """Empty the memory of one game, or of all."""
        self.held[slice(None) if row is None else row] = NEVER

    def column(self, step: Tensor, slot: Tensor) -> Tensor:
        """Column of the token at (step, slot)."""
        place = slot - (slot > self.layout.action_out).to(slot.dtype)
        ring = self.sinks + (step % self.steps) * len(self.kept) + place
        return torch.where(slot == self.layout.action_out, self.scratch, ring)

    def run(self, x: Tensor, rows: Tensor | None, now: Tensor, step: Tensor, slot: Tensor) -> Tensor:
        """Feed tokens through the backbone, keeping their keys and values.

        Args:
            x: tokens (r, n, D) of some of the games.
            rows: (r,) which games; None for all of them, which copies nothing and looks at no value on the way.
            now: (r,) the step that each of them is in, counted from 0.
            step: (r, n) the step that each token belongs to; negative for tokens before the game's first.
            slot: (n,) their slots in the step.

        Returns:
            the backbone's outputs (r, n, D).
        """
        index = self.every if rows is None else rows
        self.held[index, now % self.steps] = now
        held = self.held if rows is None else self.held[rows]
        columns = self.column(step, slot)
        masks = {h: self._mask(table, held, step, slot, columns) for h, table in self.tables.items()}
        one_by_one = None if rows is None else rows.tolist()
        attends = [
            _StreamAttention(layer, index, columns, masks[h], one_by_one)
            for layer, h in zip(self.layers, self.transformer.histories, strict=True)
        ]
        positions = step * self.layout.length + slot
        return self.transformer.run(x, Rotation.at(positions, self.transformer.head_dim), attends)

    def _mask(self, table: Tensor, held: Tensor, step: Tensor, slot: Tensor, columns: Tensor) -> Tensor:
        """Which columns each token sees, (r, 1, n, C)."""
        mask = torch.zeros(*step.shape, self.columns, dtype=torch.bool, device=self.device)
        mask[..., : self.sinks] = True
        age = (step[..., None] - held[:, None]).clamp(-1, self.steps)  # (r, n, steps)
        mask[..., self.sinks : self.scratch] = table[age + 1, slot[:, None]].flatten(-2)
        # Every token sees itself, action_out too, which is not in the ring; and so does a token before the game's
        # first step, which sees nothing else, so that its row stays finite.
        return mask.scatter_(-1, columns[..., None], True)[:, None]


@dataclass
class _StreamAttention:
    """Writes the new keys and values into a layer's buffer and attends to all of it."""

    memory: LayerMemory
    index: Tensor  # (r,) of the games
    columns: Tensor  # (r, n)
    mask: Tensor  # (r, 1, n, C)
    one_by_one: list[int] | None  # the games again, where they are not all: each is attended to where it lies

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, sinks: Sinks) -> Tensor:
        memory, place = self.memory, (self.index[:, None], slice(None), self.columns)
        memory.k[place] = k.transpose(1, 2).to(memory.k.dtype)  # (r, n, M, H)
        memory.v[place] = v.transpose(1, 2).to(memory.v.dtype)
        keys, values = memory.k.to(q.dtype), memory.v.to(q.dtype)
        if self.one_by_one is None:
            return sdpa(q, keys, values, self.mask)
        rows = [(slice(i, i + 1), slice(row, row + 1)) for i, row in enumerate(self.one_by_one)]
        return torch.cat([sdpa(q[i], keys[row], values[row], self.mask[i]) for i, row in rows])
