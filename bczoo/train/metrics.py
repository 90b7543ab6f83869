"""How well logits predict recorded actions, per action group (torchmetrics, reduced over ranks and the epoch).

Place in the pipeline: :func:`action_measures` turns logits into numbers per step; :class:`ActionMetrics` averages them,
in validation or anywhere else, for any policy that gives logits; :func:`summarise` names what comes out::

    loss                                          bczoo.train.loss.bc_loss of all windows as one batch
    perplexity, change_perplexity                 exp(mean cross-entropy over all tokens of the epoch that count)
    accuracy, change_accuracy                     share of tokens whose most likely id is the recorded one
    repeat_accuracy, change_repeat_accuracy       the same for whoever repeats the last action: the baseline beside it
    persistence                                   probability put on the last action's ids, minus how often they recur
    relative_cross_entropy                        cross-entropy over that of the ids' overall frequencies: 1 has learned
                                                  no more than these frequencies, 0 knows everything

Those with ``change`` are of the change points alone (:func:`change_points`), where repeating the whole action is wrong.
Every token is predicted with the recorded ones before it in view. So persistence is that of each token given those:
where they already show that the action changes, a chained decoder repeats less.

Shape legend: B batch, T steps, n tokens and V choices of a group, R recordings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchmetrics import Metric

from bczoo.core.actions import ActionSpace

Measures = dict[str, tuple[Tensor, Tensor]]  # name -> values (B, T, ...), and at which steps (B, T) they count
ACTION_MEASURES = (
    "cross_entropy",
    "accuracy",
    "change_cross_entropy",
    "change_accuracy",
    "repeat_accuracy",
    "change_repeat_accuracy",
    "persistence",
)


def change_points(actions: Mapping[str, Tensor], mask: Tensor) -> Tensor:
    """Steps (B, T) whose action differs from that of the step before; both have to be in the mask.

    Here it shows whether a policy knows what to do next, or only repeats what it did last.

    Args:
        actions: per group ids (B, T, n).
        mask: (B, T) bool, the steps that count.
    """
    differs = torch.stack([(ids != _before(ids)).any(-1) for ids in actions.values()]).any(0)  # (B, T)
    return differs & after_another(mask)


def after_another(mask: Tensor) -> Tensor:
    """Steps (B, T) of the mask whose step before is in it too."""
    return mask & pad(mask[:, :-1], (1, 0))


def _before(ids: Tensor) -> Tensor:
    """Ids (B, T, n) of the step before; the first step has its own."""
    return torch.cat([ids[:, :1], ids[:, :-1]], dim=1)


@torch.no_grad()
def action_measures(logits: Mapping[str, Tensor], actions: Mapping[str, Tensor], mask: Tensor) -> Measures:
    """Numbers per step: ``<measure>/<group>`` of :data:`ACTION_MEASURES`, and ``marginal/<group>``, which id it was.

    Args:
        logits: per group (B, T, n, V), each token predicted with the recorded ones before it in view.
        actions: per group recorded ids (B, T, n).
        mask: (B, T) bool, the steps that count.
    """
    changed, followed = change_points(actions, mask), after_another(mask)
    out: Measures = {}
    for name, group in logits.items():
        ids, before = actions[name], _before(actions[name])
        log_p = group.float().log_softmax(-1)
        nats = -log_p.gather(-1, ids[..., None])[..., 0].mean(-1)  # (B, T), a mean over the group's tokens
        hit = (group.argmax(-1) == ids).float().mean(-1)
        again = (ids == before).float().mean(-1)
        put_on_again = log_p.gather(-1, before[..., None])[..., 0].exp().mean(-1)
        out |= {
            f"cross_entropy/{name}": (nats, mask),
            f"accuracy/{name}": (hit, mask),
            f"change_cross_entropy/{name}": (nats, changed),
            f"change_accuracy/{name}": (hit, changed),
            f"repeat_accuracy/{name}": (again, followed),
            f"change_repeat_accuracy/{name}": (again, changed),
            f"persistence/{name}": (put_on_again - again, followed),
            f"marginal/{name}": (torch.zeros_like(log_p).scatter_(-1, ids[..., None], 1), mask),
        }
    return out


def summarise(means: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Means of :func:`action_measures` as the metrics of this module's list; other means pass through.

    Args:
        means: by name; leading dimensions that all of them share stay, so that many resamples go at once.
    """
    out: dict[str, Tensor] = {}
    for name, mean in means.items():
        kind, _, group = name.partition("/")
        if kind == "cross_entropy":
            p = means[f"marginal/{group}"]  # (..., n, V)
            entropy = -torch.xlogy(p, p).sum(-1).mean(-1)
            out[f"perplexity/{group}"] = mean.exp()
            out[f"relative_cross_entropy/{group}"] = torch.where(entropy > 0, mean / entropy, torch.nan)
        elif kind == "change_cross_entropy":
            out[f"change_perplexity/{group}"] = mean.exp()
        elif kind != "marginal":
            out[name] = mean
    return out


