"""From what a player presses to what an environment takes as its action.

Place in the pipeline: a policy, expert or random player answers with *values* of an action space
(``{"keys": ["w"], "mouse_buttons": ["0"], "mouse_dx": 12}``). Bindings turn them into the action of one
``gymnasium.Env``. Anything callable on values will do; the classes here cover the usual action spaces and
also give the random player the inputs that the game listens to.

Inputs have flat names. A key or gamepad button goes by its own name (``w``, ``south``), mouse buttons are
``mouse_left``, ``mouse_right`` and ``mouse_middle`` (bare "1" would be the digit key), numbers go by the name
of their group (``mouse_dx``, ``left_stick_x``).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bczoo.core.actions import ActionSpace, BinnedGroup, HeldGroup, SwitchGroup, Values
from bczoo.core.errors import UserError

MOUSE_BUTTON_NAMES = {"0": "mouse_left", "1": "mouse_right", "2": "mouse_middle"}


class _Wait(enum.Enum):
    WAIT = "the environment waits"


WAIT = _Wait.WAIT  # in place of an action: time passes for the player, and the environment is not stepped


def input_name(group: str, name: str) -> str:
    """The flat name of ``name`` held in ``group``: ``("mouse_buttons", "0")`` is ``mouse_left``."""
    return MOUSE_BUTTON_NAMES.get(name, name) if group == "mouse_buttons" else name


def inputs_of(values: Values) -> dict[str, float]:
    """Values as one flat dictionary: 1.0 for everything held, numbers as they are."""
    flat: dict[str, float] = {}
    for group, value in values.items():
        if isinstance(value, int | float | np.number):
            flat[group] = float(value)
        else:
            flat.update({input_name(group, name): 1.0 for name in value})
    return flat


def inputs_in(space: ActionSpace) -> set[str]:
    """All inputs that an action space can give."""
    names: set[str] = set()
    for group in space.groups:
        if isinstance(group, BinnedGroup):
            names.add(group.name)
        else:
            names.update(input_name(group.name, n) for n in group.names if not n.startswith("_"))
    return names


def values_of(held: Iterable[str], space: ActionSpace) -> Values:
    """Values that hold inputs by their flat names, and nothing else.

    Args:
        held: such as ``w`` and ``mouse_left``; numbers are none of them.
        space: names their groups.
    """
    wanted = set(held)
    return {
        group.name: [name for name in group.names if input_name(group.name, name) in wanted]
        for group in space.groups
        if isinstance(group, HeldGroup | SwitchGroup)
    }


class Bindings:
    """Base class: what the game listens to (``inputs``) and its action for given values."""

    inputs: frozenset[str]

    def rows(self) -> list[tuple[str, str]]:
        """What is pressed and what it does, for a table."""
        return [(name, "") for name in sorted(self.inputs)]

    def __call__(self, values: Values) -> Any:
        return self.action(inputs_of(values))

    def action(self, pressed: Mapping[str, float]) -> Any:
        """The environment's action for flat inputs; inputs that are not bound have no effect."""
        raise NotImplementedError


class DiscreteBindings(Bindings):
    """One choice out of many (``gymnasium.spaces.Discrete``), picked by what is held together.

    ``DiscreteBindings({"a": 0, "d": 1, "d+mouse_left": 2}, none=3)``: the combination with the most members
    that are all held wins, the one written first among equals; nothing that matches gives ``none``.

    Args:
        combinations: names of held inputs joined by ``+``, and the action that they mean.
        none: the action when nothing bound is held; ``WAIT`` lets the environment wait.
        names: of the actions, for a table.
    """

    def __init__(self, combinations: Mapping[str, Any], none: Any, names: Mapping[Any, str] | None = None) -> None:
        if not combinations:
            raise UserError('DiscreteBindings needs at least one combination, such as {"a": 0}')
        self.combinations = dict(combinations)
        self.names = dict(names or {})
        self._combinations = [(frozenset(c.split("+")), action) for c, action in combinations.items()]
        self._combinations.sort(key=lambda item: -len(item[0]))
        self.none = none
        self.inputs = frozenset().union(*(c for c, _ in self._combinations))

    def rows(self) -> list[tuple[str, str]]:
        return [(keys, self._told(action)) for keys, action in [*self.combinations.items(), ("nothing", self.none)]]

    def _told(self, action: Any) -> str:
        if action is WAIT:
            return str(WAIT.value)
        return f"{self.names[action]} ({action})" if action in self.names else f"action {action}"

    def action(self, pressed: Mapping[str, float]) -> Any:
        held = {name for name, amount in pressed.items() if amount}
        return next((action for combination, action in self._combinations if combination <= held), self.none)


