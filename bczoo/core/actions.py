"""Action spaces: what a policy can press and move, as data.

Place in the pipeline: recordings and games speak in *values* (``{"keys": ["w"], "mouse_dx": 3, ...}``), the policy
speaks in *ids* (``{"keys": [11, 0, 0, 0], "mouse_dx": [13], ...}``). An :class:`ActionSpace` translates both ways
and travels with the policy. The default is the reference keyboard-and-mouse space (paper 2601.04575, section 3).

A space is a tuple of groups. A group owns ``tokens`` consecutive action tokens, each a choice out of ``choices``:

* :class:`HeldGroup`    several things held at once, listed by ascending id and padded with id 0 ("none")
* :class:`SwitchGroup`  one token per named button, 0 released and 1 held
* :class:`BinnedGroup`  one number, cut into bins
"""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from bczoo.core import arguments
from bczoo.core.errors import UserError

Values = dict[str, Any]  # group name -> list of names (held, switch) or a number (binned)
Ids = dict[str, list[int]]  # group name -> one id per token
MOST_TOKENS = 256  # of a group
FURTHEST = 10**9  # from zero, of a number in bins
MouseDecoding = Literal["mean", "conservative", "truncated_normal"]


class UnknownActionError(UserError):
    """A key, button or group that the action space does not have."""


@dataclass(frozen=True)
class HeldGroup:
    """Up to ``tokens`` things held at the same time.

    Args:
        name: group name, also the keyword of :meth:`ActionSpace.encode`.
        names: meaning of every id; id 0 is "nothing".
        tokens: how many can be held at once; more keeps the lowest ids (as in the reference).
    """

    name: str
    names: tuple[str, ...]
    tokens: int

    kind = "held"

    def __post_init__(self) -> None:
        of = _check_names(self, fewest=2)
        arguments.whole(f"tokens {of}", self.tokens, 1, MOST_TOKENS)

    @property
    def choices(self) -> int:
        return len(self.names)

    @property
    def neutral(self) -> list[int]:
        return [0] * self.tokens

    def encode(self, held: Iterable[str], ignore_unknown: bool = False) -> list[int]:
        ids = sorted(_lookup(self, set(held), ignore_unknown))[: self.tokens]
        return ids + [0] * (self.tokens - len(ids))

    def decode(self, ids: Sequence[int], how: MouseDecoding, rng: np.random.Generator | None) -> list[str]:
        return sorted({self.names[i] for i in ids if i != 0})


@dataclass(frozen=True)
class SwitchGroup:
    """One token per named button: 0 released, 1 held."""

    name: str
    names: tuple[str, ...]

    kind = "switch"
    choices = 2

    def __post_init__(self) -> None:
        _check_names(self, most=MOST_TOKENS)

    @property
    def tokens(self) -> int:
        return len(self.names)

    @property
    def neutral(self) -> list[int]:
        return [0] * self.tokens

    def encode(self, held: Iterable[str], ignore_unknown: bool = False) -> list[int]:
        on = _lookup(self, set(held), ignore_unknown)
        return [int(i in on) for i in range(self.tokens)]

    def decode(self, ids: Sequence[int], how: MouseDecoding, rng: np.random.Generator | None) -> list[str]:
        return [name for name, i in zip(self.names, ids, strict=True) if i]


