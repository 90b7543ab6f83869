"""Keys for an environment that nobody has written bindings for.

Place in the pipeline: :mod:`bczoo.games.gymnasium_ids` asks :func:`default_bindings` for every environment that is
named by its Gymnasium id; a game of your own may start from them too.

Keys come from the environment where it knows some: its ``get_keys_to_action()``, then the meanings of its actions
(``get_action_meanings()``, the names of an enumeration ``actions``, or :data:`MEANINGS` for environments that come with
Gymnasium). Meanings that are known words get the usual keys (:data:`WORDS`); what is left gets letters and digits in
order. Only keys of the reference keyboard are used, so that any keyboard-and-mouse policy fits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import EnumMeta
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from bczoo.core.actions import KEYS, ActionSpace, HeldGroup, Values
from bczoo.core.errors import UserError
from bczoo.games.bindings import WAIT, Bindings, DiscreteBindings, MultiDiscreteBindings, VectorBindings, values_of

WORDS = {
    "UP": "w", "FORWARD": "w", "NORTH": "w", "GAS": "w", "ACCELERATE": "w",
    "DOWN": "s", "BACK": "s", "BACKWARD": "s", "SOUTH": "s", "BRAKE": "s",
    "LEFT": "a", "WEST": "a", "RIGHT": "d", "EAST": "d",
    "FIRE": "Space", "SHOOT": "Space", "ATTACK": "Space", "JUMP": "Space", "TOGGLE": "Space", "USE": "Space",
    "PICKUP": "e", "DROP": "q", "DROPOFF": "q", "DONE": "f",
}  # fmt: skip
NEUTRAL = ("NOOP", "NONE", "NOTHING", "IDLE", "STAY", "WAIT")  # meanings of an action that does nothing
MEANINGS = {  # environments of Gymnasium, which do not say what their actions mean
    "Acrobot": ("LEFT", "NOOP", "RIGHT"),
    "Blackjack": ("STICK", "HIT"),
    "CarRacing": ("NOOP", "RIGHT", "LEFT", "GAS", "BRAKE"),
    "CartPole": ("LEFT", "RIGHT"),
    "CliffWalking": ("UP", "RIGHT", "DOWN", "LEFT"),
    "CliffWalkingSlippery": ("UP", "RIGHT", "DOWN", "LEFT"),
    "FrozenLake": ("LEFT", "DOWN", "RIGHT", "UP"),
    "FrozenLake8x8": ("LEFT", "DOWN", "RIGHT", "UP"),
    "LunarLander": ("NOOP", "LEFT", "UP", "RIGHT"),
    "MountainCar": ("LEFT", "NOOP", "RIGHT"),
    "Taxi": ("SOUTH", "NORTH", "EAST", "WEST", "PICKUP", "DROPOFF"),
}
AXES = {  # name and keys (towards low, towards high) of the elements of a Box
    "CarRacing": (("steering", "a", "d"), ("gas", "", "w"), ("brake", "", "s")),
    "LunarLander": (("main engine", "s", "w"), ("side engines", "a", "d")),
}
PAIRS = (
    ("a", "d"), ("s", "w"), ("LeftArrow", "RightArrow"), ("DownArrow", "UpArrow"), ("q", "e"), ("1", "2"), ("3", "4"),
    ("z", "f"), ("LeftShift", "RightShift"),
)  # fmt: skip
SHIFTS = ("", "LeftShift+", "RightShift+")
IN_ORDER = (
    "1", "2", "3", "4", "q", "w", "e", "a", "s", "d", "f", "z", "Space",
    "UpArrow", "LeftArrow", "DownArrow", "RightArrow",
)  # fmt: skip
CODES = {  # numbers of keys in pygame 1 and 2
    **dict.fromkeys((273, 1073741906), "UpArrow"),
    **dict.fromkeys((274, 1073741905), "DownArrow"),
    **dict.fromkeys((275, 1073741903), "RightArrow"),
    **dict.fromkeys((276, 1073741904), "LeftArrow"),
    **dict.fromkeys((303, 1073742053), "RightShift"),
    **dict.fromkeys((304, 1073742049), "LeftShift"),
    32: "Space",
}
OWN = "write bindings of your own: docs/games.md shows how"


def default_bindings(env: gymnasium.Env) -> Bindings:
    """Keys for the actions of an environment.

    ``Discrete`` gets a key or a combination for each action, ``MultiDiscrete`` the same in every element,
    ``MultiBinary`` a key for each bit, and ``Box`` a pair of keys for each element that push it to its bounds.

    Args:
        env: made, but not necessarily reset.

    Raises:
        UserError: the action space is none of these, or has more actions than there are keys.
    """
    space, name = env.action_space, _name(env)
    for kind, bind in _BINDERS.items():
        if isinstance(space, kind):
            return bind(env, space, name)
    raise UserError(f"{name} has the action space {space}, for which there are no default keys; {OWN}")


class UniformActions:
    """A random player's values: each choice of the bindings is as likely as any other.

    Args:
        parts: bindings that choose independently.
        space: whose values are sampled.
    """

    def __init__(self, parts: Sequence[DiscreteBindings], space: ActionSpace) -> None:
        self.space = space
        self.most = next(group.tokens for group in space.groups if isinstance(group, HeldGroup))
        self._choices = [[*part.combinations, *([] if part.none is WAIT else [""])] for part in parts]

    def __call__(self, rng: np.random.Generator) -> Values:
        held = {key for choices in self._choices for key in choices[rng.integers(len(choices))].split("+") if key}
        values = values_of(held, self.space)
        if len(values["keys"]) > self.most:
            values["keys"] = sorted(rng.choice(values["keys"], self.most, replace=False).tolist())
        return values


def random_actions(bindings: Bindings, space: ActionSpace) -> UniformActions | None:
    """A random player that suits bindings; None where holding every key half of the time does."""
    if isinstance(bindings, DiscreteBindings):
        return UniformActions([bindings], space)
    return UniformActions(bindings.parts, space) if isinstance(bindings, MultiDiscreteBindings) else None


def _discrete(env: gymnasium.Env, space: spaces.Discrete, name: str) -> Bindings:
    actions = range(int(space.start), int(space.start + space.n))
    meanings = _meanings(env, len(actions))
    names = dict(zip(actions, meanings, strict=True)) if meanings else {}
    neutral = next((action for action, meaning in names.items() if meaning in NEUTRAL), None)
    if (own := _own_keys(env, actions)) is not None:
        neutral = own.pop("", neutral)
    combinations = own or _by_meaning(names) or {}
    if neutral is not None:
        combinations = {keys: action for keys, action in combinations.items() if action != neutral or "+" in keys}
    missing = [action for action in actions if action != neutral and action not in combinations.values()]
    for action, keys in zip(missing, _free(combinations, len(missing), name), strict=True):
        combinations[keys] = action
    if not combinations:
        raise UserError(f"{name} has one action only; there is nothing to press")
    return DiscreteBindings(combinations, none=WAIT if neutral is None else neutral, names=names)


def _multi_discrete(env: gymnasium.Env, space: spaces.MultiDiscrete, name: str) -> Bindings:
    if len(space.shape) != 1:
        raise UserError(f"{name} has the action space {space} of shape {space.shape}; {OWN}")
    free = _free((), sum(int(n) - 1 for n in space.nvec), name)
    parts = []
    for n, start in zip(space.nvec, space.start, strict=True):
        if n < 2:
            raise UserError(f"{name} has the action space {space}, in which an element has no choice; {OWN}")
        parts.append(DiscreteBindings({free.pop(0): int(start) + i for i in range(1, int(n))}, none=int(start)))
    return MultiDiscreteBindings(*parts, dtype=space.dtype)


def _multi_binary(env: gymnasium.Env, space: spaces.MultiBinary, name: str) -> Bindings:
    if len(space.shape) != 1:
        raise UserError(f"{name} has the action space {space} of shape {space.shape}; {OWN}")
    size = int(space.shape[0])
    if size > len(IN_ORDER):
        raise UserError(f"{name} has {size} switches, and there are {len(IN_ORDER)} keys for them; {OWN}")
    names = dict(enumerate(_meanings(env, size) or ()))
    keys = _one_key_each([names.get(i, "") for i in range(size)])
    return VectorBindings({key: i for i, key in enumerate(keys)}, size, low=0, high=1, dtype=space.dtype, names=names)


def _box(env: gymnasium.Env, space: spaces.Box, name: str) -> Bindings:
    if len(space.shape) != 1 or not space.is_bounded():
        raise UserError(f"{name} has the action space {space}, and keys need a vector with bounds; {OWN}")
    size = int(space.shape[0])
    axes = AXES.get(_family(env), ())
    if len(axes) != size:
        axes = tuple((f"element {i}", *pair) for i, pair in zip(range(size), PAIRS, strict=False))
    if len(axes) < size:
        raise UserError(f"{name} has {size} continuous actions, and there are keys for {len(PAIRS)}; {OWN}")
    elements: dict[str, int | tuple[int, float]] = {}
    for i, (_, down, up) in enumerate(axes):
        low, high = float(space.low[i]), float(space.high[i])
        if low < 0 or (low == high == 0):  # at rest an element is 0, or as near to it as its bounds let it
            elements[down] = i, low
        if high > 0:
            elements[up] = i, high
    names = {i: axis[0] for i, axis in enumerate(axes)}
    return VectorBindings(elements, size, space.low.tolist(), space.high.tolist(), space.dtype, names)


_BINDERS: dict[type, Callable[[gymnasium.Env, Any, str], Bindings]] = {
    spaces.Discrete: _discrete,
    spaces.MultiDiscrete: _multi_discrete,
    spaces.MultiBinary: _multi_binary,
    spaces.Box: _box,
}


def _name(env: gymnasium.Env) -> str:
    spec = getattr(env, "spec", None)
    return spec.id if spec is not None else type(getattr(env, "unwrapped", env)).__name__


def _family(env: gymnasium.Env) -> str:
    """The id without namespace and version."""
    spec = getattr(env, "spec", None)
    return spec.name if spec is not None and spec.namespace is None else ""


def _attribute(env: gymnasium.Env, name: str) -> Any:
    return getattr(getattr(env, "unwrapped", env), name, None)


def _meanings(env: gymnasium.Env, count: int) -> list[str] | None:
    """What each action means, in capitals; None if that is not known of all of them."""
    told, actions = _attribute(env, "get_action_meanings"), _attribute(env, "actions")
    if callable(told):
        meanings = told()
    elif isinstance(actions, EnumMeta):
        members: Mapping[str, Any] = actions.__members__
        meanings = list(members) if [one.value for one in members.values()] == list(range(count)) else None
    else:
        meanings = MEANINGS.get(_family(env))
    if not isinstance(meanings, Sequence) or len(meanings) != count:
        return None
    return [str(meaning).upper() for meaning in meanings]


def _own_keys(env: gymnasium.Env, actions: range) -> dict[str, int] | None:
    """The environment's own keys as combinations; None if it has none, or some that are not on the keyboard."""
    told = _attribute(env, "get_keys_to_action")
    given = told() if callable(told) else None
    if not isinstance(given, Mapping):
        return None
    combinations: dict[str, int] = {}
    for codes, action in given.items():
        names = [_key(code) for code in (codes if isinstance(codes, Iterable) else (codes,))]
        if "" in names or action not in actions:
            return None
        combinations["+".join(sorted(set(names)))] = int(action)
    return combinations


