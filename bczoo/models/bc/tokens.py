"""From observations and actions to the tokens of a step.

Place in the pipeline: image tokens, text embeddings and action ids become the step tokens (B, T, S, D) that the
transformer reads, in the order of :class:`~bczoo.models.bc.layout.StepLayout` (paper 2601.04575, section 3).

Shape legend: B batch, T steps, S tokens of a step, A action tokens, I image tokens, E text width, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bczoo.core.actions import ActionSpace, token_meanings
from bczoo.models.bc.layout import StepLayout
from bczoo.nn.actions import ActionRows

SPECIAL_STD = 0.05  # position vectors and special tokens


def special(*shape: int) -> nn.Parameter:
    """A learned vector with the reference initialisation."""
    return nn.Parameter(torch.randn(*shape) * SPECIAL_STD)


class StepTokens(nn.Module):
    """Adds what the step tokens need beside their content: text projection, positions, special tokens.

    Args:
        width: D.
        layout: order of the tokens.
        space: the action space, whose tokens get position vectors.
        text_dim: E; None for a policy without text tokens.
    """

    def __init__(self, width: int, layout: StepLayout, space: ActionSpace, text_dim: int | None) -> None:
        super().__init__()
        self.layout, self.space = layout, space
        self.text_dim = text_dim
        if text_dim:
            self.text_projection = nn.Linear(text_dim, width, bias=False)
            self.text_position = special(width)
            self.no_text = special(width)
        self.image_positions = special(layout.image, width)
        self.thinking = special(layout.thinking, width)
        self.action_out = special(width)
        self.action_positions = special(layout.actions, width)

    def action_rows(self) -> ActionRows:
        return {"action_positions": [meaning for g in self.space.groups for meaning in token_meanings(g)]}

    def observation(self, images: Tensor, text: Tensor | None) -> Tensor:
        """Everything up to action_out: images (B, T, I, D) and text (B, T, E) or None to (B, T, P + 1, D)."""
        lead = images.shape[:2]
        parts = [images + self.image_positions]
        if self.text_dim:
            parts.insert(0, self._text(text, lead).unsqueeze(-2))
        parts += [self.thinking.expand(*lead, -1, -1), self.action_out.expand(*lead, 1, -1)]
        return torch.cat(parts, dim=-2)

    def _text(self, text: Tensor | None, lead: torch.Size) -> Tensor:
        if text is None:
            text = self.no_text.new_zeros(*lead, self.text_dim or 0)
        absent = (text == 0).all(dim=-1, keepdim=True)
        projected = self.text_projection(text.to(self.no_text.dtype))
        return torch.where(absent, self.no_text, projected) + self.text_position  # (B, T, D)

    def actions(self, embedded: Tensor) -> Tensor:
        """Embedded actions (..., A, D) with their position vectors."""
        return embedded + self.action_positions

    def action(self, index: int, embedded: Tensor) -> Tensor:
        """One embedded action token (..., D) with its position vector."""
        return embedded + self.action_positions[index]
