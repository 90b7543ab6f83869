"""Metrics of causal reasoning, averaged over counted steps (torchmetrics, reduced over ranks).

Place in the pipeline: :func:`evaluate` scores one batch; :class:`CausalityMetrics` averages; the callback
``bczoo.CausalityScore`` logs it in validation, and it works without Lightning on any BCPolicy.

Shape legend: B batch, T steps, n tokens and V choices of a group.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric

from bczoo.actions import ActionSpace
from bczoo.causality.perturb import replace
from bczoo.causality.scores import Nats, action_reliance, causality
from bczoo.model.decoder import Logits
from bczoo.model.groups import GroupModules
from bczoo.model.policy import BCPolicy
from bczoo.spec import Batch


@dataclass(frozen=True)
class Evaluation:
    """Scores of every step of a batch.

    Args:
        logits: of the recorded window.
        causality: per perturbation nats per group (B, T), and where they count (B, T).
        reliance: on past actions, nats per group (B, T), and where it counts (B, T).
    """

    logits: Logits
    causality: dict[str, tuple[Nats, Tensor]]
    reliance: tuple[Nats, Tensor] | None


@torch.no_grad()
def evaluate(
    policy: BCPolicy, batch: Batch, perturb: Sequence[str] = ("swap",), replaced: int = 1, reliance: bool = True
) -> Evaluation:
    """Score a batch.

    Args:
        policy: the policy, in evaluation mode.
        batch: a batch of windows.
        perturb: perturbations of the pictures, see :mod:`bczoo.causality.perturb`.
        replaced: m, how many steps up to t show their replacement when t decides.
        reliance: score the reliance on past actions too.
    """
    counted = batch["user"] & batch["valid"]
    images = policy.encode(batch["frames"])
    text = batch.get("text") if policy.input_spec.text_dim else None
    scores: dict[str, tuple[Nats, Tensor]] = {}
    logits: Logits = {}
    for kind in perturb:
        other = replace(kind, policy, batch, images)
        nats, logits = causality(policy, images, other.images, batch["actions"], text, replaced)
        scores[kind] = nats, counted & other.where
    on_actions = None
    if reliance:
        if not logits:
            embedded = policy.action_embedding(batch["actions"])
            logits = policy.decoder(policy.latents(images, embedded, text), embedded)
        swapped, where = _other_actions(batch["actions"], batch["valid"])
        nats = action_reliance(policy, images, logits, batch["actions"], swapped, text)
        on_actions = nats, counted & where
    return Evaluation(logits, scores, on_actions)


def _other_actions(actions: Mapping[str, Tensor], valid: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The past actions of another clip of the batch; of half a window away where the batch has only one."""
    if len(valid) > 1:
        return {k: v.roll(1, dims=0) for k, v in actions.items()}, valid & valid.roll(1, dims=0)
    steps = valid.shape[1] // 2
    return {k: v.roll(steps, dims=1) for k, v in actions.items()}, valid & valid.roll(steps, dims=1)


class CausalityMetrics(nn.Module):
    """Mean causality per perturbation, and action reliance, in total and per action group.

    The first perturbation is the one that ``visual_share`` compares: C / (C + action reliance), from 0 to 1.
    """

    def __init__(self, space: ActionSpace, perturb: Sequence[str] = ("swap",), reliance: bool = True) -> None:
        super().__init__()
        names = [g.name for g in space.groups]
        self.causality = GroupModules({kind: GroupModules({n: MeanMetric() for n in names}) for kind in perturb})
        self.reliance = GroupModules({n: MeanMetric() for n in names}) if reliance else None
        self.perturb = list(perturb)

    def update(self, evaluation: Evaluation) -> None:
        """Add a batch."""
        for kind, (nats, where) in evaluation.causality.items():
            self._add(self.causality[kind], nats, where)
        if self.reliance is not None and evaluation.reliance is not None:
            self._add(self.reliance, *evaluation.reliance)

    def compute(self) -> dict[str, Tensor]:
        """``causality``, ``causality/<group>``, ``causality_<name>``, ``action_reliance``, ``visual_share``."""
        out: dict[str, Tensor] = {}
        for i, kind in enumerate(self.perturb):
            name = "causality" if i == 0 else f"causality_{kind}"
            self._tell(out, name, self.causality[kind])
        if self.reliance is not None:
            self._tell(out, "action_reliance", self.reliance)
            if self.perturb:
                seen, done = out["causality"], out["action_reliance"]
                out["visual_share"] = torch.where(seen + done > 0, seen / (seen + done), torch.nan)
        return out

    def reset(self) -> None:
        for metric in self.metrics():
            metric.reset()

    def metrics(self) -> Iterator[Metric]:
        return (m for m in self.modules() if isinstance(m, Metric))

    @staticmethod
    def _add(metrics: nn.Module, nats: Nats, where: Tensor) -> None:
        if where.any():
            for name, values in nats.items():
                metrics[name].update(values[where])  # type: ignore[index]

    @staticmethod
    def _tell(out: dict[str, Tensor], name: str, metrics: nn.Module) -> None:
        groups = {group: metric.compute() for group, metric in metrics.items()}  # type: ignore[operator]
        out[name] = torch.stack(list(groups.values())).sum()
        out |= {f"{name}/{group}": value for group, value in groups.items()}
