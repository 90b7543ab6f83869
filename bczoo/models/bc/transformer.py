"""The policy transformer: the backbone over the tokens of a window.

Place in the pipeline: step tokens (B, L, D) come in from ``bczoo.models.bc.tokens``, outputs of the same shape go to
the decoder. There is no norm after the last block (paper 2601.04575, section 3).

Shape legend: B batch, T steps, S tokens of a step, L = T * S, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from bczoo.core import arguments
from bczoo.core.errors import UserError
from bczoo.core.parts import Part
from bczoo.models.bc.layout import StepLayout
from bczoo.models.bc.masks import window_attention
from bczoo.nn.attention import Attend, Backend, resolve_backend
from bczoo.nn.blocks import Block, Rotation

UNLIMITED = 1 << 30  # steps; a history beyond any window
MOST_LAYERS = 10_000  # of a stack of blocks


class PolicyTransformer(Part):
    """Stack of pre-norm blocks under the custom step mask.

    Args:
        width: model width D.
        layers: number of blocks.
        heads: attention heads per block.
        kv_heads: key/value heads (grouped queries); None for as many as heads.
        ffn_width: hidden size of the feed-forward layers; None for int(8/3 width) rounded up to 8.
        history: how many steps back a layer looks, one number or one per layer; None for the whole window.
        sinks: learned key/value sinks per layer.
        dropout: on the output projection of the attention, in training.
        attention: ``sdpa`` (dense mask, anywhere), ``flex`` (FlexAttention), or ``auto`` (flex on CUDA).
        checkpointing: recompute the blocks in the backward pass to save memory.
    """

    def __init__(
        self,
        width: int = 1024,
        layers: int = 10,
        heads: int = 16,
        kv_heads: int | None = None,
        ffn_width: int | None = None,
        history: int | list[int] | None = None,
        sinks: int = 0,
        dropout: float = 0.1,
        attention: Backend = "auto",
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        arguments.whole("PolicyTransformer.width", width, 1)
        arguments.whole("PolicyTransformer.layers", layers, 1, MOST_LAYERS)
        arguments.whole("PolicyTransformer.heads", heads, 1)
        if kv_heads is not None:
            arguments.whole("PolicyTransformer.kv_heads", kv_heads, 1)
        if ffn_width is not None:
            arguments.whole("PolicyTransformer.ffn_width", ffn_width, 1)
        arguments.whole("PolicyTransformer.sinks", sinks, 0)
        arguments.share("PolicyTransformer.dropout", dropout)
        histories = history if isinstance(history, list) else [history] * layers
        if len(histories) != layers:
            raise UserError(
                f"history has {len(histories)} entries for {layers} layers; give one number or one per layer"
            )
        for steps in histories:
            if steps is not None:
                arguments.whole("PolicyTransformer.history", steps, 0)
        arguments.one_of("PolicyTransformer.attention", attention, get_args(Backend))
        arguments.flag("PolicyTransformer.checkpointing", checkpointing)
        self.width, self.sinks, self.backend, self.checkpointing = width, sinks, attention, checkpointing
        self.histories = [UNLIMITED if h is None else h for h in histories]
        self.blocks = nn.ModuleList(Block(width, heads, kv_heads, sinks, dropout, ffn_width) for _ in range(layers))

    @property
    def head_dim(self) -> int:
        return self.blocks[0].attention.head_dim  # type: ignore[union-attr, return-value]

    def forward(self, x: Tensor, layout: StepLayout) -> Tensor:
        """Outputs of all tokens of windows: x (B, T * S, D) to (B, T * S, D)."""
        length = x.shape[1]
        if length % layout.length:
            raise UserError(f"{length} tokens are not a whole number of steps of {layout.length} tokens")
        positions = torch.arange(length, device=x.device)
        attends = self.attends(length // layout.length, layout, x.device)
        return self.run(x, Rotation.at(positions, self.head_dim), attends)

    def attends(self, steps: int, layout: StepLayout, device: torch.device) -> list[Attend]:
        """The attention of every layer over a window of ``steps`` steps, as :meth:`forward` uses it."""
        backend = resolve_backend(self.backend, device)
        return [window_attention(layout, steps, min(h, steps), self.sinks, device, backend) for h in self.histories]

    def run(self, x: Tensor, rotate: Rotation, attends: Sequence[Attend]) -> Tensor:
        """The blocks over x (B, L, D) with one :data:`Attend` per layer; the agent's way in."""
        for block, attend in zip(self.blocks, attends, strict=True):
            if self.checkpointing and torch.is_grad_enabled():
                x = torch.utils.checkpoint.checkpoint(block, x, rotate, attend, use_reentrant=False)
            else:
                x = block(x, rotate, attend)
        return x