class StepMeans(Metric):
    """Means of named values, each over its own steps; not a number where there was none.

    torchmetrics' MeanMetric is the mean of scalars: for keyboard and mouse it would take 29 of them, each reduced over
    ranks by itself, and it knows no means of vectors, which the frequencies of ids are. Here all counts are one tensor.

    Args:
        shapes: per name the shape of a step's value.
    """

    full_state_update = False
    is_differentiable = False
    counts: Tensor

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.names = tuple(shapes)
        for i, shape in enumerate(shapes.values()):
            self.add_state(f"sum{i}", torch.zeros(shape), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(len(self.names)), dist_reduce_fx="sum")

    def update(self, measures: Measures) -> None:
        """Add a batch; names that it lacks are left as they are."""
        counts = torch.zeros(len(self.names), device=self.counts.device)
        for i, name in enumerate(self.names):
            if name not in measures:
                continue
            total, count = masked_sum(*measures[name])
            setattr(self, f"sum{i}", getattr(self, f"sum{i}") + total.sum(0).float())  # a bfloat16 module's state too
            counts[i] = count.sum()
        self.counts = self.counts + counts  # a new tensor: the old one may be of inference mode

    def compute(self) -> dict[str, Tensor]:
        """The mean of every name."""
        return {name: getattr(self, f"sum{i}") / self.counts[i] for i, name in enumerate(self.names)}


def masked_sum(values: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over some steps of each window: values (B, T, ...), where (B, T) to (B, ...) and counts (B,)."""
    wide = where.reshape(*where.shape, *[1] * (values.ndim - where.ndim))
    return torch.where(wide, values, 0).sum(1), where.sum(1)


class ActionMetrics(StepMeans):
    """The metrics of this module's list for every action group, and the loss.

    Args:
        space: the action space.
        z_loss: weight of the z-loss in the loss.
        scales: per group what its cross-entropy is divided by in the loss; ln(choices) if left out.
    """

    def __init__(self, space: ActionSpace, z_loss: float = 1e-4, scales: Mapping[str, float] | None = None) -> None:
        steps = {f"{kind}/{g.name}": () for g in space.groups for kind in ACTION_MEASURES}
        super().__init__({"z": ()} | steps | {f"marginal/{g.name}": (g.tokens, g.choices) for g in space.groups})
        self.scales, self.z_loss = scales or {g.name: math.log(g.choices) for g in space.groups}, z_loss

    def update(  # type: ignore[override]
        self,
        logits: Mapping[str, Tensor],
        actions: Mapping[str, Tensor],
        mask: Tensor,
        windows: Tensor | None = None,
    ) -> None:
        """Add a batch: logits (B, T, n, V), ids (B, T, n), mask (B, T).

        Args:
            logits: per group.
            actions: per group.
            mask: bool, the steps that count.
            windows: (B,) bool, those that do not only fill up the batch; all of them if left out.
        """
        windows = torch.ones_like(mask[:, 0]) if windows is None else windows
        # like the loss, over all steps of a window, those that do not count being zero
        z = {"z": (z_per_step(logits, mask), windows[:, None].expand_as(mask))}
        super().update(action_measures(logits, actions, mask) | z)

    def compute(self) -> dict[str, Tensor]:
        """By name: ``loss``, ``perplexity/<group>`` and so on."""
        means = super().compute()
        loss = self.z_loss * means.pop("z")
        for name, scale in self.scales.items():
            loss = loss + means[f"cross_entropy/{name}"] / scale
        return {"loss": loss} | summarise(means)


@torch.no_grad()
def z_per_step(logits: Mapping[str, Tensor], mask: Tensor) -> Tensor:
    """logsumexp(logits)^2 of every step (B, T): per group the mean over its tokens, summed; zero outside the mask."""
    groups = [group.float().logsumexp(dim=-1).square().mean(dim=-1) for group in logits.values()]
    return torch.stack(groups).sum(dim=0) * mask
