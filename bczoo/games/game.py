"""A game that players can play: the one interface through which new games come in.

Place in the pipeline: :func:`make_game` finds a :class:`Game` by name; :meth:`Game.open` starts it;
:mod:`bczoo.play.episodes` asks a player (policy, expert, random) for values and steps it;
:mod:`bczoo.record` writes what was played as recordings.

A new game is a function that returns a :class:`Game`. It needs no change here: name it
``package.module:function`` wherever a game is asked for, or give it a short name with :func:`register_game`.

    def my_game() -> Game:
        return Game("my_game", env=MyEnv, bindings=DiscreteBindings({"a": 0, "d": 1}, none=2))

Environments of Gymnasium go by their id (:mod:`bczoo.games.gymnasium_ids`).
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import gymnasium
import numpy as np

from bczoo.core import arguments
from bczoo.core.actions import ActionSpace, BinnedGroup, HeldGroup, Values
from bczoo.core.errors import UserError
from bczoo.games.bindings import WAIT, Bindings, input_name, inputs_in
from bczoo.games.checked import CheckedExpert, ValuesCheck
from bczoo.games.pace import pace_of

SLOWEST_FPS = 1e-3
SMALLEST_PX = 32  # height and width of a frame that shows anything
FRAME_KEYS = ("frame", "rgb", "image", "screen")
RANDOM_RANGES = {"mouse_dx": (-60.0, 60.0)}  # px; other numbers use their whole range
GYMNASIUM_ID = re.compile(r"(?:(?P<module>[^\W\d][\w.]*):)?(?P<id>(?:[\w.-]+/)?[\w.-]+-v\d+)")
MAKE_IT_THERE = "name the game package.module:function, so that each process makes it itself"
DREAM = "dream:"  # before a world model that is played in
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

    The frame (uint8, height x width x 3, RGB) is what ``env.render()`` returns where the environment was made with
    ``render_mode="rgb_array"``; otherwise it is the observation, or lies in an observation that is a dictionary under
    one of ``frame``, ``rgb``, ``image``, ``screen``.

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
        fps: decisions per second of game time: the rate of recordings and policies, and of ``RunningGame.step``.
        time_limit_s: an episode ends after this many seconds of game time, if it has not before.
        env_fps: steps per second of the environment, at least ``fps``. An action is held for ``env_fps / fps`` of
            them (2, 3, 2, 3, ... for 50 and 20) and their rewards are added. If left out, the environment's
            ``metadata["render_fps"]``; one without it, or with 10 at most (it waits for turns), gets one step a
            decision.
        frame_skip: steps of the environment per decision, in place of ``env_fps``.
        about: is printed once before the game is played, such as what its keys do.
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
    env_fps: float | None = None
    frame_skip: int | None = None
    about: str = ""
    _made_by: tuple[Callable[..., Game], tuple[Any, ...]] | None = dataclasses.field(
        default=None, init=False, repr=False, compare=False
    )  # how another process makes the same game

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._made_by if self._made_by is not None else super().__reduce_ex__(protocol)

    def __post_init__(self) -> None:
        self._check_rates()
        if self.expert is not None and not callable(self.expert):
            raise UserError(
                f"game {self.name!r}: expert makes a player and has to be its class or a function, "
                f"got {arguments.shown(self.expert)}"
            )
        known = inputs_in(self.action_space)
        for name in sorted(self.inputs - known):
            close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            raise UserError(
                f"game {self.name!r} binds {name!r}, which action space {self.action_space.name!r} lacks; "
                + (f"did you mean {' or '.join(close)}? " if close else "")
                + f"It has {sorted(known)}; add keys with ActionSpace.keyboard_mouse(extra_keys=...)"
            )

    def _check_rates(self) -> None:
        of = f"of game {self.name!r}"
        arguments.number(f"fps {of}", self.fps, SLOWEST_FPS)
        if self.frame_skip is not None:
            arguments.whole(f"frame_skip {of}", self.frame_skip, 1)
        if self.env_fps is None:
            return
        arguments.number(f"env_fps {of}", self.env_fps, SLOWEST_FPS)
        if self.frame_skip is not None:
            raise UserError(
                f"game {self.name!r} has env_fps and frame_skip, which say the same thing; give one of them"
            )
        if self.env_fps < self.fps:
            raise UserError(
                f"game {self.name!r} has fps={self.fps:g}, and its environment only env_fps={self.env_fps:g} steps a "
                f"second: nobody can decide more often than it steps. Give it fps={self.env_fps:g}, or frame_skip=1 "
                "where it waits for turns"
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
        """The expert; what it answers is checked, see :mod:`bczoo.games.checked`."""
        if self.expert is None:
            raise UserError(
                f"game {self.name!r} has no expert; give its Game expert=... (docs/games.md), or record it with "
                "--agent random or --agent keyboard"
            )
        return CheckedExpert(self, self.expert())

    def random_values(self, rng: np.random.Generator) -> Values:
        """One step of the random player."""
        if self.random is not None:
            return ValuesCheck(self, "its random")(self.random(rng))
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
    """A started game: frames in, values out. One episode after another with :meth:`reset`.

    Args:
        game: its interface.
        env: its environment.
    """

    def __init__(self, game: Game, env: gymnasium.Env) -> None:
        self.game = game
        self.env = env
        self.pace = pace_of(game, env)
        if self.pace.doubt:
            warnings.warn(self.pace.doubt, stacklevel=3)
        self._steps = 0
        self._limit = max(1, round(game.time_limit_s * game.fps))
        self._last: tuple[Any, dict[str, Any]] | None = None  # observation and info

    def reset(self, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin the episode of this seed; returns its first frame and info."""
        observation, info = self._last = self.env.reset(seed=seed)
        self._steps = 0
        return self._frame(observation), info

    def step(self, values: Values) -> tuple[np.ndarray, float, bool, dict[str, Any]]:
        """Press ``values`` until the next decision; returns frame, reward, whether the episode is over, and info.

        That is one step of the environment, or as many as the game's pace says; their rewards are added.
        """
        action, total, over = self.game.bindings(values), 0.0, False
        for _ in range(0 if action is WAIT else self.pace.steps(self._steps)):
            observation, reward, terminated, truncated, info = self.env.step(action)
            self._last = observation, info
            total += float(reward)
            over = bool(terminated or truncated)
            if over:
                break
        if self._last is None:
            raise RuntimeError(f"game {self.game.name!r} was stepped before its first reset")
        self._steps += 1
        return self._frame(self._last[0]), total, over or self._steps >= self._limit, self._last[1]

    def close(self) -> None:
        self.env.close()

    def __enter__(self) -> RunningGame:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _frame(self, observation: Any) -> np.ndarray:
        rendered = self._render()
        if _is_frame(rendered):
            return rendered
        frame = _frame_in(observation)
        if frame is not None and (min(frame.shape[:2]) >= SMALLEST_PX or not self._could_render()):
            return frame
        wrong = "shows no frame" if frame is None else f"has frames of {frame.shape[0]} x {frame.shape[1]} px"
        advice = 'make the environment with render_mode="rgb_array"'
        if not self._could_render():
            keys = ", ".join(FRAME_KEYS)
            advice = f"Observe a uint8 array (height, width, 3) or a dictionary with one under {keys}, or {advice}"
        raise UserError(
            f"game {self.game.name!r} {wrong}: its observation is {_describe(observation)}, render() gave "
            f"{_describe(rendered)}. {advice[0].upper()}{advice[1:]}"
        )

    def _render(self) -> Any:
        if getattr(self.env, "render_mode", None) != "rgb_array":
            return None
        try:
            return self.env.render()
        except gymnasium.error.DependencyNotInstalled as error:
            raise UserError(f"game {self.game.name!r} cannot be shown: {error}") from error

    def _could_render(self) -> bool:
        """Whether the environment could show pictures, had it been made to."""
        metadata = getattr(self.env, "metadata", None)
        modes = metadata.get("render_modes") if isinstance(metadata, Mapping) else None
        return "rgb_array" in (modes or ()) and getattr(self.env, "render_mode", None) != "rgb_array"


