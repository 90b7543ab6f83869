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

from bczoo.causality.streams import latents_of_both, ride_along
from bczoo.models.bc.decoder import Logits
from bczoo.models.bc.policy import BCPolicy

Nats = dict[str, Tensor]  # per group (B, T)


def kl(p: Logits, q: Logits) -> Nats:
    """KL divergence between the distributions of two sets of logits, summed over the tokens of each group, in nats."""
    out = {}
    for name, logits in p.items():
        log_p, log_q = _log_probabilities(logits), _log_probabilities(q[name])
        out[name] = (log_p.exp() * (log_p - log_q)).sum((-1, -2)).float()  # (B, T)
    return out


def _log_probabilities(logits: Tensor) -> Tensor:
    """In double precision, so that equal distributions are not told apart; Apple's GPUs have none."""
    return logits.to(torch.float32 if logits.device.type == "mps" else torch.float64).log_softmax(-1)


@torch.no_grad()
def causality(
    policy: BCPolicy,
    images: Tensor,
    replacements: Tensor,
    actions: Mapping[str, Tensor],
    text: Tensor | None = None,
    replaced: int = 1,
) -> tuple[Nats, Logits]:
    """Causality score of every step, in one pass; also the logits of the recorded window.

    Args:
        policy: the policy, in evaluation mode.
        images: image tokens (B, T, I, D) of the recorded frames.
        replacements: image tokens (B, T, I, D) of what is shown instead.
        actions: per group recorded ids (B, T, n).
        text: (B, T, E) or None.
        replaced: m, how many steps up to t show their replacement when t decides.
    """
    plain, other, embedded = latents_of_both(policy, images, replacements, actions, text, replaced)
    logits = policy.decoder(plain, embedded)
    return kl(logits, policy.decoder(other, embedded)), logits


@torch.no_grad()
def action_reliance(
    policy: BCPolicy,
    images: Tensor,
    logits: Logits,
    actions: Mapping[str, Tensor],
    other_actions: Mapping[str, Tensor],
    text: Tensor | None = None,
) -> Nats:
    """The same divergence where past actions are replaced and the pictures are the recorded ones.

    Args:
        logits: of the recorded window, from :func:`causality`.
        other_actions: per group ids (B, T, n) that stand in for the past actions.
    """
    embedded, others = policy.action_embedding(actions), policy.action_embedding(other_actions)
    if policy.decoder.in_backbone:  # it reads the step's own actions too, and these are the recorded ones
        seen = policy.tokens.observation(images, text)  # (B, T, P + 1, D)
        swapped, recorded = (torch.cat([seen, policy.tokens.actions(a)], dim=2) for a in (others, embedded))
        _, latents = ride_along(policy, swapped, recorded)
    else:
        latents = policy.latents(images, others, text)
    return kl(logits, policy.decoder(latents, embedded))
