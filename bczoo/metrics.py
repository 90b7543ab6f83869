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

from bczoo.actions import ActionSpace
from bczoo.loss import IGNORED, Loss, labels
from bczoo.model.groups import GroupModules


class Perplexity(MeanMetric):
    """exp(mean cross-entropy in nats); kept as a mean, so that one very unlikely token does not overflow it."""

    def compute(self) -> Tensor:
        return super().compute().exp()


class GroupMetrics(nn.Module):
    """Mean loss over the counted steps, and perplexity and accuracy of every action group."""

    def __init__(self, space: ActionSpace) -> None:
        super().__init__()
        self.loss = MeanMetric()
        self.perplexity = GroupModules({g.name: Perplexity() for g in space.groups})
        self.accuracy = GroupModules(
            {g.name: MulticlassAccuracy(g.choices, average="micro", ignore_index=IGNORED) for g in space.groups}
        )

    def update(self, loss: Loss, logits: Mapping[str, Tensor], actions: Mapping[str, Tensor], counted: Tensor) -> None:
        """Add a batch: its loss, logits (B, T, n, V), ids (B, T, n), counted steps (B, T)."""
        steps = counted.sum()
        if not steps:
            return
        self.loss.update(loss.total.detach(), weight=steps)
        for name, group in logits.items():
            ids = actions[name]
            self.perplexity[name].update(loss.cross_entropy[name].detach(), weight=steps * ids.shape[-1])  # type: ignore[operator]
            self.accuracy[name].update(group.argmax(-1).flatten(), labels(ids, counted).flatten())  # type: ignore[operator]

    def items(self) -> Iterator[tuple[str, Metric]]:
        """Name and metric of everything that is logged."""
        yield "loss", self.loss
        for kind, metrics in (("perplexity", self.perplexity), ("accuracy", self.accuracy)):
            for name, metric in metrics.items():
                yield f"{kind}/{name}", metric  # type: ignore[misc]
