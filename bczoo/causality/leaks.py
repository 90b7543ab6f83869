"""Whether a policy sees what it must not, measured on the policy itself.

Place in the pipeline: :func:`find_leak` looks at a policy and a batch before they are trained on; the callback
:class:`bczoo.AttentionMaskCheck` stops a training with what it finds. Two looks, neither of which reads a mask:

* every layer's attention, at the whole window, of families that say how the tokens of a step are laid out: with queries
  of zero all keys that a query sees weigh the same, so values that are a code of the key's number come out as the set
  of keys that were read. That set is compared with :func:`who_sees_whom`, which states the rules a second time, apart
  from :mod:`bczoo.models.bc.masks`.
* the policy end to end, on a few steps, for every family: each input is changed in turn, and the logits that may not
  depend on it must stay as they were to the last bit (:func:`may_depend`).

Shape legend: B batch, T steps, S tokens of a step, L = T * S, K sinks, C = K + L keys, N heads, M key/value heads, H
head dim, R rows of codes, A action tokens of a step, n tokens and V choices of a group, E text width.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bczoo.core.actions import ActionSpace
from bczoo.core.errors import UserError
from bczoo.core.spec import Batch, pictures, window_batch
from bczoo.models.bc.layout import StepLayout
from bczoo.models.bc.policy import BCPolicy
from bczoo.models.policy import Policy
from bczoo.nn.attention import Attend
from bczoo.nn.blocks import Attention

STEPS_END_TO_END = 3  # enough for a step with one before and one after it


class AttentionLeakError(UserError):
    """A token sees what it must not, or does not see what it should."""


@dataclass(frozen=True)
class Leak:
    """A wrong entry of the mask, or an output that depends on what it must not.

    Args:
        layers: the layers that share the wrong mask, from 0; empty where it only shows end to end.
        query: the token that looks, in words.
        key: the token that it looks at, in words.
        sees: it sees the key and must not; otherwise it should and does not.
        others: how many further pairs are wrong.
    """

    layers: tuple[int, ...]
    query: str
    key: str
    sees: bool = True
    others: int = 0

    def __str__(self) -> str:
        if not self.layers:
            text = f"the logits of {self.query} depend on {self.key}"
        else:
            where = f"layer{'s' * (len(self.layers) > 1)} {', '.join(map(str, self.layers))}"
            verb = "sees" if self.sees else "should see and does not see"
            text = f"{where}: {self.query} {verb} {self.key}"
        return text + (f" (and {self.others} more pairs are wrong)" if self.others else "")


def check_mask(policy: Policy, batch: Batch) -> None:
    """Raise an :class:`AttentionLeakError` that names what :func:`find_leak` finds."""
    if (leak := find_leak(policy, batch)) is None:
        return
    if has_layout(policy):
        raise AttentionLeakError(
            f"the policy does not keep to its attention mask; {leak}. What it learns and scores would mean nothing: "
            "put the transformer's attention or the mask right (PolicyTransformer.attends, bczoo.models.bc.masks)"
        )
    raise AttentionLeakError(
        f"{type(policy).__name__} sees what it must not; {leak}. What it learns and scores would mean nothing: the "
        "logits of a step may depend on frames up to that step and on actions before it, and on those of the step "
        "itself only token by token (Policy.past_actions, Policy.independent_tokens)"
    )


def has_layout(policy: Any) -> bool:
    """Whether a policy says how the tokens of a step are laid out, as :class:`bczoo.BCPolicy` does."""
    return hasattr(policy, "layout") and hasattr(getattr(policy, "transformer", None), "attends")


def require_layout(policy: Any) -> None:
    """Raise for a policy that :func:`has_layout` is not true of: there is no mask over tokens to look at."""
    if not has_layout(policy):
        raise UserError(
            f"{type(policy).__name__} has no mask over the tokens of a step to look at: that is for families with a "
            "`layout` and a `transformer`, such as BCPolicy"
        )


def find_leak(policy: Policy, batch: Batch) -> Leak | None:
    """The first thing that a policy sees and must not, or should see and does not; None if there is none.

    Leaves the policy, its mode, its gradients and the random state as they are. Attention runs as in training: on the
    device, in the precision (call it under the trainer's autocast) and with the batch and window of the batch.

    Args:
        policy: the policy, in any mode. Only end to end where it has no layout of tokens.
        batch: a batch of it, as in training.
    """
    with _left_alone(policy):
        if has_layout(policy):
            leak = find_leak_of_layers(policy, *batch["valid"].shape)  # type: ignore[arg-type]
            if leak is not None:
                return leak
        return find_leak_end_to_end(policy, batch)


# ---------------------------------------------------------------------- layers


def find_leak_of_layers(policy: BCPolicy, batch: int, steps: int) -> Leak | None:
    """The first wrong pair of tokens of the first layer that has one.

    Args:
        policy: the policy.
        batch: windows per call, as in training, so that a compiled kernel is the one of training.
        steps: T.
    """
    layout, transformer = policy.layout, policy.transformer
    attends = transformer.attends(steps, layout, policy.device)
    shared: dict[Any, list[int]] = {}  # layers under one mask are looked at once
    for layer, (attend, history) in enumerate(zip(attends, transformer.histories, strict=True)):
        shared.setdefault((id(attend), min(history, steps)), []).append(layer)
    for (_, history), layers in shared.items():
        expected = who_sees_whom(layout, steps, history, transformer.sinks).to(policy.device)
        attention: Attention = transformer.blocks[layers[0]].attention  # type: ignore[assignment]
        wrong = wrong_pairs(attends[layers[0]], attention, expected, batch)
        if len(wrong):
            query, key = wrong[0].tolist()
            return Leak(
                tuple(layers),
                token_name(layout, policy.action_space, query),
                token_name(layout, policy.action_space, key - transformer.sinks),
                sees=not expected[query, key],
                others=len(wrong) - 1,
            )
    return None


def who_sees_whom(layout: StepLayout, steps: int, history: int, sinks: int = 0) -> Tensor:
    """The rules of figure 2b (paper 2601.04575), row by row: (L, C), True where the query sees the key."""
    decision = layout.text + layout.image + layout.thinking  # the tokens before it are the observation
    actions = decision + 1
    sees = torch.zeros(steps, layout.length, steps, layout.length, dtype=torch.bool)
    for now in range(steps):
        first = max(0, now - history)
        for slot in range(layout.length):
            row = sees[now, slot]
            row[first:now, :decision] = True  # observations of the past
            row[first:now, actions:] = layout.past_actions  # actions of the past, never a decision of the past
            row[now, :decision] = True  # the observation of this step
            if slot == decision:
                row[now, decision] = True  # itself
            if slot >= actions:  # the action of this step is for action tokens alone
                row[now, actions : slot + 1 if layout.causal_actions else layout.length] = True
    length = steps * layout.length
    return torch.cat([torch.ones(length, sinks, dtype=torch.bool), sees.view(length, length)], dim=1)


def wrong_pairs(attend: Attend, attention: Attention, expected: Tensor, batch: int = 1) -> Tensor:
    """All (query, key) that do not attend as expected, (pairs, 2), in order.

    Args:
        attend: how queries meet keys in this layer.
        attention: the layer's module, for its heads and its number type.
        expected: (L, C), the first K keys are sinks.
        batch: windows per call.
    """
    count = expected.sum(dim=1)[:, None]  # (L, 1)
    suspicious = torch.zeros(len(expected), dtype=torch.bool, device=expected.device)
    # several keys share a number, as its bits, as far as its precision allows
    bits = round(-torch.tensor(torch.finfo(_number_type(attention)).eps).log2().item()) // 2
    # one more key of n changes its own number by far more, unless n is so small that all other numbers change by more
    tolerance = 2.0 ** -(bits + 2)
    for codes, mixed in _readings(attend, attention, expected, bits, batch):
        should = expected.float() @ codes  # (R, L, H)
        off = (mixed * count - should[:, None]).abs()
        suspicious |= ~(off <= should[:, None] * tolerance).all(dim=-1).all(dim=1).all(dim=0)
    if not suspicious.any():
        return torch.empty(0, 2, dtype=torch.long)
    least = 0.5 / expected.shape[1]  # half of what a key weighs if all are seen
    wrong = []
    for codes, mixed in _readings(attend, attention, expected, 1, batch):
        differs = (mixed > least) != (expected.float() @ codes > 0)[:, None]  # (R, N, L, H)
        wrong.append(differs.any(dim=1).transpose(0, 1).flatten(1))  # in any head, (L, R * H)
    return torch.cat(wrong, dim=1).nonzero()


def _readings(
    attend: Attend, attention: Attention, expected: Tensor, bits: int, batch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Codes of the keys (R, C, H) and what each head's queries read of them (R, N, L, H), ``batch`` rows at a time.

    Key c is bit c % bits of number c // bits, and a row has H numbers. What comes out is the mean over the keys seen.
    """
    (length, keys), head_dim, device = expected.shape, attention.head_dim, expected.device
    dtype, sinks = _number_type(attention), expected.shape[1] - expected.shape[0]
    key = torch.arange(keys, device=device)
    row, number = (key // bits) // head_dim, (key // bits) % head_dim
    zeros = torch.zeros(batch, attention.heads, length, head_dim, dtype=dtype, device=device)
    for first in range(0, int(row[-1]) + 1, batch):
        codes = torch.zeros(batch, keys, head_dim, dtype=torch.float32, device=device)
        here = (row >= first) & (row < first + batch)
        codes[row[here] - first, key[here], number[here]] = (2.0 ** (key[here] % bits)).float()
        values = codes.to(dtype)[:, None].repeat(1, attention.kv_heads, 1, 1)  # (R, M, C, H)
        k = zeros[:, : attention.kv_heads]
        given = (torch.zeros_like(values[:, :, :sinks]), values[:, :, :sinks]) if sinks else None
        yield codes, attend(zeros, k, values[:, :, sinks:], given).float()


def _number_type(attention: Attention) -> torch.dtype:
    """What queries, keys and values are computed in."""
    weight = attention.qkv.weight
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


# ---------------------------------------------------------------------- end to end


@dataclass(frozen=True)
class Input:
    """One input of a window.

    Args:
        kind: frame, text or action.
        step: the step it belongs to.
        token: which action token of the step.
    """

    kind: str
    step: int
    token: int = 0

    def name(self, policy: Policy) -> str:
        """The input in words."""
        if self.kind == "action":
            return _action_name(policy, self.step, self.token)
        return f"the {self.kind} of step {self.step}"


def may_depend(policy: Policy, step: int, token: int, given: Input) -> bool:
    """Whether the logits of action token ``token`` of step ``step`` may depend on an input."""
    if given.kind != "action":
        return given.step <= step
    if given.step == step:
        return given.token < token and not policy.independent_tokens  # else they are predicted one after the other
    return given.step < step and policy.past_actions


def find_leak_end_to_end(policy: Policy, batch: Batch, steps: int = STEPS_END_TO_END) -> Leak | None:
    """The first logits that depend on an input that they must not, over the first steps of a batch's first window.

    A window that is not changed gives the same numbers to the last bit, whatever stands at the places that it does not
    see, because the shapes are the same; should a device not repeat itself, its own noise is allowed.
    """
    frames = pictures(batch)[:1, :steps].clone()
    actions = {name: ids[:1, :steps].clone() for name, ids in batch["actions"].items()}
    text = policy.instructions(batch)
    text = None if text is None else text[:1, :steps].clone()
    steps = frames.shape[1]

    def logits(changed: Input | None = None) -> list[Tensor]:
        window = (frames, actions, text) if changed is None else _changed(policy, changed, frames, actions, text)
        with torch.compiler.set_stance("force_eager"):  # no kernel is compiled for so short a window
            return [group.float() for group in policy.logits(window_batch(*window)).values()]

    plain = logits()
    noise = max(float((a - b).abs().max()) for a, b in zip(plain, logits(), strict=True))
    for given in _inputs(policy, steps, text is not None):
        moves = [(a - b).abs().amax(dim=-1)[0] for a, b in zip(logits(given), plain, strict=True)]  # (T, n)
        moved = torch.cat(moves, dim=-1) > 4 * noise  # (T, A)
        for step, token in moved.nonzero().tolist():
            if not may_depend(policy, step, token, given):
                return Leak((), _action_name(policy, step, token), given.name(policy))
    return None


def _inputs(policy: Policy, steps: int, text: bool) -> list[Input]:
    """All inputs of a window."""
    kinds = [("frame", 1), ("text", int(text)), ("action", policy.action_space.tokens)]
    return [Input(kind, step, token) for step in range(steps) for kind, count in kinds for token in range(count)]


def _changed(
    policy: Policy, given: Input, frames: Tensor, actions: dict[str, Tensor], text: Tensor | None
) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
    """A window (1, T, ...) with one input replaced by another value of it."""
    step = given.step
    if given.kind == "frame":
        frames = frames.clone()
        frames[:, step] += 128  # wraps around, so every pixel changes
    elif given.kind == "text" and text is not None:
        text = text.clone()
        text[:, step] += 1
    else:
        space = policy.action_space
        name, choices = space.token_groups[given.token].name, space.token_groups[given.token].choices
        ids = actions[name].clone()
        place = given.token - space.slices[name].start
        ids[:, step, place] = (ids[:, step, place] + 1) % choices
        actions = actions | {name: ids}
    return frames, actions, text


# ---------------------------------------------------------------------- words


def slot_name(layout: StepLayout, space: ActionSpace, slot: int) -> str:
    """What the token at a slot of a step is called, such as ``image token 1``; numbered from 0."""
    for kind, first, count in (
        ("text token", 0, layout.text),
        ("image token", layout.text, layout.image),
        ("thinking token", layout.text + layout.image, layout.thinking),
    ):
        if first <= slot < first + count:
            return kind if count == 1 else f"{kind} {slot - first}"
    if slot == layout.action_out:
        return "action_out"
    return _action_token(space, slot - layout.action_out - 1)


def token_name(layout: StepLayout, space: ActionSpace, token: int) -> str:
    """A token of a window in words; those before the first step are sinks."""
    if token < 0:
        return "a sink"
    step, slot = divmod(token, layout.length)
    return f"{slot_name(layout, space, slot)} of step {step}"


def _action_token(space: ActionSpace, token: int) -> str:
    return f"action token {token} ({space.token_groups[token].name})"


def _action_name(policy: Policy, step: int, token: int) -> str:
    return f"{_action_token(policy.action_space, token)} of step {step}"


# ---------------------------------------------------------------------- care


@contextmanager
def _left_alone(policy: Policy) -> Iterator[None]:
    """The policy in evaluation mode and without gradients, and afterwards everything as it was."""
    modes = {module: module.training for module in policy.modules()}
    devices = [policy.device] if policy.device.type == "cuda" else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "flex_attention called without")
            policy.eval()
            yield
    finally:
        torch.clear_autocast_cache()  # weights that were cast without gradients must not be trained with
        for module, training in modes.items():
            module.training = training
