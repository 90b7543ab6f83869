"""Actions in and out of a network: embeddings of the ids of an action, and heads over them.

Place in the pipeline: the first and the last layer of a policy, for every family: ids per action group become
embeddings (..., A, D); outputs (..., D) become logits per action group (..., n, V).

Shape legend: r rows, A action tokens, n tokens and V choices of a group, D width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bczoo.core.actions import ActionSpace, choice_meanings, token_meanings
from bczoo.nn.groups import GroupModules

EMBEDDING_STD = 0.1
Logits = dict[str, Tensor]  # per action group (..., n, V)
# What the rows of a module's parameters mean, by the beginning of their name: fine-tuning on another action space
# carries rows over by it. A module whose rows are choices or action tokens has a method action_rows() that gives them.
ActionRows = dict[str, list[tuple]]


class ActionEmbedding(nn.Module):
    """One embedding table per action group; read by the backbone and by the decoder."""

    def __init__(self, width: int, space: ActionSpace) -> None:
        super().__init__()
        self.space = space
        self.tables = GroupModules({g.name: nn.Embedding(g.choices, width) for g in space.groups})
        self.token_groups = [g.name for g in space.token_groups]
        for _, table in self.tables.items():
            nn.init.normal_(table.weight, std=EMBEDDING_STD)  # type: ignore[arg-type]

    def action_rows(self) -> ActionRows:
        return {f"tables.{g.name}.": choice_meanings(g) for g in self.space.groups}

    def forward(self, ids: Mapping[str, Tensor]) -> Tensor:
        """Ids per group (..., n) to (..., A, D)."""
        return torch.cat([table(ids[name]) for name, table in self.tables.items()], dim=-2)

    def of(self, ids: Tensor) -> Tensor:
        """Ids of all action tokens (..., A) to (..., A, D)."""
        return self({name: ids[..., part] for name, part in self.space.slices.items()})

    def token(self, index: int, ids: Tensor) -> Tensor:
        """Embedding of one action token: ids (...) of the group that token ``index`` belongs to, to (..., D)."""
        return self.tables[self.token_groups[index]](ids)


class ActionHeads(nn.Module):
    """One softmax per action token, all from the same output and independent of each other.

    Args:
        width: D.
        space: the action space.
    """

    def __init__(self, width: int, space: ActionSpace) -> None:
        super().__init__()
        self.space = space
        # rows: all choices of the first token, then those of the second, and so on
        self.groups = GroupModules({g.name: nn.Linear(width, g.tokens * g.choices) for g in space.groups})

    def action_rows(self) -> ActionRows:
        return {
            f"groups.{g.name}.": [(*token, *choice) for token in token_meanings(g) for choice in choice_meanings(g)]
            for g in self.space.groups
        }

    def forward(self, outputs: Tensor) -> Logits:
        """Outputs (..., D) to logits per group (..., n, V)."""
        return {g.name: self.groups[g.name](outputs).unflatten(-1, (g.tokens, g.choices)) for g in self.space.groups}
