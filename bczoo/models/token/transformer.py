"""The transformer of BC-Token and WM-Token: a table of tokens, a GPT, and the table again as its head.

Place in the pipeline: tokens of :class:`~bczoo.models.token.layout.TokenLayout` come in, each position's output goes
out; position p predicts token p + 1. Which predictions count is the only difference of the two families::

    WorldModel    tokens of pictures    P(o_t+1 given o and a up to t)
    TokenPolicy   action tokens         P(a_t given o up to t, a up to t - 1)

As in paper 2411.04434 (section 3) and, where it is silent, GPT-2: learned positions, one for each token of the window,
and a head that shares its weights with the table.

Shape legend: B batch, T steps, z tokens of a picture, A action tokens, S = z + A, D width, V vocabulary.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from bczoo.core.actions import choice_meanings, token_meanings
from bczoo.models.token.layout import TokenLayout
from bczoo.nn.actions import ActionRows
from bczoo.nn.gpt import GPT, INITIAL_STD


class TokenTransformer(nn.Module):
    """Outputs and logits of sequences of tokens.

    Args:
        layout: order and vocabulary.
        width: D.
        layers: blocks.
        heads: attention heads per block.
        window: steps T of the longest sequence.
        dropout: in training.
        checkpointing: recompute the blocks in the backward pass to save memory.
    """

    def __init__(
        self,
        layout: TokenLayout,
        width: int,
        layers: int,
        heads: int,
        window: int,
        dropout: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.layout = layout
        self.gpt = GPT(width, layers, heads, window * layout.length, dropout, checkpointing)
        self.table = nn.Embedding(layout.vocabulary, width)
        nn.init.normal_(self.table.weight, std=INITIAL_STD)

    def action_rows(self) -> ActionRows:
        """What the rows of the table mean: codes, then the choices of every action token."""
        groups = self.layout.space.groups
        choices = [(*token, *choice) for g in groups for token in token_meanings(g) for choice in choice_meanings(g)]
        return {"table.": [("code", i) for i in range(self.layout.codes)] + choices}

    def forward(self, tokens: Tensor) -> Tensor:
        """Outputs (B, T, S, D) of tokens (B, T, S)."""
        outputs = self.gpt(self.table(tokens.flatten(1)))
        return outputs.unflatten(1, tokens.shape[1:])

    def before_actions(self, outputs: Tensor) -> Tensor:
        """Of outputs (B, T, S, D) those that predict action tokens: (B, T, A, D)."""
        return outputs[:, :, self.layout.pictures - 1 : -1]

    def before_pictures(self, outputs: Tensor) -> Tensor:
        """Of outputs (B, T, S, D) those that predict the pictures behind the first: (B, T - 1, z, D).

        The first picture is not predicted: nothing comes before it.
        """
        steps = outputs.shape[1] - 1
        shifted = outputs.flatten(1, 2)[:, self.layout.length - 1 : -1]  # from the last token of step 0 on
        return shifted.unflatten(1, (steps, self.layout.length))[:, :, : self.layout.pictures]

    def cross_entropy(self, outputs: Tensor, tokens: Tensor) -> Tensor:
        """Nats (...) of tokens (...) under the whole vocabulary, from the outputs (..., D) before them."""
        logits = F.linear(outputs, self.table.weight).float()
        nats = F.cross_entropy(logits.flatten(0, -2), tokens.flatten(), reduction="none")
        return nats.view_as(tokens)

    def choices(self, outputs: Tensor, index: int) -> Tensor:
        """Logits (..., legal ids) of token ``index`` of a step, from the outputs (..., D) before it."""
        return F.linear(outputs, self.table.weight[self.layout.legal(index)])
