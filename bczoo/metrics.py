"""Validation metrics per action group.

Place in the pipeline: validation and test steps update them with logits; Lightning reduces them over ranks and the
epoch. Perplexity is exp(mean cross-entropy over all counted tokens of the epoch), not a mean of batch perplexities.

Shape legend: B batch, T steps, n tokens and V choices of a group.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy

from bczoo.actions import ActionSpace
from bczoo.loss import IGNORED, Loss, labels
from bczoo.model.groups import GroupModules


class Perplexity(MeanMetric):
    """exp(mean cross-entropy in nats); kept as a mean, so that one very unlikely token does not overflow it."""

    def compute(self) -> Tensor:
        return super().compute().exp()


def change_points(actions: Mapping[str, Tensor], counted: Tensor) -> Tensor:
    """Counted steps (B, T) whose action differs from that of the step before, which has to be counted too.

    Here it shows whether a policy knows what to do next, or only repeats what it did last.

    Args:
        actions: per group ids (B, T, n).
        counted: (B, T) bool.
    """
    differs = torch.stack([(ids[:, 1:] != ids[:, :-1]).any(-1) for ids in actions.values()]).any(0)  # (B, T - 1)
    differs = differs & counted[:, 1:] & counted[:, :-1]
    return pad(differs, (1, 0))


class GroupMetrics(nn.Module):
    """Mean loss over the counted steps, and perplexity and accuracy of every action group.

    ``change_perplexity`` is the perplexity on the change points alone (:func:`change_points`).
    """

    def __init__(self, space: ActionSpace) -> None:
        super().__init__()
        self.loss = MeanMetric()
        self.perplexity = GroupModules({g.name: Perplexity() for g in space.groups})
        self.change_perplexity = GroupModules({g.name: Perplexity() for g in space.groups})
        self.accuracy = GroupModules(
            {g.name: MulticlassAccuracy(g.choices, average="micro", ignore_index=IGNORED) for g in space.groups}
        )

    def update(self, loss: Loss, logits: Mapping[str, Tensor], actions: Mapping[str, Tensor], counted: Tensor) -> None:
        """Add a batch: its loss, logits (B, T, n, V), ids (B, T, n), counted steps (B, T)."""
        steps = counted.sum()
        if not steps:
            return
        self.loss.update(loss.total.detach(), weight=steps)
        changed = change_points(actions, counted)
        for name, group in logits.items():
            ids = actions[name]
            nats = cross_entropy(group[changed].flatten(0, 1).float(), ids[changed].flatten(), reduction="none")
            self.change_perplexity[name].update(nats.detach())  # type: ignore[operator]
            self.perplexity[name].update(loss.cross_entropy[name].detach(), weight=steps * ids.shape[-1])  # type: ignore[operator]
            self.accuracy[name].update(group.argmax(-1).flatten(), labels(ids, counted).flatten())  # type: ignore[operator]

    def items(self) -> Iterator[tuple[str, Metric]]:
        """Name and metric of everything that is logged."""
        yield "loss", self.loss
        kinds = {
            "perplexity": self.perplexity,
            "change_perplexity": self.change_perplexity,
            "accuracy": self.accuracy,
        }
        for kind, metrics in kinds.items():
            for name, metric in metrics.items():
                yield f"{kind}/{name}", metric  # type: ignore[misc]
