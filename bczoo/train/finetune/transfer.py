"""Carrying weights from one policy to another whose action space differs.

Place in the pipeline: :class:`bczoo.train.finetune.policy.FineTune` builds the new policy, and :func:`carry_over` fills it
from the source's weights. Everything outside the action space is taken as it is. Inside, rows belong to names: the row
of ``w`` in an embedding or a head goes to the row of ``w``, wherever it stands in the new space; what the source did
not know keeps its fresh initialisation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bczoo.core.actions import ActionGroup, ActionSpace, BinnedGroup, HeldGroup
from bczoo.core.errors import UserError

Rows = list[tuple[int, int]]  # (row in the target, row in the source)
TEXT_ENTRIES = ("tokens.text_projection.weight", "tokens.text_position", "tokens.no_text")


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
    weights: Mapping[str, Tensor],
    source: ActionSpace,
    fresh: Mapping[str, Tensor],
    target: ActionSpace,
) -> CarriedOver:
    """Fill a new policy with the weights of another one.

    Args:
        weights: state dict of the source.
        source: its action space.
        fresh: state dict of the new policy, freshly initialised.
        target: its action space.

    Raises:
        UserError: names entries that do not fit for another reason than the action space or added or dropped text.
    """
    out = CarriedOver({}, groups={g.name: _told(_find(source, g), g) for g in target.groups})
    choice_rows = {g.name: _choices(_find(source, g), g) for g in target.groups}
    token_rows = _tokens(source, target)
    misfits = []
    for name, own in fresh.items():
        group = _group_of(name)
        theirs = weights.get(name)
        if theirs is None:
            if group is None and name not in TEXT_ENTRIES:
                misfits.append(f"{name} is missing")
            out.state[name] = own
            out.fresh.append(name)
        elif group is None and not _is_per_token(name) and theirs.shape == own.shape:
            out.state[name] = theirs.to(own.dtype)
        elif (group is not None or _is_per_token(name)) and theirs.shape[1:] == own.shape[1:]:
            lead = 0 if group else len(theirs) - source.tokens  # rows before the action tokens: the decision latent's
            moved = choice_rows[group] if group else [(a + lead, b + lead) for a, b in token_rows]
            rows = [*((i, i) for i in range(lead)), *moved]
            out.state[name] = _with_rows(own, theirs, rows)
            if not rows:
                out.fresh.append(name)
        else:
            misfits.append(f"{name} is {list(theirs.shape)} in the source and {list(own.shape)} here")
    out.left = [name for name in weights if name not in fresh]
    misfits += [f"{n} has no place" for n in out.left if _group_of(n) is None and n not in TEXT_ENTRIES]
    if misfits:
        raise UserError(f"the source's weights do not fit the new policy: {'; '.join(misfits[:5])}")
    return out


def _group_of(name: str) -> str | None:
    """The action group whose choices are the rows of an entry."""
    for prefix in ("action_embedding.tables.", "decoder.heads."):
        if name.startswith(prefix):
            return name.removeprefix(prefix).split(".")[0]
    return None


def _is_per_token(name: str) -> bool:
    """Whether the rows of an entry are action tokens."""
    return name in ("tokens.action_positions", "decoder.positions")


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


def _find(space: ActionSpace, group: ActionGroup) -> ActionGroup | None:
    """The group of the same name and kind."""
    return next((g for g in space.groups if g.name == group.name and g.kind == group.kind), None)


def _choices(source: ActionGroup | None, target: ActionGroup) -> Rows:
    """Which choices of a group mean the same: names held, bins of the same range, released and held of a switch."""
    if source is None:
        return []
    theirs = {meaning: i for i, meaning in enumerate(_meanings(source))}
    return [(i, theirs[m]) for i, m in enumerate(_meanings(target)) if m in theirs]


def _meanings(group: ActionGroup) -> list[object]:
    if isinstance(group, HeldGroup):
        return [None, *group.names[1:]]  # id 0 is "nothing", whatever it is called
    if isinstance(group, BinnedGroup):
        return [group.support(i) for i in range(group.choices)]
    return list(range(group.choices))


def _tokens(source: ActionSpace, target: ActionSpace) -> Rows:
    """Which action tokens mean the same: the i-th held thing, the switch of a name, the number of a group."""

    def tokens(space: ActionSpace) -> list[tuple[str, str, object]]:
        return [
            (g.name, g.kind, g.names[i] if g.kind == "switch" else i)  # type: ignore[union-attr]
            for g in space.groups
            for i in range(g.tokens)
        ]

    theirs = {meaning: i for i, meaning in enumerate(tokens(source))}
    return [(i, theirs[m]) for i, m in enumerate(tokens(target)) if m in theirs]


def _told(source: ActionGroup | None, target: ActionGroup) -> str:
    if source is None:
        return f"new, {target.choices} choices start fresh"
    rows = _choices(source, target)
    text = f"{len(rows)} of {target.choices} choices carried over"
    new = set(range(target.choices)) - {a for a, _ in rows}
    if new and isinstance(target, HeldGroup):
        text += f"; fresh: {', '.join(target.names[i] for i in sorted(new))}"
    dropped = source.choices - len(rows)
    return text + (f"; {dropped} of the source are not used" if dropped else "")
