"""From observations and actions to the tokens of a step.

Place in the pipeline: image tokens, text embeddings and action ids become the step tokens (B, T, S, D) that the
transformer reads, in the order of :class:`~bczoo.models.bc.layout.StepLayout` (paper 2601.04575, section 3).

Shape legend: B batch, T steps, S tokens of a step, A action tokens, I image tokens, E text width, D width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bczoo.core.actions import ActionSpace
from bczoo.models.bc.layout import StepLayout
from bczoo.nn.groups import GroupModules

EMBEDDING_STD = 0.1
SPECIAL_STD = 0.05  # position vectors and special tokens


def special(*shape: int) -> nn.Parameter:
    """A learned vector with the published initialisation."""
    return nn.Parameter(torch.randn(*shape) * SPECIAL_STD)


class ActionEmbedding(nn.Module):
    """One embedding table per action group; read by the backbone and by the decoder."""

    def __init__(self, width: int, space: ActionSpace) -> None:
        super().__init__()
        self.space = space
        self.tables = GroupModules({g.name: nn.Embedding(g.choices, width) for g in space.groups})
        self.token_groups = [g.name for g in space.token_groups]
        for _, table in self.tables.items():
            nn.init.normal_(table.weight, std=EMBEDDING_STD)  # type: ignore[arg-type]

    def forward(self, ids: Mapping[str, Tensor]) -> Tensor:
        """Ids per group (..., n) to (..., A, D)."""
        return torch.cat([table(ids[name]) for name, table in self.tables.items()], dim=-2)

    def of(self, ids: Tensor) -> Tensor:
        """Ids of all action tokens (..., A) to (..., A, D)."""
        return self({name: ids[..., part] for name, part in self.space.slices.items()})

    def token(self, index: int, ids: Tensor) -> Tensor:
        """Embedding of one action token: ids (...) of the group that token ``index`` belongs to, to (..., D)."""
        return self.tables[self.token_groups[index]](ids)


class StepTokens(nn.Module):
    """Adds what the step tokens need beside their content: text projection, positions, special tokens.

    Args:
        width: D.
        layout: order of the tokens.
        text_dim: E; None for a policy without text tokens.
    """

    def __init__(self, width: int, layout: StepLayout, text_dim: int | None) -> None:
        super().__init__()
        self.layout = layout
        self.text_dim = text_dim
        if text_dim:
            self.text_projection = nn.Linear(text_dim, width, bias=False)
            self.text_position = special(width)
            self.no_text = special(width)
        self.image_positions = special(layout.image, width)
        self.thinking = special(layout.thinking, width)
        self.action_out = special(width)
        self.action_positions = special(layout.actions, width)

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
