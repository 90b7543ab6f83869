"""A GPT over a sequence of embeddings: the transformer of the token and CNN families.

Place in the pipeline: one embedding a position comes in, one output of the same width goes out, each having seen the
positions up to its own, or all of them where the model is not causal (inverse dynamics). Pre-norm blocks with
LayerNorm, GELU and learned positions, initialised as GPT-2 is (paper 2411.04434, section 3.2, says only "a standard
GPT-2 style transformer"; the details follow nanoGPT's).

Shape legend: B batch, L positions, D width, N heads, H head dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

from bczoo.core import arguments
from bczoo.core.errors import UserError

NORM_EPS = 1e-5
INITIAL_STD = 0.02
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k and v (B, N, L, H) of new positions -> (B, N, L, H)


class GPTBlock(nn.Module):
    """Pre-norm residual block: self-attention, then a feed-forward layer of four times the width."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0, causal: bool = True) -> None:
        super().__init__()
        self.heads, self.dropout, self.causal = heads, dropout, causal
        self.attention_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.ffn_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, shown: Tensor | None = None, attend: Attend | None = None) -> Tensor:
        """x (B, L, D) to (B, L, D); ``shown`` as of :meth:`GPT.forward`, ``attend`` as of :meth:`GPT.go_on`."""
        qkv = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, N, L, H)
        dropout = self.dropout if self.training else 0.0
        if attend is not None:
            mixed = attend(q, k, v)
        else:
            mask = None if shown is None or self.causal else shown[:, None, None]  # (B, 1, 1, L), of the keys
            mixed = F.scaled_dot_product_attention(q, k, v, mask, is_causal=self.causal, dropout_p=dropout)
        x = x + F.dropout(self.out(mixed.transpose(1, 2).flatten(-2)), dropout)
        hidden = F.gelu(self.up(self.ffn_norm(x)), approximate="tanh")
        return x + F.dropout(self.down(hidden), dropout)


class GPT(nn.Module):
    """A stack of :class:`GPTBlock` behind learned positions, with a last LayerNorm.

    Args:
        width: D.
        layers: number of blocks.
        heads: attention heads per block; must divide the width.
        positions: longest sequence.
        dropout: on attention, its output and the feed-forward layer's output, in training.
        checkpointing: recompute the blocks in the backward pass to save memory.
        causal: whether a position sees only those up to its own, or all.
    """

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        positions: int,
        dropout: float = 0.0,
        checkpointing: bool = False,
        causal: bool = True,
    ) -> None:
        super().__init__()
        for name, value in (("width", width), ("layers", layers), ("heads", heads), ("positions", positions)):
            arguments.whole(name, value, 1)
        if width % heads:
            raise UserError(f"heads must divide the width, got width {width} and heads {heads}")
        arguments.share("dropout", dropout)
        arguments.flag("checkpointing", checkpointing)
        arguments.flag("causal", causal)
        self.width, self.heads, self.checkpointing = width, heads, checkpointing
        self.positions = nn.Parameter(torch.empty(positions, width))
        self.blocks = nn.ModuleList(GPTBlock(width, heads, dropout, causal) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        nn.init.normal_(self.positions, std=INITIAL_STD)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                residual = name.endswith((".out", ".down"))
                nn.init.normal_(module.weight, std=INITIAL_STD / math.sqrt(2 * layers) if residual else INITIAL_STD)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, shown: Tensor | None = None) -> Tensor:
        """Embeddings (B, L, D) of positions 0 .. L - 1 to outputs (B, L, D).

        Args:
            x: the embeddings.
            shown: (B, L) bool, False on padding at the end, which no other position attends to. A causal model never
                looks at what comes behind a position, so it needs none.
        """
        length = x.shape[1]
        if length > len(self.positions):
            raise UserError(f"{length} positions are more than the {len(self.positions)} that this model was built for")
        x = x + self.positions[:length]
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                x = torch.utils.checkpoint.checkpoint(block, x, shown, use_reentrant=False)
            else:
                x = block(x, shown)
        return self.norm(x)

    def go_on(self, x: Tensor, at: Tensor, attend: Sequence[Attend]) -> Tensor:
        """Outputs (B, L, D) of new positions, whose past is somebody else's to keep.

        Args:
            x: (B, L, D), the embeddings.
            at: (B, L) int64, their positions.
            attend: one a block; is given the queries, keys and values of the new positions.
        """
        x = x + self.positions[at]
        for block, one in zip(self.blocks, attend, strict=True):
            x = block(x, attend=one)
        return self.norm(x)
