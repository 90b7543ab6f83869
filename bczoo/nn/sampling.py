"""Sampling an id from logits, by inverse cumulative distribution and given uniform numbers.

Place in the pipeline: a :class:`Sampler` holds how an agent samples; for every step it makes the chooser that the
decoder asks for the ids of action tokens.

Shape legend: R rows (games), A action tokens of a step, n of a call, V choices.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import torch
from torch import Tensor

from bczoo.core.actions import ActionSpace
from bczoo.core.errors import UserError

LARGEST_BELOW_ONE = math.nextafter(1.0, 0.0)


def check_sampling(temperature: float, top_p: float | None = None) -> None:
    """Raise for options that nothing can be sampled with; commands call it before they load a policy."""
    if temperature <= 0:
        raise UserError(f"temperature must be above 0, got {temperature}; greedy takes the most likely action")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p is a probability above 0 and up to 1, got {top_p}")


def probabilities(logits: Tensor, temperature: float = 1.0, top_p: float | None = None) -> Tensor:
    """The distribution (..., V) that ids are sampled from, float32.

    Args:
        logits: (..., V).
        temperature: divides the logits; below 1 is more certain.
        top_p: keep the most likely choices that together reach this mass; only values inside (0, 1) count.
    """
    check_sampling(temperature)
    p = torch.softmax(logits.float() / temperature, dim=-1)
    if top_p is None or not 0 < top_p < 1:
        return p
    ordered, order = p.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    kept = torch.zeros_like(p).scatter(-1, order, ordered.masked_fill(before >= top_p, 0.0))
    return kept / kept.sum(dim=-1, keepdim=True)


def sample(p: Tensor, u: Tensor) -> Tensor:
    """First index whose cumulative probability reaches u: p (..., V), u (...) float64 in 0..1, to ids (...)."""
    on = p.device if p.device.type != "mps" else torch.device("cpu")  # MPS has no float64
    cdf = p.to(on, torch.float64).cumsum(dim=-1)
    cdf[..., -1] = 1.0
    return (cdf < u.to(on).clamp(0.0, LARGEST_BELOW_ONE)[..., None]).sum(dim=-1).to(p.device)


class Sampler:
    """How ids are sampled; fixed, because on a GPU it is recorded with the rest of a step.

    Args:
        choices: most choices of an action token.
        temperature: divides the logits.
        top_p: keep the most likely choices that together reach this mass.
        greedy: take the most likely id instead of sampling one.

    Attributes:
        sampling_s: seconds that the last step spent on sampling, on a CPU.
    """

    def __init__(
        self, choices: int, temperature: float = 1.0, top_p: float | None = None, greedy: bool = False
    ) -> None:
        check_sampling(temperature, top_p)
        self.choices, self.temperature, self.top_p, self.greedy = choices, temperature, top_p, greedy
        self.sampling_s = 0.0

    def __call__(self, u: Tensor) -> Choice:
        """The chooser of a step by its random numbers (R, A), float64 in 0..1."""
        self.sampling_s = 0.0
        return Choice(self, u)

    def sample(self, logits: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Ids (R, n) for logits (R, n, V) and random numbers u (R, n), and the probabilities (R, n, V)."""
        started = time.perf_counter()
        p = probabilities(logits, self.temperature, self.top_p)
        ids = logits.argmax(dim=-1) if self.greedy else sample(p, u)
        self.sampling_s += time.perf_counter() - started
        return ids, p


class Choice:
    """The ids of one step, and the probabilities they were sampled from.

    Attributes:
        p: (R, A, V) float32, zero behind the choices of a token's group.
    """

    def __init__(self, sampler: Sampler, u: Tensor) -> None:
        self.sampler, self.u = sampler, u
        self.p = torch.zeros(*u.shape, sampler.choices, device=u.device)

    def __call__(self, tokens: slice, logits: Tensor) -> Tensor:
        """Logits (R, n, V) of action tokens of one group to ids (R, n)."""
        ids, p = self.sampler.sample(logits, self.u[:, tokens])
        self.p[:, tokens, : p.shape[-1]] = p
        return ids

    def all(self, logits: Mapping[str, Tensor], space: ActionSpace) -> Tensor:
        """Logits (R, n, V) of all groups to ids (R, A), every token independent of the others."""
        return torch.cat([self(part, logits[name]) for name, part in space.slices.items()], dim=-1)
