"""Intervention accuracy: how often a policy does what the expert does when only the scene, or only the past, changes.

Place in the pipeline: :mod:`bczoo.studies.interventions` collects the cases; :func:`score` asks a policy and
:func:`accuracy` sums up.

Shape legend: N cases, B cases of a forward pass, T steps of a window, n tokens and V choices of a group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from bczoo.core.actions import BinnedGroup
from bczoo.core.errors import UserError
from bczoo.core.spec import window_batch
from bczoo.core.statistics import interval_over_episodes
from bczoo.models.policy import Policy
from bczoo.studies.interventions import CONTROL, KINDS, Interventions, agree


@dataclass(frozen=True)
class Scores:
    """How a policy answered N cases.

    A policy agrees with an action where its most likely keys and buttons are the same and its mouse motion or stick
    lies within one bin. The most likely id of every token is taken given the action's own earlier tokens; where all
    of them match, that is what the policy would have chosen token by token.

    Args:
        agrees: per group (N,) bool, with the answer.
        follows: per group (N,) bool, with the habit.
        cross_entropy: (N,) float64, nats of the whole answer.
    """

    agrees: dict[str, np.ndarray]
    follows: dict[str, np.ndarray]
    cross_entropy: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """(N,) bool: the policy's action agrees with the answer in every group."""
        return np.all(list(self.agrees.values()), axis=0)

    @property
    def habitual(self) -> np.ndarray:
        """(N,) bool: it agrees with the habit in every group."""
        return np.all(list(self.follows.values()), axis=0)


def score(policy: Policy, interventions: Interventions, batch: int = 64) -> Scores:
    """What a policy does in every case.

    Args:
        policy: the policy; put into evaluation mode. It gets no instruction.
        interventions: the cases; their frames and action space have to be those of the policy.
        batch: cases of one forward pass.
    """
    spec, size = policy.input_spec, interventions.frames.shape[2]
    if spec.action_space != interventions.action_space or spec.frame_size != size:
        raise UserError(
            f"these interventions were collected for frames of {size} pixels and action space "
            f"{interventions.action_space.name!r}, but the policy takes {spec.frame_size} pixels and "
            f"{spec.actions.name!r}; collect some for this policy"
        )
    policy.eval()
    parts = [
        _score_some(policy, interventions, np.arange(first, min(first + batch, len(interventions))))
        for first in range(0, len(interventions), batch)
    ]
    names = [g.name for g in spec.action_space.groups]
    return Scores(
        {name: np.concatenate([p.agrees[name] for p in parts]) for name in names},
        {name: np.concatenate([p.follows[name] for p in parts]) for name in names},
        np.concatenate([p.cross_entropy for p in parts]),
    )


def _score_some(policy: Policy, cases: Interventions, rows: np.ndarray) -> Scores:
    agrees, cross_entropy = _compare(policy, cases, rows, cases.answer)
    follows = {name: values.copy() for name, values in agrees.items()}
    other = cases.differs[rows]
    if other.any():
        for name, values in _compare(policy, cases, rows[other], cases.habit)[0].items():
            follows[name][other] = values
    return Scores(agrees, follows, cross_entropy)


