"""The sequence of BC-Token and WM-Token: which tokens a step has, in which order, and which ids they may take.

Place in the pipeline: ids of pictures (:class:`~bczoo.models.tokenizer.tokenizer.Tokenizer`) and of actions become one
sequence here, before :class:`~bczoo.models.token.transformer.TokenTransformer`, and ranges of it become ids again::

    step t      z_t^1 .. z_t^z   a_t^1 .. a_t^A     then step t + 1, without separators (paper 2411.04434, eq. 3)
    ids         0 .. V - 1       one range a token

Every action token owns its own range, behind the codes: with 4,096 codes and the gamepad space token i of the twelve
buttons is 4096 + 2i (released) or 4097 + 2i (held), and the sticks' four axes follow from 4120 on, eleven ids each.

Shape legend: B batch, T steps, z tokens of a picture, A action tokens, S = z + A tokens of a step, V codes.
"""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor

from bczoo.core.actions import ActionSpace


class TokenLayout:
    """Order and vocabulary of the tokens of a step.

    Args:
        space: the action space.
        pictures: tokens z of a picture.
        codes: V, ids of a picture's token.

    Attributes:
        offsets: per action token, the first id of its range.
        vocabulary: ids in all.
    """

    def __init__(self, space: ActionSpace, pictures: int, codes: int) -> None:
        self.space, self.pictures, self.codes = space, pictures, codes
        *self.offsets, self.vocabulary = accumulate((g.choices for g in space.token_groups), initial=codes)

    @property
    def length(self) -> int:
        """Tokens S of a step."""
        return self.pictures + self.space.tokens

    def legal(self, index: int) -> slice:
        """Ids that token ``index`` of a step, 0 to S - 1, may take."""
        if index < self.pictures:
            return slice(0, self.codes)
        ends = [*self.offsets[1:], self.vocabulary]
        return slice(self.offsets[index - self.pictures], ends[index - self.pictures])

    def action_tokens(self, ids: Tensor) -> Tensor:
        """Tokens (..., A) of action ids (..., A)."""
        return torch.stack([one + offset for one, offset in zip(ids.unbind(-1), self.offsets, strict=True)], dim=-1)

    def steps(self, pictures: Tensor, actions: Tensor) -> Tensor:
        """Tokens (B, T, S) of ids of pictures (B, T, z) and actions (B, T, A)."""
        return torch.cat([pictures.long(), self.action_tokens(actions)], dim=-1)

    def apart(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Inverse of :meth:`steps`: ids of pictures (..., z) and actions (..., A)."""
        actions = tokens[..., self.pictures :]
        ids = [one - offset for one, offset in zip(actions.unbind(-1), self.offsets, strict=True)]
        return tokens[..., : self.pictures], torch.stack(ids, dim=-1)