@dataclass(frozen=True)
class BinnedGroup:
    """One number in bins: the id is the first ``i`` with ``value <= edges[i]``, else the last.

    Args:
        name: group name.
        edges: ascending upper edges of all bins but the last.
        low: smallest value that the first bin decodes to (same unit as the edges).
        high: largest value that the last bin decodes to.
        std: deviation of the normal behind ``truncated_normal`` decoding; None decodes to the centre instead.
        integer: values are whole numbers (pixels); otherwise real (stick positions).
    """

    name: str
    edges: tuple[float, ...]
    low: float
    high: float
    std: float | None = None
    integer: bool = True

    kind = "binned"
    tokens = 1

    def __post_init__(self) -> None:
        of = _check_name(self)
        if not isinstance(self.edges, tuple) or not self.edges:
            arguments.refuse(f"edges {of}", self.edges, "a list of at least one number")
        for name, value in (*(("edges", edge) for edge in self.edges), ("low", self.low), ("high", self.high)):
            arguments.number(f"{name} {of}", value, -FURTHEST, FURTHEST)
        if any(a >= b for a, b in pairwise(self.edges)):
            arguments.refuse(f"edges {of}", self.edges, "in ascending order")
        if self.std is not None:
            arguments.number(f"std {of}", self.std, 1e-6, FURTHEST)
        arguments.flag(f"integer {of}", self.integer)
        for i in range(self.choices):
            low, high = self.support(i)
            if low > high:
                kind = "whole number" if self.integer else "number"
                raise UserError(f"bin {i} {of} holds no {kind}; look at its edges, low and high")

    @property
    def choices(self) -> int:
        return len(self.edges) + 1

    @property
    def neutral(self) -> list[int]:
        return self.encode(0)

    def encode(self, value: float, ignore_unknown: bool = False) -> list[int]:
        if not math.isfinite(value):
            raise ValueError(f"{self.name} must be a finite number, got {value!r}")
        return [bisect_left(self.edges, value)]

    def support(self, i: int) -> tuple[float, float]:
        """Smallest and largest value that bin ``i`` decodes to."""
        if not self.integer:
            bounds = (self.low, *self.edges, self.high)
            return bounds[i], bounds[i + 1]
        low = self.low if i == 0 else math.floor(self.edges[i - 1]) + 1
        high = self.high if i == len(self.edges) else math.floor(self.edges[i])
        return low, high

    def decode(self, ids: Sequence[int], how: MouseDecoding, rng: np.random.Generator | None) -> float:
        low, high = self.support(ids[0])
        if how == "mean" or (how == "truncated_normal" and self.std is None):
            centre = (low + high) / 2
            return int(centre) if self.integer else centre  # int() truncates towards zero, as in the reference
        if how == "conservative":
            nearest = min(max(0.0, low), high)
            return int(nearest) if self.integer else nearest
        if how != "truncated_normal":
            raise ValueError(f"unknown mouse decoding {how!r}; choose mean, conservative or truncated_normal")
        if low == high:
            return int(low) if self.integer else low
        normal = NormalDist(0.0, self.std)  # type: ignore[arg-type]
        a, b = normal.cdf(low), normal.cdf(high)
        u = (rng or np.random.default_rng()).random()
        p = min(max(a + u * (b - a), 1e-300), 1 - 1e-16)
        value = min(max(normal.inv_cdf(p), low), high)
        return round(value) if self.integer else value


ActionGroup = HeldGroup | SwitchGroup | BinnedGroup


def choice_meanings(group: ActionGroup) -> list[tuple]:
    """What each choice of a group means, equal between spaces where they mean the same: a name held, a range."""
    if isinstance(group, HeldGroup):
        return [
            (group.kind, None),
            *((group.kind, name) for name in group.names[1:]),
        ]  # id 0 is nothing, whatever its name
    if isinstance(group, BinnedGroup):
        return [(group.kind, group.support(i)) for i in range(group.choices)]
    return [(group.kind, i) for i in range(group.choices)]


def token_meanings(group: ActionGroup) -> list[tuple]:
    """What each token of a group means: the i-th held thing, the switch of a name, the number of a group."""
    return [
        (group.name, group.kind, group.names[i] if isinstance(group, SwitchGroup) else i) for i in range(group.tokens)
    ]


_KINDS: dict[str, type] = {cls.kind: cls for cls in (HeldGroup, SwitchGroup, BinnedGroup)}

KEYS = (
    "_no_key", "Space", "1", "2", "3", "4", "a", "d", "e", "f", "q", "w", "s", "z",
    "DownArrow", "UpArrow", "LeftArrow", "RightArrow", "LeftShift", "RightShift",
)  # fmt: skip
MOUSE_BUTTONS = ("_no_button", "0", "1", "2")  # left, right, middle
MOUSE_DX_EDGES = (
    -500.1, -144.1, -76.1, -46.1, -29.1, -18.1, -11.1, -6.1, -3.1, -1.1, -0.1,
    0.0, 1.0, 3.0, 6.0, 11.0, 18.0, 29.0, 46.0, 76.0, 144.0, 500.0,
)  # fmt: skip
MOUSE_DY_EDGES = (
    -150.1, -24.1, -12.1, -7.1, -4.1, -3.1, -1.1, -0.1,
    0.0, 1.0, 3.0, 4.0, 7.0, 12.0, 24.0, 150.0,
)  # fmt: skip
GAMEPAD_BUTTONS = (
    "south", "north", "east", "west", "dpad_up", "dpad_down", "dpad_left", "dpad_right",
    "start", "select", "left_bumper", "right_bumper",
)  # fmt: skip
GAMEPAD_STICKS = ("left_stick_x", "left_stick_y", "right_stick_x", "right_stick_y")