@torch.no_grad()
def _compare(
    policy: Policy, cases: Interventions, rows: np.ndarray, action: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Where a policy agrees with an action at the last step, per group (B,), and nats of that action (B,)."""
    device, lengths = policy.device, cases.lengths[rows]
    every, last, steps = np.arange(len(rows)), lengths - 1, int(lengths.max())
    frames = torch.from_numpy(cases.frames[rows, :steps]).permute(0, 1, 4, 2, 3)  # (B, T, 3, S, S)
    ids = {}
    for name, past in cases.past.items():
        taken = past[rows, :steps]
        taken[every, last] = action[name][rows]
        ids[name] = torch.from_numpy(taken).to(device)
    logits = policy.logits(window_batch(frames.to(device), ids))
    agrees, nats = {}, np.zeros(len(rows))
    for group in cases.action_space.groups:
        wanted = action[group.name][rows]  # (B, n)
        log_p = logits[group.name][every, last].double().log_softmax(-1).cpu().numpy()  # (B, n, V)
        agrees[group.name] = agree(group, log_p.argmax(-1), wanted)
        nats -= np.take_along_axis(log_p, wanted[..., None], -1).sum((-1, -2))
    return agrees, nats


@dataclass(frozen=True)
class Accuracy:
    """Intervention accuracy over cases of one kind, or of all kinds.

    Args:
        cases: how many.
        accuracy: share of cases in which the policy does what the expert does.
        interval: 95 % interval of it: bootstrap over episodes.
        telling: cases whose answer differs from the habit.
        telling_accuracy: the same share over these; None where there are none.
        telling_interval: its interval.
        constant: the telling accuracy of whoever always gives the same answer, the best one for these cases.
        balanced: telling accuracy, every answer that the expert gives weighing the same (mouse motion by direction),
            however often it is right: a constant answer gets one over the number of answers.
        habit: share of the telling cases in which the policy goes on as if nothing had happened.
        cross_entropy: mean nats of the expert's answer.
    """

    cases: int
    accuracy: float
    interval: tuple[float, float]
    telling: int
    telling_accuracy: float | None
    telling_interval: tuple[float, float] | None
    constant: float | None
    balanced: float | None
    habit: float | None
    cross_entropy: float


def accuracy(scores: Scores, interventions: Interventions) -> dict[str, Accuracy]:
    """Intervention accuracy per kind, and as ``total`` over all kinds but the control."""
    kinds = np.array(interventions.kinds)
    where = {kind: kinds == kind for kind in KINDS if kind in kinds}
    if any(kind != CONTROL for kind in where):
        where["total"] = kinds != CONTROL
    return {kind: _accuracy(scores, interventions, rows) for kind, rows in where.items()}


def _accuracy(scores: Scores, interventions: Interventions, rows: np.ndarray) -> Accuracy:
    episodes, right = interventions.episodes, scores.right
    telling = rows & interventions.differs
    some = bool(telling.any())
    return Accuracy(
        cases=int(rows.sum()),
        accuracy=float(right[rows].mean()),
        interval=_interval(right[rows], episodes[rows]),
        telling=int(telling.sum()),
        telling_accuracy=float(right[telling].mean()) if some else None,
        telling_interval=_interval(right[telling], episodes[telling]) if some else None,
        constant=_constant(interventions, telling) if some else None,
        balanced=_balanced(interventions, right, telling) if some else None,
        habit=float(scores.habitual[telling].mean()) if some else None,
        cross_entropy=float(scores.cross_entropy[rows].mean()),
    )


def _constant(cases: Interventions, rows: np.ndarray) -> float:
    """Share of these cases in which the best constant answer is right."""
    answers = {name: ids[rows] for name, ids in cases.answer.items()}
    best = 0.0
    for one in range(int(rows.sum())):
        right = [agree(g, answers[g.name], answers[g.name][one]) for g in cases.action_space.groups]
        best = max(best, float(np.all(right, axis=0).mean()))
    return best


def _balanced(cases: Interventions, right: np.ndarray, rows: np.ndarray) -> float:
    """Mean over the different answers of how often a policy is right where they are due."""
    columns = []
    for group in cases.action_space.groups:
        ids = cases.answer[group.name][rows]
        columns.append(np.sign(ids - group.neutral) if isinstance(group, BinnedGroup) else ids)
    _, which = np.unique(np.concatenate(columns, axis=1), axis=0, return_inverse=True)
    which = which.reshape(-1)
    return float((np.bincount(which, right[rows]) / np.bincount(which)).mean())


def _interval(values: np.ndarray, episodes: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of values, resampled by whole episodes."""
    _, which = np.unique(episodes, return_inverse=True)
    return interval_over_episodes(np.bincount(which, values), np.bincount(which))