class VectorBindings(Bindings):
    """A vector (``Box``, ``MultiBinary``, ``MultiDiscrete``): every input adds to one element.

    ``VectorBindings({"w": 0, "s": (0, -1.0), "mouse_dx": (1, 0.25)}, size=2)``: W gives +1 and S -1 in
    element 0, a mouse motion of 12 px gives 3 in element 1.

    Args:
        elements: per input the index of its element, or ``(index, factor)``.
        size: elements of the vector.
        low: smallest value of an element, one for all or one each.
        high: largest value of an element.
        dtype: NumPy type of the action.
        names: of the elements by index, for a table.
    """

    def __init__(
        self,
        elements: Mapping[str, int | tuple[int, float]],
        size: int,
        low: float | Sequence[float] = -np.inf,
        high: float | Sequence[float] = np.inf,
        dtype: Any = np.float32,
        names: Mapping[int, str] | None = None,
    ) -> None:
        self._elements = {n: (e, 1.0) if isinstance(e, int) else e for n, e in elements.items()}
        if wrong := {n: i for n, (i, _) in self._elements.items() if not 0 <= i < size}:
            raise UserError(f"elements {wrong} lie outside of a vector of size {size}")
        self.size, self.low, self.high, self.dtype = size, low, high, dtype
        self.names = dict(names or {})
        self.inputs = frozenset(self._elements)

    def rows(self) -> list[tuple[str, str]]:
        return [
            (name, f"{self.names.get(index, f'element {index}')} {factor:+g}")
            for name, (index, factor) in self._elements.items()
        ]

    def action(self, pressed: Mapping[str, float]) -> np.ndarray:
        vector = np.zeros(self.size)
        for name, (index, factor) in self._elements.items():
            vector[index] += factor * pressed.get(name, 0.0)
        return np.clip(vector, self.low, self.high).astype(self.dtype)


class MultiDiscreteBindings(Bindings):
    """One choice in every element of a vector (``gymnasium.spaces.MultiDiscrete``).

    ``MultiDiscreteBindings(DiscreteBindings({"a": 1, "d": 2}, none=0), DiscreteBindings({"Space": 1}, none=0))``

    Args:
        parts: bindings of the elements, in order.
        dtype: NumPy type of the action.
    """

    def __init__(self, *parts: DiscreteBindings, dtype: Any = np.int64) -> None:
        self.parts, self.dtype = parts, dtype
        self.inputs = frozenset().union(*(part.inputs for part in parts))

    def action(self, pressed: Mapping[str, float]) -> np.ndarray:
        return np.array([part.action(pressed) for part in self.parts], self.dtype)

    def rows(self) -> list[tuple[str, str]]:
        return [(keys, f"element {i}: {told}") for i, part in enumerate(self.parts) for keys, told in part.rows()]


class DictBindings(Bindings):
    """A dictionary of actions (``gymnasium.spaces.Dict``), each with bindings of its own.

    ``DictBindings(jump=DiscreteBindings({"Space": 1}, none=0), camera=VectorBindings({...}, size=2))``
    """

    def __init__(self, **parts: Bindings) -> None:
        self._parts = parts
        self.inputs = frozenset().union(*(part.inputs for part in parts.values()))

    def action(self, pressed: Mapping[str, float]) -> dict[str, Any]:
        return {name: part.action(pressed) for name, part in self._parts.items()}

    def rows(self) -> list[tuple[str, str]]:
        return [(keys, f"{name}: {told}") for name, part in self._parts.items() for keys, told in part.rows()]