@dataclass(frozen=True)
class ActionSpace:
    """The groups of an action, in the order in which the policy predicts their tokens."""

    name: str
    groups: tuple[ActionGroup, ...]

    def __post_init__(self) -> None:
        arguments.line("name of an action space", self.name)
        names = [g.name for g in self.groups]
        if len(set(names)) != len(names) or not names:
            raise UserError(f"an action space needs groups of different names, got {arguments.shown(names)}")

    @classmethod
    def keyboard_mouse(
        cls, extra_keys: Sequence[str] = (), max_keys: int = 4, max_mouse_buttons: int = 2
    ) -> ActionSpace:
        """The reference space: 4 keys of 20, 2 mouse buttons of 4, mouse dx in 23 and dy in 17 bins.

        Args:
            extra_keys: further key names (``r``, ``LeftControl``), appended after the reference ids.
            max_keys: how many keys can be held at once.
            max_mouse_buttons: how many mouse buttons can be held at once.
        """
        if isinstance(extra_keys, str) or not isinstance(extra_keys, Sequence):
            arguments.refuse("extra_keys", extra_keys, "a list of names")
        return cls(
            "keyboard_mouse",
            (
                HeldGroup("keys", (*KEYS, *extra_keys), tokens=max_keys),
                HeldGroup("mouse_buttons", MOUSE_BUTTONS, tokens=max_mouse_buttons),
                BinnedGroup("mouse_dx", MOUSE_DX_EDGES, low=-501, high=501, std=96.0),
                BinnedGroup("mouse_dy", MOUSE_DY_EDGES, low=-151, high=151, std=22.0),
            ),
        )

    @classmethod
    def gamepad(cls) -> ActionSpace:
        """12 buttons and two sticks with x and y in 11 buckets (paper 2411.04434, appendix A.3): 16 tokens."""
        edges = tuple(round(-1 + 2 * i / 11, 9) for i in range(1, 11))
        sticks = (BinnedGroup(n, edges, low=-1.0, high=1.0, integer=False) for n in GAMEPAD_STICKS)
        return cls("gamepad", (SwitchGroup("buttons", GAMEPAD_BUTTONS), *sticks))

    @classmethod
    def of(cls, space: ActionSpace | str | Mapping[str, Any]) -> ActionSpace:
        """An action space, its name or its dict as an action space."""
        if isinstance(space, ActionSpace):
            return space
        return cls.from_name(space) if isinstance(space, str) else cls.from_dict(space)

    @classmethod
    def from_dict(cls, spec: Mapping[str, Any]) -> ActionSpace:
        """Inverse of :meth:`to_dict`; also accepts ``{"name": "keyboard_mouse"}`` for a space known by name.

        Raises:
            UserError: it is not laid out as an action space.
        """
        if not isinstance(spec, Mapping):
            arguments.refuse("an action space", spec, "a name, or an object with a name and groups")
        if "groups" not in spec:
            return cls.from_name(spec.get("name"), **{k: v for k, v in spec.items() if k != "name"})
        if spec.keys() != {"name", "groups"} or not isinstance(spec["groups"], list | tuple):
            arguments.refuse("an action space", dict(spec), "an object with a name and a list of groups")
        return cls(spec["name"], tuple(_group(group) for group in spec["groups"]))

    @classmethod
    def from_name(cls, name: Any, **options: Any) -> ActionSpace:
        """A space known by name; options as of the method of that name."""
        factories = {"keyboard_mouse": cls.keyboard_mouse, "gamepad": cls.gamepad}
        if not isinstance(name, str) or name not in factories:
            raise UserError(
                f"action space {arguments.shown(name)} is not known by name; choose one of {sorted(factories)}"
            )
        arguments.check_call(f"action space {name!r}", factories[name], **options)
        return factories[name](**options)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON that :meth:`from_dict` reads back to an equal space."""
        groups = []
        for group in self.groups:
            fields = dataclasses.asdict(group)
            groups.append(
                {"kind": group.kind, **{k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}}
            )
        return {"name": self.name, "groups": groups}

    @property
    def tokens(self) -> int:
        """Action tokens per step (8 for keyboard and mouse)."""
        return sum(g.tokens for g in self.groups)

    @property
    def slices(self) -> dict[str, slice]:
        """Where the tokens of each group lie among the action tokens of a step."""
        out, start = {}, 0
        for g in self.groups:
            out[g.name] = slice(start, start + g.tokens)
            start += g.tokens
        return out

    @property
    def token_groups(self) -> list[ActionGroup]:
        """The group of every action token, in order."""
        return [g for g in self.groups for _ in range(g.tokens)]

    @property
    def neutral(self) -> Ids:
        """Ids of "no key, no motion"."""
        return {g.name: g.neutral for g in self.groups}

    def encode(self, *, ignore_unknown: bool = False, **values: Any) -> Ids:
        """Values to ids: ``encode(keys=["w"], mouse_buttons=[], mouse_dx=3, mouse_dy=0)``.

        Args:
            ignore_unknown: leave out names that the space lacks (as in the reference); otherwise they raise.
            **values: per group a list of names or a number; a group that is left out is neutral.

        Raises:
            UnknownActionError: a group or name that the space does not have.
        """
        known = {g.name for g in self.groups}
        if extra := set(values) - known:
            raise UnknownActionError(f"action space {self.name!r} has no group {sorted(extra)}; it has {sorted(known)}")
        return {
            g.name: g.encode(values[g.name], ignore_unknown) if g.name in values else g.neutral for g in self.groups
        }

    def decode(
        self,
        ids: Mapping[str, Sequence[int]],
        mouse: MouseDecoding = "mean",
        rng: np.random.Generator | None = None,
    ) -> Values:
        """Ids to values.

        Args:
            ids: per group one id per token.
            mouse: how a bin becomes a number: its centre (``mean``), its edge nearest to zero (``conservative``),
                or a draw from a normal truncated to the bin (``truncated_normal``, the reference default in play).
            rng: source of the draws of ``truncated_normal``.
        """
        out: Values = {}
        for g in self.groups:
            group_ids = [int(i) for i in ids[g.name]]
            if len(group_ids) != g.tokens or not all(0 <= i < g.choices for i in group_ids):
                raise ValueError(
                    f"{g.name} needs {g.tokens} ids in 0..{g.choices - 1}, got {group_ids} (action space {self.name!r})"
                )
            out[g.name] = g.decode(group_ids, mouse, rng)
        return out


@dataclass(frozen=True)
class Decision:
    """What a player decided in one step: the values that go to the game, and how it came to them.

    ``decision.keys``, ``decision.mouse_dx`` and the other groups' values are attributes too.

    Args:
        values: per group the names held or the number.
        ids: per group one id per token; None where the player is no policy.
        probabilities: per group an array (tokens, choices), the policy's distribution that each id was drawn from.
    """

    values: Values
    ids: Ids | None = None
    probabilities: dict[str, np.ndarray] | None = None

    def __getattr__(self, name: str) -> Any:
        values = self.__dict__.get("values", {})
        if name in values:
            return values[name]
        raise AttributeError(f"this decision has no {name!r}; its groups are {sorted(values)}")


def _group(spec: Any) -> ActionGroup:
    """The group that an entry of :meth:`ActionSpace.to_dict` describes."""
    if not isinstance(spec, Mapping):
        arguments.refuse("an action group", spec, f"an object with a kind out of {sorted(_KINDS)} and a name")
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in spec.items() if k != "kind"}
    kind, which = spec.get("kind"), f"action group {arguments.shown(spec.get('name'))}"
    if not isinstance(kind, str) or kind not in _KINDS:
        arguments.refuse(f"kind of {which}", kind, f"one of {sorted(_KINDS)}")
    arguments.check_call(which, _KINDS[kind], **options)
    return _KINDS[kind](**options)


def _check_name(group: ActionGroup) -> str:
    """Check the name of a group; returns how errors refer to it."""
    arguments.line("name of an action group", group.name)
    if not (group.name.isidentifier() and not group.name.startswith("_")):
        raise UserError(f"an action group needs a plain name such as mouse_dx, got {group.name!r}")
    return f"of action group {group.name!r}"


def _check_names(group: HeldGroup | SwitchGroup, fewest: int = 1, most: float = math.inf) -> str:
    """Check the name of a group and the names in it; returns how errors refer to it."""
    of = _check_name(group)
    if not isinstance(group.names, tuple) or not fewest <= len(group.names) <= most:
        at_most = "" if most == math.inf else f" and at most {most}"
        arguments.refuse(f"names {of}", group.names, f"a list of at least {fewest}{at_most} names")
    for name in group.names:
        arguments.line(f"names {of}", name)
    if len(set(group.names)) != len(group.names):
        raise UserError(f"names {of} have {Counter(group.names).most_common(1)[0][0]!r} more than once")
    return of


def _lookup(group: HeldGroup | SwitchGroup, held: set[str], ignore_unknown: bool) -> set[int]:
    index = {name: i for i, name in enumerate(group.names)}
    if not ignore_unknown and (unknown := sorted(held - index.keys())):
        raise UnknownActionError(
            f"{group.name} {unknown} are not in this action space, which knows {list(group.names)}; "
            "add them to the action space or pass ignore_unknown=True"
        )
    return {index[name] for name in held if name in index}
