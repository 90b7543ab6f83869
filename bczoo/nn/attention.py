"""How queries meet keys: the two attention backends over a whole window.

Place in the pipeline: a block computes q, k and v and hands them to an :data:`Attend`. In training that is a
:class:`WindowAttention` (this file), in play the memory of a session; the block does not know which.

Shape legend: B batch, N heads, M key/value heads, L query tokens, K sinks, H head dim.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Sinks = tuple[Tensor, Tensor] | None  # keys and values (M, K, H), visible to every query
Attend = Callable[[Tensor, Tensor, Tensor, Sinks], Tensor]  # q (B,N,L,H), k and v (B,M,L,H) -> (B,N,L,H)
Backend = Literal["auto", "sdpa", "flex"]

ROWS = 256  # queries at a time on a CPU; fewer skip more of the mask, but take more calls


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Scaled-dot-product attention with a boolean mask; fewer key/value heads than heads are shared in groups."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])


@lru_cache(maxsize=1)
def _compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def flex(q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
    """FlexAttention with a block mask: compiled on a GPU, eager (slow, for comparison) elsewhere."""
    from torch.nn.attention import flex_attention

    run: Any = _compiled_flex() if q.is_cuda else flex_attention.flex_attention
    return run(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])


def prepend_sinks(k: Tensor, v: Tensor, sinks: Sinks) -> tuple[Tensor, Tensor]:
    """Sinks in front of the keys and values of a sequence: (B, M, K + L, H)."""
    if sinks is None:
        return k, v
    k_sinks, v_sinks = (s.to(k.dtype).expand(len(k), -1, -1, -1) for s in sinks)
    return torch.cat([k_sinks, k], dim=2), torch.cat([v_sinks, v], dim=2)


class WindowAttention:
    """Attention over a window under one fixed mask. Built once per window length, device and history.

    FlexAttention leaves out what a mask hides. A dense mask does not, so on a CPU the queries come some rows at a time,
    each with the keys from the first to the last that any of them sees: for a causal mask half of the work.

    Args:
        mask: dense (..., L, K + L) for ``sdpa``, a BlockMask for ``flex``.
        run: :func:`sdpa` or :func:`flex`.
    """

    def __init__(self, mask: Any, run: Callable[[Tensor, Tensor, Tensor, Any], Tensor]) -> None:
        self.mask = mask
        self.run = run
        self.parts: list[tuple[slice, slice]] = []  # rows, and the keys that they see
        real = type(mask) is Tensor  # a fake one (bczoo bench memory) has no contents to look at
        if real and mask.device.type == "cpu" and mask.shape[-2] >= 2 * ROWS:
            self.parts = [(rows, _seen(mask[..., rows, :])) for rows in _rows(mask.shape[-2])]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, sinks: Sinks) -> Tensor:
        k, v = prepend_sinks(k, v, sinks)
        if not self.parts:
            return self.run(q, k, v, self.mask)
        mixed = [
            self.run(q[:, :, rows], k[:, :, keys], v[:, :, keys], self.mask[..., rows, keys])
            for rows, keys in self.parts
        ]
        return torch.cat(mixed, dim=2)


def _rows(length: int) -> list[slice]:
    return [slice(first, min(first + ROWS, length)) for first in range(0, length, ROWS)]


def _seen(mask: Tensor) -> slice:
    """From the first to the last key that rows (..., r, K + L) see."""
    keys = mask.flatten(0, -2).any(dim=0).nonzero()
    return slice(int(keys[0]), int(keys[-1]) + 1)


def resolve_backend(backend: Backend, device: torch.device) -> Literal["sdpa", "flex"]:
    """``auto`` takes FlexAttention on CUDA and dense SDPA anywhere else."""
    if backend == "auto":
        return "flex" if device.type == "cuda" else "sdpa"
    if backend not in ("sdpa", "flex"):
        raise ValueError(f"attention must be auto, sdpa or flex, got {backend!r}")
    return backend
