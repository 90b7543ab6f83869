"""Carrying weights from one policy to another of its family whose action space differs.

Place in the pipeline: :class:`bczoo.train.finetune.policy.FineTune` builds the new policy, and :func:`carry_over` fills
it from the source's weights. Everything that does not depend on the action space is taken as it is. Rows of the rest
belong to meanings (:meth:`bczoo.Policy.action_rows`): the row of ``w`` in an embedding or a head goes to the row of
``w``, wherever it stands in the new space; what the source did not know keeps its fresh initialisation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bczoo.core.actions import ActionGroup, ActionSpace, HeldGroup, choice_meanings
from bczoo.core.errors import UserError
from bczoo.models.policy import Policy

Rows = list[tuple[int, int]]  # (row in the target, row in the source)


@dataclass
class CarriedOver:
    """What :func:`carry_over` did.

    Args:
        state: complete state dict of the target.
        fresh: names of entries of which nothing was in the source.
        left: names of entries of the source that the target has no use for.
        groups: per action group of the target a line that says what became of its choices.
    """

    state: dict[str, Tensor]
    fresh: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    groups: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        width = max((len(name) for name in self.groups), default=0)
        lines = [f"  {name:<{width}}  {what}" for name, what in self.groups.items()]
        taken = len(self.state) - len(self.fresh)
        return "\n".join([f"{taken} of {len(self.state)} weights carried over; actions:", *lines])


def carry_over(
    weights: Mapping[str, Tensor], source: Policy, fresh: Mapping[str, Tensor], target: Policy
) -> CarriedOver:
    """Fill a new policy with the weights of another one.

    Args:
        weights: state dict of the source.
        source: the policy that the weights are of; may be without memory (on the meta device).
        fresh: state dict of the new policy, freshly initialised.
        target: the new policy.

    Raises:
        UserError: names entries that do not fit for another reason than the action space or added or dropped text.
    """
    out = CarriedOver({}, groups={g.name: _report(source.action_space, g) for g in target.action_space.groups})
    theirs_mean, ours_mean = source.action_rows(), target.action_rows()
    misfits = []
    for name, own in fresh.items():
        meanings, theirs = _meanings_of(name, ours_mean), weights.get(name)
        if theirs is None:
            if meanings is None and name not in target.text_entries:
                misfits.append(f"{name} is missing")
            out.state[name] = own
            out.fresh.append(name)
        elif meanings is None and theirs.shape == own.shape:
            out.state[name] = theirs.to(own.dtype)
        elif meanings is not None and theirs.shape[1:] == own.shape[1:]:
            rows = _same_meaning(meanings, _meanings_of(name, theirs_mean) or [])
            out.state[name] = _with_rows(own, theirs, rows)
            if not rows:
                out.fresh.append(name)
        else:
            misfits.append(f"{name} is {list(theirs.shape)} in the source and {list(own.shape)} here")
    out.left = [name for name in weights if name not in fresh]
    known = (n for n in out.left if _meanings_of(n, theirs_mean) is not None or n in target.text_entries)
    misfits += [f"{n} has no place" for n in sorted(set(out.left) - set(known), key=out.left.index)]
    if misfits:
        raise UserError(f"the source's weights do not fit the new policy: {'; '.join(misfits[:5])}")
    return out


def _meanings_of(name: str, rows: Mapping[str, list[tuple]]) -> list[tuple] | None:
    """What the rows of an entry mean; None where they do not depend on the action space."""
    return next((meanings for start, meanings in rows.items() if name.startswith(start)), None)


def _same_meaning(target: list[tuple], source: list[tuple]) -> Rows:
    theirs = {meaning: i for i, meaning in enumerate(source)}
    return [(i, theirs[meaning]) for i, meaning in enumerate(target) if meaning in theirs]


def _with_rows(fresh: Tensor, theirs: Tensor, rows: Rows) -> Tensor:
    """``fresh`` with some of its rows taken over; all of them in order is the common case and copies nothing."""
    if fresh.shape == theirs.shape and rows == [(i, i) for i in range(len(fresh))]:
        return theirs.to(fresh.dtype)
    if not rows:
        return fresh
    to, of = (torch.tensor(column) for column in zip(*rows, strict=True))
    out = fresh.clone()
    out[to] = theirs[of].to(fresh.dtype)
    return out


def _report(space: ActionSpace, target: ActionGroup) -> str:
    """What becomes of the choices of a group."""
    source = next((g for g in space.groups if g.name == target.name and g.kind == target.kind), None)
    if source is None:
        return f"new, {target.choices} choices start fresh"
    rows = _same_meaning(choice_meanings(target), choice_meanings(source))
    text = f"{len(rows)} of {target.choices} choices carried over"
    new = set(range(target.choices)) - {a for a, _ in rows}
    if new and isinstance(target, HeldGroup):
        text += f"; fresh: {', '.join(target.names[i] for i in sorted(new))}"
    dropped = source.choices - len(rows)
    return text + (f"; {dropped} of the source are not used" if dropped else "")
