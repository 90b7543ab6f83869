"""Validation metrics per action group.

Place in the pipeline: validation and test steps update them with logits; Lightning reduces them over ranks and the
epoch. Perplexity is exp(mean cross-entropy over all counted tokens of the epoch), not a mean of batch perplexities.

Shape legend: B batch, T steps, n tokens and V choices of a group.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.text import Perplexity

from bczoo.actions import ActionSpace
from bczoo.loss import IGNORED, labels
from bczoo.model.groups import GroupModules


class GroupMetrics(nn.Module):
    """Mean loss over the counted steps, and perplexity and accuracy of every action group."""

    def __init__(self, space: ActionSpace) -> None:
        super().__init__()
        self.loss = MeanMetric()
        self.perplexity = GroupModules({g.name: Perplexity(ignore_index=IGNORED) for g in space.groups})
        self.accuracy = GroupModules(
            {g.name: MulticlassAccuracy(g.choices, average="micro", ignore_index=IGNORED) for g in space.groups}
        )

    def update(
        self, loss: Tensor, logits: Mapping[str, Tensor], actions: Mapping[str, Tensor], counted: Tensor
    ) -> None:
        """Add a batch: its loss, logits (B, T, n, V), ids (B, T, n), counted steps (B, T)."""
        if not counted.any():
            return
        self.loss.update(loss.detach(), weight=counted.sum())
        for name, group in logits.items():
            targets = labels(actions[name], counted).flatten()
            group = group.detach().float().flatten(0, -2)
            self.perplexity[name].update(group[None], targets[None])  # type: ignore[operator]
            self.accuracy[name].update(group.argmax(-1), targets)  # type: ignore[operator]

    def items(self) -> Iterator[tuple[str, Metric]]:
        """Name and metric of everything that is logged."""
        yield "loss", self.loss
        for kind, metrics in (("perplexity", self.perplexity), ("accuracy", self.accuracy)):
            for name, metric in metrics.items():
                yield f"{kind}/{name}", metric  # type: ignore[misc]
