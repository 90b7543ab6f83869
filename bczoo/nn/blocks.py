"""The transformer block shared by backbone and decoder: RMSNorm, rotary positions, attention, SwiGLU.

Place in the pipeline: both transformers are stacks of :class:`Block`. Numbers follow the reference system
(paper 2601.04575, section 3): pre-norm, no biases, query and key norms over the full width before the heads are
split, rotation of adjacent pairs by the absolute token index.

Shape legend: B batch, L tokens, D width, N heads, M key/value heads, H head dim, K sinks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bczoo.core.errors import UserError
from bczoo.nn.attention import Attend, Sinks

NORM_EPS = 1e-5
ROPE_BASE = 10_000.0
SINK_STD = 1.0


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32, cast to the input's dtype, then scaled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], eps=NORM_EPS).type_as(x) * self.scale


class Rotation(NamedTuple):
    """Cosines and sines of the rotary angles, each (L, H / 2) or (B, 1, L, H / 2), float32."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def at(cls, positions: Tensor, head_dim: int) -> Rotation:
        """Angles of token positions (L,) or (B, L); computed in float64, so exact after hours of play."""
        device = torch.device("cpu") if positions.device.type == "mps" else positions.device  # MPS has no float64
        exponent = torch.arange(0, head_dim, 2, dtype=torch.float64, device=device) / head_dim
        angles = positions.to(device, torch.float64)[..., None] * ROPE_BASE**-exponent  # (..., L, H / 2)
        if positions.ndim == 2:
            angles = angles[:, None]  # the same for all heads
        return cls(angles.cos().float().to(positions.device), angles.sin().float().to(positions.device))

    def __call__(self, x: Tensor) -> Tensor:
        """Rotate adjacent pairs of x (B, N, L, H)."""
        even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
        rotated = torch.stack([even * self.cos - odd * self.sin, even * self.sin + odd * self.cos], dim=-1)
        return rotated.flatten(-2).type_as(x)


class Attention(nn.Module):
    """Multi-head attention with grouped queries, query/key norms, rotary positions and learned sinks.

    Args:
        width: D.
        heads: N; must divide the width.
        kv_heads: M; must divide the heads. None: as many as heads.
        sinks: K learned key/value pairs that every query sees; neither normed nor rotated.
        dropout: on the output projection, in training.
    """

    def __init__(
        self, width: int, heads: int, kv_heads: int | None = None, sinks: int = 0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        kv_heads = kv_heads or heads
        if width % heads or heads % kv_heads or (width // heads) % 2:
            raise UserError(
                f"width {width}, heads {heads} and kv_heads {kv_heads} do not fit: heads must divide the width "
                "into even head sizes, and kv_heads must divide heads"
            )
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, width // heads
        kv_width = kv_heads * self.head_dim
        self.qkv = nn.Linear(width, width + 2 * kv_width, bias=False)
        self.q_norm = RMSNorm(width)
        self.k_norm = RMSNorm(kv_width)
        self.out = nn.Linear(width, width, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.k_sinks: nn.Parameter | None = None
        self.v_sinks: nn.Parameter | None = None
        if sinks:
            self.k_sinks = nn.Parameter(torch.randn(kv_heads, sinks, self.head_dim) * SINK_STD)
            self.v_sinks = nn.Parameter(torch.randn(kv_heads, sinks, self.head_dim) * SINK_STD)

    @property
    def sinks(self) -> Sinks:
        return None if self.k_sinks is None or self.v_sinks is None else (self.k_sinks, self.v_sinks)

    def forward(self, x: Tensor, rotate: Rotation, attend: Attend) -> Tensor:
        kv_width = self.kv_heads * self.head_dim
        q, k, v = self.qkv(x).split([self.heads * self.head_dim, kv_width, kv_width], dim=-1)  # (B, L, .)
        q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (t.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for t in (q, k, v))  # (B, ., L, H)
        q, k = rotate(q).to(v.dtype), rotate(k).to(v.dtype)
        mixed = attend(q, k, v, self.sinks).transpose(1, 2).flatten(-2)  # (B, L, D)
        return self.dropout(self.out(mixed))


class SwiGLU(nn.Module):
    """Gated feed-forward layer; hidden size int(8/3 width) rounded up to a multiple of 8."""

    def __init__(self, width: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = hidden or -(-int(8 / 3 * width) // 8) * 8
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    """Pre-norm residual block: x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int | None = None,
        sinks: int = 0,
        dropout: float = 0.0,
        ffn_width: int | None = None,
    ) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(width)
        self.attention = Attention(width, heads, kv_heads, sinks, dropout)
        self.ffn_norm = RMSNorm(width)
        self.ffn = SwiGLU(width, ffn_width)

    def forward(self, x: Tensor, rotate: Rotation, attend: Attend) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rotate, attend)
        return x + self.ffn(self.ffn_norm(x))
