"""All counterfactual decisions of a window in one pass: a second stream of tokens beside the recorded one.

Place in the pipeline: the causality score asks, for every step t of a window, what the policy would have decided had
it seen another picture at t (or at the last m steps), everything before unchanged. Done one step at a time that takes T
forwards. Here all questions are asked in the same forward: for every t a short stream of tokens that looks at the
recorded steps before it and at itself, under the very mask rule of the policy (:mod:`bczoo.models.bc.masks`), at the
very positions of the steps it replaces. The recorded tokens do not see the streams, so they come out as always.

Shape legend: B batch, T steps, S tokens of a step, L = T * S, P slot of action_out, m replaced steps, R = (m - 1) * S +
P + 1 tokens of a stream (R = m * S where the backbone predicts the action tokens itself), D width, K sinks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from bczoo.models.bc.layout import StepLayout
from bczoo.models.bc.masks import may_attend
from bczoo.nn.attention import WindowAttention, flex, resolve_backend, sdpa
from bczoo.nn.blocks import Rotation

if TYPE_CHECKING:
    from bczoo.models.bc.policy import BCPolicy


def stream_length(layout: StepLayout, replaced: int) -> int:
    """R: the stream ends with the last token that the decoder reads."""
    last = layout.length if layout.causal_actions else layout.action_out + 1
    return (replaced - 1) * layout.length + last


def streams_mask(layout: StepLayout, steps: int, history: int, replaced: int, sinks: int = 0) -> Callable[..., Any]:
    """The mask over recorded tokens followed by one stream per step, in FlexAttention's form."""
    size, length = layout.length, stream_length(layout, replaced)
    recorded = steps * size

    def place(token: Any) -> tuple[Any, Any, Any]:
        """Stream (-1: recorded), step and slot of a token."""
        in_stream = token >= recorded
        target, index = (token - recorded) // length, (token - recorded) % length
        stream = torch.where(in_stream, target, -1)
        step = torch.where(in_stream, target - replaced + 1 + index // size, token // size)
        return stream, step, torch.where(in_stream, index % size, token % size)

    def mask(batch: Any, head: Any, q: Any, kv: Any) -> Any:
        q_stream, q_step, q_slot = place(q)
        kv_stream, kv_step, kv_slot = place(kv - sinks)
        allowed = may_attend(layout, history, q_step, q_slot, kv_step, kv_slot)
        before_stream = (kv_stream == -1) & ((q_stream == -1) | (kv_step <= q_stream - replaced))
        in_window = (kv_step >= 0) | (q_step < 0)  # steps before the first are fillers that see only each other
        allowed = allowed & ((kv_stream == q_stream) | before_stream) & in_window
        return allowed | (kv < sinks) if sinks else allowed

    return mask


@lru_cache(maxsize=64)
def _attention(
    layout: StepLayout,
    steps: int,
    history: int,
    replaced: int,
    sinks: int,
    device: torch.device,
    backend: Literal["sdpa", "flex"],
) -> WindowAttention:
    length = steps * (layout.length + stream_length(layout, replaced))
    mask = streams_mask(layout, steps, history, replaced, sinks)
    with torch.inference_mode(False):
        if backend == "flex":
            from torch.nn.attention.flex_attention import create_block_mask

            return WindowAttention(
                create_block_mask(mask, None, None, length, sinks + length, device=str(device)), flex
            )
        q = torch.arange(length, device=device)[:, None]
        return WindowAttention(mask(0, 0, q, torch.arange(sinks + length, device=device)[None]), sdpa)


def counterfactual_latents(
    policy: BCPolicy, recorded: Tensor, other: Tensor, replaced: int = 1
) -> tuple[Tensor, Tensor]:
    """What the decoder reads of a window, and of the same window with the last steps up to t taken from another one.

    Args:
        policy: the policy.
        recorded: step tokens (B, T, S, D) of the window.
        other: step tokens (B, T, S, D) of the other window.
        replaced: m, how many steps up to t are the other's when t decides.

    Returns:
        two sets of latents, each (B, T, latents, D).
    """
    layout, transformer, device = policy.layout, policy.transformer, recorded.device
    steps, size = recorded.shape[1:3]
    length = stream_length(layout, replaced)
    # step t - m + 1 .. t of the other window for every t; before the first step anything may stand
    which = torch.arange(steps, device=device)[:, None] + torch.arange(1 - replaced, 1, device=device)
    streams = other[:, which.clamp(min=0)].flatten(2, 3)[:, :, :length]  # (B, T, R, D)
    x = torch.cat([recorded.flatten(1, 2), streams.flatten(1, 2)], dim=1)  # (B, L + T * R, D)
    index = torch.arange(length, device=device)
    positions = torch.cat([torch.arange(steps * size, device=device), ((which[:, :1] * size) + index).flatten()])
    backend = resolve_backend(transformer.backend, x.device)
    attends = [
        _attention(layout, steps, min(h, steps), replaced, transformer.sinks, x.device, backend)
        for h in transformer.histories
    ]
    y = transformer.run(x, Rotation.at(positions, transformer.head_dim), attends)
    n, first = policy.decoder.latents, layout.action_out
    plain = y[:, : steps * size].unflatten(1, (steps, size))[:, :, first : first + n]
    at = (replaced - 1) * size + first
    return plain, y[:, steps * size :].unflatten(1, (steps, length))[:, :, at : at + n]
