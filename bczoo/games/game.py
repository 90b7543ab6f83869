"""A game that players can play: the one interface through which new games come in.

Place in the pipeline: :func:`make_game` finds a :class:`Game` by name; :meth:`Game.open` starts it;
:mod:`bczoo.play.episodes` asks a player (policy, expert, random) for values and steps it;
:mod:`bczoo.record` writes what was played as recordings.

A new game is a function that returns a :class:`Game`. It needs no change here: name it
``package.module:function`` wherever a game is asked for, or give it a short name with :func:`register_game`.

    def my_game() -> Game:
        return Game("my_game", env=MyEnv, bindings=DiscreteBindings({"a": 0, "d": 1}, none=2))
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import gymnasium
import numpy as np

from bczoo.core.actions import ActionSpace, BinnedGroup, HeldGroup, Values
from bczoo.core.errors import UserError
from bczoo.games.bindings import Bindings, input_name, inputs_in

FRAME_KEYS = ("frame", "rgb", "image", "screen")
RANDOM_RANGES = {"mouse_dx": (-60.0, 60.0)}  # px; other numbers use their whole range
MAKE_IT_THERE = "name the game package.module:function, so that each process makes it itself"
_BUILT_IN = {"doom": "bczoo.games.doom"}  # first part of the name -> module


class UnknownGameError(UserError):
    """A name under which no game is known."""


class Expert(Protocol):
    """A scripted player. It may use what the policy never sees (``info`` of the ``expert_env``)."""

    def reset(self, seed: int) -> None:
        """A new episode begins."""

    def act(self, frame: np.ndarray, info: dict[str, Any]) -> Values:
        """What to press, after seeing ``frame`` (uint8, height x width x 3)."""


@dataclass(frozen=True)
class Game:
    """How to start a game, and what its keyboard and mouse do.

    The environment's observation is the frame (uint8, height x width x 3, RGB), or a dictionary with the
    frame under one of ``frame``, ``rgb``, ``image``, ``screen``; otherwise ``env.render()`` has to return it
    (``render_mode="rgb_array"``).

    Other processes make a game that :func:`make_game` made anew, under its name, so its fields may be anything. A Game
    that was made otherwise is sent to them, lambdas and classes of a notebook too, but no locks and open files.

    Args:
        name: the name in tables and recordings.
        env: makes the environment.
        bindings: values of the action space -> the environment's action, see :mod:`bczoo.games.bindings`.
        expert: makes a scripted player, if there is one.
        expert_env: makes the environment that the expert plays, where its ``info`` holds more than a policy
            may know; it must play the same game as ``env`` at the same seed.
        random: values of the random player; by default every bound key and button is held half of the time,
            ``mouse_dx`` is uniform in +-60 px, sticks in their whole range, ``mouse_dy`` is 0.
        action_space: what can be pressed and moved.
        fps: steps per second of game time.
        time_limit_s: an episode ends after this many seconds of game time, if it has not before.
    """

    name: str
    env: Callable[[], gymnasium.Env]
    bindings: Callable[[Values], Any]
    expert: Callable[[], Expert] | None = None
    expert_env: Callable[[], gymnasium.Env] | None = None
    random: Callable[[np.random.Generator], Values] | None = None
    action_space: ActionSpace = dataclasses.field(default_factory=ActionSpace.keyboard_mouse)
    fps: float = 20.0
    time_limit_s: float = 120.0
    _made_by: tuple[Callable[..., Game], tuple[Any, ...]] | None = dataclasses.field(
        default=None, init=False, repr=False, compare=False
    )  # how another process makes the same game

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._made_by if self._made_by is not None else super().__reduce_ex__(protocol)

    def __post_init__(self) -> None:
        known = inputs_in(self.action_space)
        for name in sorted(self.inputs - known):
            close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            raise UserError(
                f"game {self.name!r} binds {name!r}, which action space {self.action_space.name!r} lacks; "
                + (f"did you mean {' or '.join(close)}? " if close else "")
                + f"It has {sorted(known)}; add keys with ActionSpace.keyboard_mouse(extra_keys=...)"
            )

    @property
    def inputs(self) -> frozenset[str]:
        """Inputs that the game listens to; empty where the bindings are a plain function."""
        return self.bindings.inputs if isinstance(self.bindings, Bindings) else frozenset()

    def open(self, for_expert: bool = False) -> RunningGame:
        """Start the environment; close it with ``close()`` or a ``with`` block."""
        make = self.expert_env if for_expert and self.expert_env is not None else self.env
        return RunningGame(self, make())

    def make_expert(self) -> Expert:
        if self.expert is None:
            raise UserError(f"game {self.name!r} has no expert; give its Game expert=...")
        return self.expert()

    def random_values(self, rng: np.random.Generator) -> Values:
        """One step of the random player."""
        if self.random is not None:
            return self.random(rng)
        if not self.inputs:
            raise UserError(
                f"game {self.name!r} has bindings that do not say their inputs, so the random player "
                "cannot know what to press; give its Game random=..., or use bczoo.games.bindings"
            )
        values: Values = {}
        for group in self.action_space.groups:
            if not isinstance(group, BinnedGroup):
                bound = [n for n in group.names if input_name(group.name, n) in self.inputs]
                held = [n for n in bound if rng.random() < 0.5]
                if isinstance(group, HeldGroup) and len(held) > group.tokens:
                    held = sorted(rng.choice(held, group.tokens, replace=False).tolist())
                values[group.name] = held
            elif group.name in self.inputs and group.name != "mouse_dy":
                number = rng.uniform(*RANDOM_RANGES.get(group.name, (group.low, group.high)))
                values[group.name] = round(number) if group.integer else number
        return values


class RunningGame:
    """A started game: frames in, values out. One episode after another with :meth:`reset`."""

    def __init__(self, game: Game, env: gymnasium.Env) -> None:
        self.game = game
        self.env = env
        self._steps = 0
        self._limit = max(1, round(game.time_limit_s * game.fps))

    def reset(self, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin the episode of this seed; returns its first frame and info."""
        observation, info = self.env.reset(seed=seed)
        self._steps = 0
        return self._frame(observation), info

    def step(self, values: Values) -> tuple[np.ndarray, float, bool, dict[str, Any]]:
        """Press ``values`` for one step; returns frame, reward, whether the episode is over, and info."""
        observation, reward, terminated, truncated, info = self.env.step(self.game.bindings(values))
        self._steps += 1
        done = bool(terminated or truncated or self._steps >= self._limit)
        return self._frame(observation), float(reward), done, info

    def close(self) -> None:
        self.env.close()

    def __enter__(self) -> RunningGame:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _frame(self, observation: Any) -> np.ndarray:
        if _is_frame(observation):
            return observation
        if isinstance(observation, Mapping):
            for key in FRAME_KEYS:
                if _is_frame(observation.get(key)):
                    return observation[key]
        rendered = self.env.render() if getattr(self.env, "render_mode", None) == "rgb_array" else None
        if _is_frame(rendered):
            return rendered  # type: ignore[return-value]
        raise UserError(
            f"game {self.game.name!r} shows no frame: its observation is {_describe(observation)}, render() "
            f"gave {_describe(rendered)}. Observe a uint8 array (height, width, 3) or a dictionary with one "
            f'under {", ".join(FRAME_KEYS)}, or make the environment with render_mode="rgb_array"'
        )


