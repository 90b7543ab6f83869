"""Who may look at whom: the custom attention mask, written once.

Place in the pipeline: :func:`may_attend` is the only statement of the mask. FlexAttention (:func:`block_mask`),
scaled-dot-product attention (:func:`dense_mask`) and the memory of the streaming agent all evaluate it.

Rules (paper 2601.04575, figure 2b), with P the slot of action_out:

* earlier steps, at most ``history`` steps back: everything but their action_out, so also their true actions (unless
  ``past_actions`` is off)
* same step: text, image and thinking tokens see each other; action_out sees those and itself; action tokens see
  everything of the step but action_out
* so the decision of a step never sees an action of that step, and nobody but itself ever sees an action_out

Two steps of [text, image, thinking, action_out, 2 actions], rows look at columns::

    step 0      step 1
    t i h o a a t i h o a a
    x x x . . . . . . . . .   text
    x x x . . . . . . . . .   image
    x x x . . . . . . . . .   thinking
    x x x x . . . . . . . .   action_out
    x x x . x x . . . . . .   action
    x x x . x x . . . . . .   action
    x x x . x x x x x . . .   text
    x x x . x x x x x . . .   image
    x x x . x x x x x . . .   thinking
    x x x . x x x x x x . .   action_out
    x x x . x x x x x . x x   action
    x x x . x x x x x . x x   action

Shape legend: T steps, S tokens of a step, L = T * S, K sinks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from bczoo.models.bc.layout import StepLayout
from bczoo.nn.attention import WindowAttention, flex, sdpa

Index = Any  # an int or an integer tensor; the rules below are elementwise


def may_attend(layout: StepLayout, history: int, q_step: Index, q_slot: Index, kv_step: Index, kv_slot: Index) -> Any:
    """Whether the token at (q_step, q_slot) may look at the token at (kv_step, kv_slot). Elementwise.

    Args:
        layout: order of the tokens inside a step.
        history: how many steps back a query may look (0: its own step only).
    """
    out = layout.action_out
    to_observation = kv_slot < out
    kept = (kv_slot != out) if layout.past_actions else to_observation
    earlier = (kv_step < q_step) & (q_step - kv_step <= history) & kept
    out_to_itself = (q_slot == out) & (kv_slot == out)
    among_actions = (q_slot > out) & (kv_slot > out)
    if layout.causal_actions:
        among_actions = among_actions & (kv_slot <= q_slot)
    return earlier | ((kv_step == q_step) & (to_observation | out_to_itself | among_actions))


def mask_mod(layout: StepLayout, history: int, sinks: int = 0) -> Callable[..., Any]:
    """The mask in FlexAttention's form, over absolute token indices; the first ``sinks`` keys are visible to all."""
    size = layout.length

    def step_mask(batch: Index, head: Index, q: Index, kv: Index) -> Any:
        token = kv - sinks
        allowed = may_attend(layout, history, q // size, q % size, token // size, token % size)
        return allowed | (kv < sinks) if sinks else allowed

    return step_mask


def dense_mask(layout: StepLayout, steps: int, history: int, sinks: int = 0, device: Any = None) -> Tensor:
    """The mask of a window as a boolean tensor (L, K + L): True may look."""
    length = steps * layout.length
    q = torch.arange(length, device=device)[:, None]
    kv = torch.arange(sinks + length, device=device)[None, :]
    return mask_mod(layout, history, sinks)(0, 0, q, kv)


def block_mask(layout: StepLayout, steps: int, history: int, sinks: int = 0, device: Any = None) -> Any:
    """The mask of a window as a FlexAttention BlockMask over (L, K + L)."""
    from torch.nn.attention.flex_attention import create_block_mask

    length = steps * layout.length
    return create_block_mask(
        mask_mod(layout, history, sinks), None, None, length, sinks + length, device=device or "cpu"
    )


@lru_cache(maxsize=256)  # one entry per layer at most, for a few window lengths
def window_attention(
    layout: StepLayout,
    steps: int,
    history: int,
    sinks: int,
    device: torch.device,
    backend: Literal["sdpa", "flex"],
) -> WindowAttention:
    """The attention of a window of ``steps`` steps; equal arguments share one mask."""
    with torch.inference_mode(False):  # a mask first built in validation is used in training too
        if backend == "flex":
            return WindowAttention(block_mask(layout, steps, history, sinks, device), flex)
        return WindowAttention(dense_mask(layout, steps, history, sinks, device), sdpa)


def as_text(mask: Tensor) -> str:
    """A small mask as text, ``x`` for may look and ``.`` for may not."""
    return "\n".join(" ".join("x" if cell else "." for cell in row) for row in mask.tolist())
