"""Causality score and action reliance of every step of a window (paper 2601.04575, section 4).

Place in the pipeline: a policy and a batch in, nats per step and action group out; ``bczoo.causality.metrics`` averages
them. With p(a | h) the chain over an action's tokens, teacher-forced with the recorded action::

    causality        sum_i KL( p(a_i | a_<i, h) || p(a_i | a_<i, h') ),  h' saw another picture at the last m steps
    action reliance  the same with h' that saw other past actions and the recorded pictures

Shape legend: B batch, T steps, n tokens and V choices of a group.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bczoo.core.spec import Batch
from bczoo.models.policy import Policy
from bczoo.nn.actions import Logits

Nats = dict[str, Tensor]  # per group (B, T)


def kl(p: Logits, q: Logits) -> Nats:
    """KL divergence between the distributions of two sets of logits, summed over the tokens of each group, in nats."""
    out = {}
    for name, logits in p.items():
        log_p, log_q = _log_probabilities(logits), _log_probabilities(q[name])
        out[name] = (log_p.exp() * (log_p - log_q)).sum((-1, -2)).float()  # (B, T)
    return out


def _log_probabilities(logits: Tensor) -> Tensor:
    """In double precision, so that equal distributions have none between them; Apple's GPUs have none."""
    return logits.to(torch.float32 if logits.device.type == "mps" else torch.float64).log_softmax(-1)


@torch.no_grad()
def causality(
    policy: Policy, encoded: Tensor, replacements: Tensor, batch: Batch, replaced: int = 1
) -> tuple[Nats, Logits]:
    """Causality score of every step; also the logits of the recorded window.

    Args:
        policy: in evaluation mode.
        encoded: (B, T, ...) of the recorded frames, ``policy.encode(frames)``.
        replacements: (B, T, ...) of what is shown instead.
        batch: the window.
        replaced: m, how many steps up to t show their replacement when t decides.
    """
    logits, other = policy.counterfactual_logits(encoded, replacements, batch, replaced)
    return kl(logits, other), logits


@torch.no_grad()
def action_reliance(
    policy: Policy, encoded: Tensor, logits: Logits, batch: Batch, other_actions: Mapping[str, Tensor]
) -> Nats:
    """The same divergence where past actions are replaced and the pictures are the recorded ones.

    Args:
        policy: in evaluation mode.
        encoded: (B, T, ...) of the recorded frames.
        logits: of the recorded window, from :func:`causality`.
        batch: the window.
        other_actions: per group ids (B, T, n) that stand in for the past actions.
    """
    return kl(logits, policy.other_past_logits(encoded, batch, other_actions))
