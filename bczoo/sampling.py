"""Drawing an id from logits, by inverse cumulative distribution and given uniform numbers.

Place in the pipeline: the streaming agent draws every action token with this.

Shape legend: V choices.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LARGEST_BELOW_ONE = math.nextafter(1.0, 0.0)


def probabilities(logits: Tensor, temperature: float = 1.0, top_p: float | None = None) -> Tensor:
    """The distribution (..., V) that ids are drawn from, float32.

    Args:
        logits: (..., V).
        temperature: divides the logits; below 1 is more certain.
        top_p: keep the most likely choices that together reach this mass; only values inside (0, 1) count.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}; use greedy=True for the most likely id")
    p = torch.softmax(logits.float() / temperature, dim=-1)
    if top_p is None or not 0 < top_p < 1:
        return p
    ordered, order = p.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    kept = torch.zeros_like(p).scatter(-1, order, ordered.masked_fill(before >= top_p, 0.0))
    return kept / kept.sum(dim=-1, keepdim=True)


def draw(p: Tensor, u: Tensor) -> Tensor:
    """First index whose cumulative probability reaches u: p (..., V), u (...) float64 in 0..1, to ids (...)."""
    on = p.device if p.device.type != "mps" else torch.device("cpu")  # MPS has no float64
    cdf = p.to(on, torch.float64).cumsum(dim=-1)
    cdf[..., -1] = 1.0
    return (cdf < u.to(on).clamp(0.0, LARGEST_BELOW_ONE)[..., None]).sum(dim=-1).to(p.device)