if TYPE_CHECKING:
    GameOrName = Game | str
else:
    GameOrName = str  # to the parser of the command line

_registry: dict[str, Callable[[], Game]] = {}
_announced: set[str] = set()


def register_game(name: str, factory: Callable[[], Game]) -> None:
    """Make ``factory`` known as ``name`` to :func:`make_game` in this process."""
    _registry[name] = factory


def game_names() -> list[str]:
    """All names that :func:`make_game` knows."""
    for module in _BUILT_IN.values():
        importlib.import_module(module)
    return sorted(_registry)


def is_known(name: str) -> bool:
    """Whether :func:`make_game` finds a game without importing what the name says; so a stranger may have given it."""
    if name in game_names():
        return True
    from bczoo.games.gymnasium_ids import is_registered

    return is_registered(name)


def make_game(name: str) -> Game:
    """The game of this name.

    Args:
        name: a registered name (``doom/basic``), an id of Gymnasium (``CarRacing-v3``, ``my_module:Mine-v0``),
            ``dream:`` and a world model (:mod:`bczoo.worlds.game`), or ``package.module:function`` where the function
            returns a Game.

    Raises:
        UnknownGameError: no such game; the message lists those that are known.
    """
    if name not in _registry and GYMNASIUM_ID.fullmatch(name):
        from bczoo.games.gymnasium_ids import gymnasium_game

        return _made_by(gymnasium_game(name), make_game, name)
    if name.startswith(DREAM):
        from bczoo.worlds.game import dream_game  # brings in torch

        return _made_by(dream_game(name), make_game, name)
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
            + f" Known games: {', '.join(names)}. An environment of Gymnasium goes by its id (CarRacing-v3), your own "
            "game by package.module:function"
        )
    factory = _registry[name]
    game = _call(name, factory, getattr(factory, "__name__", "its factory"))
    return _made_by(game, factory) if _picklable(factory) else game  # other processes need not know the name


def as_game(game: Game | str) -> Game:
    """A Game as it is, or the game of a name."""
    return make_game(game) if isinstance(game, str) else game


def announce(game: Game) -> None:
    """Print the rate and what the game says about itself (``about``), once in this process."""
    text = f"{game.name}, {game.fps:g} decisions a second: {game.about}"
    if game.about and text not in _announced:
        _announced.add(text)
        print(text, flush=True)


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
    except SyntaxError as error:
        raise UnknownGameError(
            f"game {name!r}: {error.filename}, line {error.lineno}, is no Python: {error.msg}"
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


def _frame_in(observation: Any) -> np.ndarray | None:
    if isinstance(observation, Mapping):
        return next((observation[key] for key in FRAME_KEYS if _is_frame(observation.get(key))), None)
    return observation if _is_frame(observation) else None


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array {value.dtype} {value.shape}"
    if isinstance(value, Mapping):
        return f"a dictionary with {sorted(value)}"
    return "nothing" if value is None else type(value).__name__