def _key(code: Any) -> str:
    """The name of a key by its character or number; empty for one that is not on the keyboard."""
    if isinstance(code, str):
        code = ord(code.lower()) if len(code) == 1 else -1
    name = CODES.get(code) or (chr(code) if isinstance(code, int) and 32 < code < 127 else "")
    return name if name in KEYS else ""


def _by_meaning(names: Mapping[int, str]) -> dict[str, int]:
    """Combinations of the actions whose meaning is made of known words, such as UP or DOWNLEFTFIRE."""
    combinations: dict[str, int] = {}
    for action, meaning in names.items():
        if (keys := _keys_of(meaning)) and "+".join(keys) not in combinations:
            combinations["+".join(keys)] = action
    return combinations


def _keys_of(meaning: str) -> list[str]:
    """The keys of a meaning's words; none if a word is not known."""
    words = re.findall("|".join(sorted(WORDS, key=len, reverse=True)), meaning)
    if not words or "".join(words) != re.sub(r"[^A-Z]", "", meaning):
        return []
    return list(dict.fromkeys(WORDS[word] for word in words))


def _one_key_each(meanings: Sequence[str]) -> list[str]:
    """A key of its own for every switch: the one of its meaning where that is free."""
    found: list[str | None] = []
    for meaning in meanings:
        keys = _keys_of(meaning)
        found.append(keys[0] if len(keys) == 1 and keys[0] not in found else None)
    free = iter([key for key in IN_ORDER if key not in found])
    return [key or next(free) for key in found]


def _free(taken: Iterable[str], count: int, name: str) -> list[str]:
    """Keys, and then combinations with Shift, that are not taken yet."""
    used = set(taken)
    free = [shift + key for shift in SHIFTS for key in IN_ORDER if shift + key not in used]
    if count > len(free):
        raise UserError(f"{name} has {count} more actions, and there are {len(free)} keys for them; {OWN}")
    return free[:count]
