"""Metrics of causal reasoning, averaged over the steps that count (torchmetrics, reduced over ranks).

Place in the pipeline: :func:`evaluate` scores one batch; :class:`CausalityMetrics` averages; the callback
``bczoo.CausalityScore`` logs it in validation, ``bczoo causality`` reports it with intervals. For anything
else two sets of logits are enough: ``divergence("causality", kl(logits, other_logits), where)``.

Shape legend: B batch, T steps, n tokens and V choices of a group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bczoo.causality.donors import Donors
from bczoo.causality.perturb import Perturbation, perturbations
from bczoo.causality.scores import Nats, action_reliance, causality
from bczoo.core.actions import ActionSpace
from bczoo.core.spec import Batch, loss_mask
from bczoo.models.policy import Policy
from bczoo.nn.actions import Logits
from bczoo.train.metrics import Measures, StepMeans

NOTHING = 5e-4  # nats per action, which tables show as 0.000: rounding errors have no share


@dataclass(frozen=True)
class Evaluation:
    """Scores of every step of a batch.

    Args:
        logits: of the recorded window.
        measures: nats per step of ``causality`` (the first perturbation), ``causality_<name>`` (the others) and
            ``action_reliance``, in total and per group, see :func:`divergence`.
    """

    logits: Logits
    measures: Measures


@torch.no_grad()
def evaluate(
    policy: Policy,
    batch: Batch,
    perturb: Sequence[str] | Mapping[str, Perturbation] = ("swap",),
    replaced: int = 1,
    reliance: bool = True,
    encoded: Tensor | None = None,
    logits: Logits | None = None,
    donors: Donors | None = None,
) -> Evaluation:
    """Score a batch.

    Args:
        policy: the policy, in evaluation mode.
        batch: a batch of windows.
        perturb: perturbations of the pictures, see :mod:`bczoo.causality.perturb`.
        replaced: m, how many steps up to t show their replacement when t decides.
        reliance: score the reliance on past actions too.
        encoded: (B, T, ...) of the batch's frames, where they are known already.
        logits: of the batch, where they are known already.
        donors: windows to swap pictures and past actions with, :meth:`Donors.read`. If left out, the windows of the
            batch are each other's; then the score depends on what else is in the batch.
    """
    mask = loss_mask(batch)
    encoded = policy.encoded(batch) if encoded is None else encoded
    donors = Donors.of_batch(batch, encoded) if donors is None else donors
    kinds = perturb if isinstance(perturb, Mapping) else perturbations(perturb)
    measures: Measures = {}
    for kind, replacement in kinds.items():
        other = replacement(policy, batch, encoded, donors)
        nats, logits = causality(policy, encoded, other.encoded, batch, replaced)
        where = mask & _all_replaced(other.where, replaced)
        measures |= divergence(causality_name(kind, list(kinds)), nats, where)
    if logits is None:
        logits = policy.logits_from(encoded, batch)
    if reliance:
        swapped, where = donors.actions_for(batch)
        where[:, 0] = False  # the first step of a window has no past
        nats = action_reliance(policy, encoded, logits, batch, swapped)
        measures |= divergence("action_reliance", nats, mask & where)
    return Evaluation(logits, measures)


def divergence(name: str, nats: Nats, where: Tensor) -> Measures:
    """Nats (B, T) per group as measures ``<name>`` (their sum) and ``<name>/<group>``, at the steps (B, T)."""
    total = torch.stack(list(nats.values())).sum(0)
    return {name: (total, where)} | {f"{name}/{group}": (values, where) for group, values in nats.items()}


def causality_name(kind: str, kinds: Sequence[str]) -> str:
    """``causality`` for the first perturbation, ``causality_<kind>`` for the others."""
    return "causality" if kind == kinds[0] else f"causality_{kind}"


def visual_share(means: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """C / (C + action reliance), from 0 to 1, where both are known and not both of them are nothing."""
    if not {"causality", "action_reliance"} <= means.keys():
        return {}
    seen, done = means["causality"], means["action_reliance"]
    return {"visual_share": torch.where(seen + done > NOTHING, seen / (seen + done), torch.nan)}


def _all_replaced(where: Tensor, replaced: int) -> Tensor:
    """Steps (B, T) of which all of the last ``replaced`` steps have a replacement, as far as the window reaches."""
    out = where.clone()
    for back in range(1, min(replaced, where.shape[1])):
        out[:, back:] &= where[:, :-back]
    return out


class CausalityMetrics(StepMeans):
    """Mean causality per perturbation, and action reliance, in total and per action group.

    The first perturbation is the one that ``visual_share`` compares: C / (C + action reliance), from 0 to 1.

    Args:
        space: the action space.
        perturb: names of the perturbations.
        reliance: whether action reliance is scored too.
    """

    def __init__(self, space: ActionSpace, perturb: Sequence[str] = ("swap",), reliance: bool = True) -> None:
        names = [causality_name(kind, perturb) for kind in perturb] + ["action_reliance"] * reliance
        groups = ["", *(f"/{g.name}" for g in space.groups)]
        super().__init__({f"{name}{group}": () for name in names for group in groups})

    def compute(self) -> dict[str, Tensor]:
        """``causality``, ``causality/<group>``, ``causality_<name>``, ``action_reliance``, ``visual_share``."""
        means = super().compute()
        return means | visual_share(means)
