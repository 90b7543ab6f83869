"""The behaviour cloning loss.

Place in the pipeline: logits of the policy and ids of the recording come in, one number to minimise goes out, with
its parts for the log (paper 2601.04575, section 3): per group the mean cross-entropy over its tokens divided by
ln(choices), summed over groups, plus a z-loss that keeps the logits' normaliser near zero.

Shape legend: B batch, T steps, n tokens and V choices of a group.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100


class Loss(NamedTuple):
    """What a model minimises, and what is logged beside it.

    Attributes:
        total: a scalar.
        parts: scalars by name.
    """

    total: Tensor
    parts: dict[str, Tensor]


class BCLoss(NamedTuple):
    """The behaviour cloning loss and its parts.

    Attributes:
        total: normalised cross-entropies plus the weighted z-loss.
        cross_entropy: per group the plain mean over the tokens of the steps that count, in nats.
        z: per group the mean of logsumexp(logits)^2 over all tokens, those that do not count being zero.
    """

    total: Tensor
    cross_entropy: dict[str, Tensor]
    z: dict[str, Tensor]

    @property
    def parts(self) -> dict[str, Tensor]:
        """What is logged beside the total, by name."""
        return {f"{name}_ce": value for name, value in self.cross_entropy.items()}


def bc_loss(
    logits: Mapping[str, Tensor],
    actions: Mapping[str, Tensor],
    mask: Tensor,
    z_weight: float = 1e-4,
    steps: Tensor | None = None,
    scales: Mapping[str, float] | None = None,
    weight: Tensor | None = None,
) -> BCLoss:
    """Loss of logits (B, T, n, V) against ids (B, T, n) on the steps of the mask (B, T).

    A batch whose mask is empty gives zero, with zero gradients.

    Args:
        logits: per group.
        actions: per group.
        mask: (B, T) bool, the steps that count.
        z_weight: of the z-loss.
        steps: a number that divides the cross-entropies in place of how many steps count here. Processes that average
            their gradients give how many count in a process on average: the mean of their losses is then the loss of
            all their batches together, even where one process has few steps that count, or none.
        scales: per group what its cross-entropy is divided by before they are summed; ln(choices) if left out.
        weight: (B, T), how much each step counts in the cross-entropies; ``steps`` is the sum of these then.
    """
    if steps is None:
        steps = mask.sum() if weight is None else (mask * weight).sum()
    steps = torch.where(steps > 0, steps, 1)
    total = torch.zeros((), device=mask.device)
    cross_entropy, z = {}, {}
    for name, group in logits.items():
        group = group.float()
        targets = labels(actions[name], mask)
        reduction = "sum" if weight is None else "none"
        ce = F.cross_entropy(group.flatten(0, -2), targets.flatten(), ignore_index=IGNORED, reduction=reduction)
        if weight is not None:
            ce = (ce.view_as(targets) * weight[..., None]).sum()
        ce = ce / (steps * group.shape[-2])
        normaliser = group.logsumexp(dim=-1).square() * mask[..., None]
        cross_entropy[name], z[name] = ce, normaliser.mean()
        scale = math.log(group.shape[-1]) if scales is None else scales[name]
        total = total + ce / scale + z_weight * z[name]
    return BCLoss(total, cross_entropy, z)


def labels(ids: Tensor, mask: Tensor) -> Tensor:
    """Ids (B, T, n) with :data:`IGNORED` on the steps that do not count (B, T)."""
    return ids.masked_fill(~mask[..., None], IGNORED)
