"""The memory of a streaming agent: keys and values of the last steps, in preallocated ring buffers.

Place in the pipeline: in play the backbone sees one step at a time. Every layer's keys and values are kept here, and
each call attends to them under the very mask of training (``masks.may_attend``). The published system's memory holds
``window`` steps including the current one; older steps roll off, while what is kept still carries their context.

One backbone pass a frame is enough: the action tokens of the previous step enter together with the observation of
this one. They look one step further back than the observation, so the ring holds ``window + 1`` steps. action_out is
seen by nobody but itself and goes to a scratch column.

Shape legend: R rows (games), n tokens of a call, M key/value heads, H head dim, K sinks, C columns of a buffer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bczoo.model.attention import Sinks, sdpa
from bczoo.model.blocks import Attention, Rotation
from bczoo.model.layout import StepLayout
from bczoo.model.masks import may_attend
from bczoo.model.transformer import PolicyTransformer


@dataclass
class LayerMemory:
    """Keys and values of one layer, each (R, M, C, H); the first K columns hold the sinks."""

    k: Tensor
    v: Tensor


class Memory:
    """Memory of R games that play with one policy.

    Args:
        transformer: the backbone whose keys and values are kept.
        layout: order of the tokens inside a step.
        window: steps that an observation looks back over, its own included.
        rows: R.
    """

    def __init__(self, transformer: PolicyTransformer, layout: StepLayout, window: int, rows: int) -> None:
        self.transformer, self.layout, self.window, self.rows = transformer, layout, window, rows
        self.steps = window + 1
        self.sinks = transformer.sinks
        self.device = next(transformer.parameters()).device
        kept = layout.length - 1  # all but action_out
        self.scratch = self.sinks + self.steps * kept
        # column -> ring place and slot, for the mask
        slots = [s for s in range(layout.length) if s != layout.action_out]
        self.column_slot = torch.tensor(
            [*slots * self.steps, layout.action_out], device=self.device
        )  # (C - K,), ring and scratch
        self.column_ring = torch.arange(self.steps, device=self.device).repeat_interleave(kept)
        self.layers = [self._layer(block.attention) for block in transformer.blocks]  # type: ignore[arg-type]

    def _layer(self, attention: Attention) -> LayerMemory:
        """An empty buffer for one layer, its sinks in place."""
        shape = (self.rows, attention.kv_heads, self.scratch + 1, attention.head_dim)
        weight = attention.out.weight
        memory = LayerMemory(weight.new_zeros(shape), weight.new_zeros(shape))
        if attention.sinks is not None:
            k, v = attention.sinks
            memory.k[:, :, : self.sinks], memory.v[:, :, : self.sinks] = k.detach(), v.detach()
        return memory

    def column(self, step: Tensor, slot: Tensor) -> Tensor:
        """Column of the token at (step, slot)."""
        kept = self.layout.length - 1
        place = slot - (slot > self.layout.action_out).to(slot.dtype)
        ring = self.sinks + (step % self.steps) * kept + place
        return torch.where(slot == self.layout.action_out, self.scratch, ring)

    def run(self, x: Tensor, rows: Tensor, now: Tensor, step: Tensor, slot: Tensor) -> Tensor:
        """Feed tokens through the backbone, keeping their keys and values.

        Args:
            x: tokens (r, n, D) of some of the games.
            rows: (r,) which games.
            now: (r,) the step that each of them is in, counted from 0.
            step: (r, n) the step that each token belongs to; negative for tokens before the game's first.
            slot: (r, n) their slots in the step.

        Returns:
            the backbone's outputs (r, n, D).
        """
        ages = (now[:, None] - self.column_ring) % self.steps  # (r, ring)
        ring_step = now[:, None] - ages
        kv_step = torch.cat([ring_step, now[:, None]], dim=1)  # the scratch column belongs to this step
        columns = self.column(step, slot)
        # a token before the game's first step sees itself alone, so that its row stays finite
        own = columns[..., None] - self.sinks == torch.arange(len(self.column_slot), device=self.device)
        masks = {}
        for history in set(self.transformer.histories):
            reach = min(history, self.window - 1)
            allowed = (
                may_attend(self.layout, reach, step[..., None], slot[..., None], kv_step[:, None], self.column_slot)
                & (kv_step >= 0)[:, None]
            )
            allowed |= own
            sinks = allowed.new_ones(*allowed.shape[:2], self.sinks)
            masks[history] = torch.cat([sinks, allowed], dim=-1)[:, None]  # (r, 1, n, C)
        attends = [
            _StreamAttention(layer, rows, columns, masks[h], whole=len(rows) == self.rows)
            for layer, h in zip(self.layers, self.transformer.histories, strict=True)
        ]
        positions = step * self.layout.length + slot
        return self.transformer.run(x, Rotation.at(positions, self.transformer.head_dim), attends)


@dataclass
class _StreamAttention:
    """Writes the new keys and values into a layer's buffer and attends to all of it."""

    memory: LayerMemory
    rows: Tensor
    columns: Tensor  # (r, n)
    mask: Tensor  # (r, 1, n, C)
    whole: bool  # the call is for all rows in order

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, sinks: Sinks) -> Tensor:
        memory, place = self.memory, (self.rows[:, None], slice(None), self.columns)
        memory.k[place] = k.transpose(1, 2).to(memory.k.dtype)  # (r, n, M, H)
        memory.v[place] = v.transpose(1, 2).to(memory.v.dtype)
        keys, values = (memory.k, memory.v) if self.whole else (memory.k[self.rows], memory.v[self.rows])
        return sdpa(q, keys.to(q.dtype), values.to(q.dtype), self.mask)