if TYPE_CHECKING:
    GameOrName = Game | str
else:
    GameOrName = str  # to the parser of the command line

_registry: dict[str, Callable[[], Game]] = {}


def register_game(name: str, factory: Callable[[], Game]) -> None:
    """Make ``factory`` known as ``name`` to :func:`make_game` in this process."""
    _registry[name] = factory


def game_names() -> list[str]:
    """All names that :func:`make_game` knows."""
    for module in _BUILT_IN.values():
        importlib.import_module(module)
    return sorted(_registry)


def make_game(name: str) -> Game:
    """The game of this name.

    Args:
        name: a registered name (``doom/basic``), or ``package.module:function`` where the function returns a
            Game.

    Raises:
        UnknownGameError: no such game; the message lists those that are known.
    """
    if ":" in name:
        return _import_game(name)
    if name not in _registry and (family := name.split("/")[0]) in _BUILT_IN:
        importlib.import_module(_BUILT_IN[family])
    if name not in _registry:
        names = game_names()
        close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        raise UnknownGameError(
            f"there is no game {name!r}"
            + (f"; did you mean {' or '.join(close)}?" if close else ".")
            + f" Known games: {', '.join(names)}. Your own game goes by package.module:function"
        )
    factory = _registry[name]
    game = _call(name, factory, getattr(factory, "__name__", "its factory"))
    return _made_by(game, factory) if _picklable(factory) else game  # other processes need not know the name


def as_game(game: Game | str) -> Game:
    """A Game as it is, or the game of a name."""
    return make_game(game) if isinstance(game, str) else game


def _import_game(name: str) -> Game:
    module_name, _, function = name.partition(":")
    if not module_name or module_name.startswith(".") or not function:
        raise UnknownGameError(f"game {name!r} has to be named package.module:function")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None:
            raise
        own = f"{module_name}.".startswith(f"{error.name}.")
        raise UnknownGameError(
            f"game {name!r}: Python finds no module {error.name!r}"
            + ("" if own else f", which {module_name!r} imports")
            + "; install it, or put its folder on PYTHONPATH"
        ) from error
    if not hasattr(module, function):
        close = difflib.get_close_matches(function, vars(module), n=1)
        raise UnknownGameError(
            f"game {name!r}: module {module_name!r} has no {function!r}"
            + (f"; did you mean {close[0]!r}?" if close else "")
        )
    return _made_by(_call(name, getattr(module, function), function), make_game, name)


def _call(name: str, factory: Any, called: str) -> Game:
    if isinstance(factory, Game):
        raise UserError(f"game {name!r}: {called!r} is a Game, but has to be a function that returns one")
    if not callable(factory):
        raise UserError(f"game {name!r}: {called!r} has to be a function, got {type(factory).__name__}")
    if needed := _arguments_needed(factory):
        raise UserError(f"game {name!r}: {called}() is called without arguments, but needs {', '.join(needed)}")
    game = factory()
    if not isinstance(game, Game):
        raise UserError(f"game {name!r}: {called}() has to return a bczoo.games.Game, got {type(game).__name__}")
    return game


def _arguments_needed(factory: Callable[..., Any]) -> list[str]:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # some callables have no signature
        return []
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in optional]


def _made_by(game: Game, factory: Callable[..., Game], *arguments: Any) -> Game:
    object.__setattr__(game, "_made_by", (factory, arguments))
    return game


def _picklable(value: Any) -> bool:
    try:
        pickle.dumps(value)
    except Exception:
        return False
    return True


def _is_frame(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3 and value.shape[2] == 3


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array {value.dtype} {value.shape}"
    if isinstance(value, Mapping):
        return f"a dictionary with {sorted(value)}"
    return "nothing" if value is None else type(value).__name__
