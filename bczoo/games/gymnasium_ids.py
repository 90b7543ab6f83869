"""Any environment of Gymnasium as a game, by its id: ``CarRacing-v3``, ``ALE/Breakout-v5``, ``my_module:Mine-v0``.

Place in the pipeline: :func:`bczoo.games.game.make_game` comes here with names that it does not know itself;
:mod:`bczoo.games.default_keys` says what the keys do.

The frame is what ``render()`` shows. Atari is stepped at its console's 60 frames a second, with no frames skipped by
the environment itself: :mod:`bczoo.games.pace` holds an action for as many of them as a decision lasts.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any

import gymnasium

from bczoo.core.actions import ActionSpace
from bczoo.core.errors import UserError
from bczoo.core.tables import markdown_table
from bczoo.games.default_keys import default_bindings, random_actions
from bczoo.games.game import GYMNASIUM_ID, Game, UnknownGameError
from bczoo.games.pace import own_rate


def _quiet_atari(module: ModuleType) -> None:
    module.ALEInterface.setLoggerMode(module.LoggerMode.Error)  # it greets on standard error, in every process


@dataclass(frozen=True)
class Family:
    """Environments of one package.

    Args:
        beginnings: of their ids.
        package: what ``pip install`` calls it.
        module: registers them when it is imported.
        options: of ``gymnasium.make``.
        env_fps: steps a second without ``frameskip``; None for what the environment says.
        imported: called with the module.
    """

    beginnings: tuple[str, ...]
    package: str
    module: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    env_fps: float | None = None
    imported: Callable[[ModuleType], None] = lambda module: None


FAMILIES = (
    Family(("ALE/",), "ale-py", "ale_py", {"frameskip": 1}, 60.0, _quiet_atari),
    Family(("MiniGrid-", "BabyAI-"), "minigrid", "minigrid"),
    Family(("CarRacing-", "LunarLander", "BipedalWalker"), "gymnasium[box2d]"),
)
OTHER = Family((), "gymnasium[classic-control]")


def is_registered(name: str) -> bool:
    """Whether an environment of this id is installed; imports nothing but the packages of :data:`FAMILIES`."""
    if ":" in name or not GYMNASIUM_ID.fullmatch(name):
        return False
    try:
        _import(_family(name), name)
        gymnasium.spec(name)
    except (UserError, gymnasium.error.Error):
        return False
    return True


def gymnasium_game(env_id: str, **options: Any) -> Game:
    """The game of a Gymnasium id, with default bindings and no expert.

    Change what else a Game has with ``dataclasses.replace(gymnasium_game("CarRacing-v3"), fps=50)``.

    Args:
        env_id: ``CarRacing-v3``, or ``module:Env-v0`` where the module registers it when it is imported.
        **options: of ``gymnasium.make``, such as ``continuous=False``.

    Raises:
        UnknownGameError: there is no such environment, or its package is not installed.
        UserError: it cannot be shown as pictures, or its action space has no default keys.
    """
    make = functools.partial(make_env, env_id, **options)
    env = make()
    try:
        bindings, space = default_bindings(env), ActionSpace.keyboard_mouse()
        game = Game(
            name=env_id.rpartition(":")[2],
            env=make,
            bindings=bindings,
            random=random_actions(bindings, space),
            action_space=space,
        )
        rate = own_rate(env)
    finally:
        env.close()
    own = f"the environment says {rate:g} steps a second" if rate else "the environment says no rate"
    table = markdown_table([("press", "does"), *bindings.rows()], left=2)
    about = f"{own}. Default keys (docs/games.md shows how to bind your own):\n{table}"
    return dataclasses.replace(game, about=about)


def make_env(env_id: str, **options: Any) -> gymnasium.Env:
    """Make an environment that renders pictures.

    Args:
        env_id: see :func:`gymnasium_game`.
        **options: of ``gymnasium.make``.
    """
    module, _, plain = env_id.rpartition(":")
    family = _family(plain)
    if module:
        _import(Family((), module, module), env_id)
    _import(family, plain)
    try:
        spec = gymnasium.spec(plain)
    except gymnasium.error.Error as error:
        raise UnknownGameError(
            f"there is no game {env_id!r}: Gymnasium says: {error} An environment of a package that registers it when "
            f"it is imported goes by module:{plain}, your own game by package.module:function"
        ) from error
    arguments = {"render_mode": "rgb_array", "disable_env_checker": True, **family.options, **options}
    try:
        env = gymnasium.make(spec, **arguments)
    except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
        install = "" if "pip install" in str(error) else f". pip install '{family.package}'"
        raise UserError(f"game {env_id!r} needs a package that is not installed: {error}{install}") from error
    except (gymnasium.error.Error, TypeError) as error:
        raise UserError(f"game {env_id!r} cannot be made: {error}") from error
    modes = env.metadata.get("render_modes") or ["rgb_array"]
    if env.render_mode != "rgb_array" or "rgb_array" not in modes:
        env.close()
        raise UserError(f'game {env_id!r} has no render_mode="rgb_array", so it shows no pictures to learn from')
    if family.env_fps is not None and isinstance(skip := arguments["frameskip"], int):
        env.metadata = {**env.metadata, "render_fps": family.env_fps / skip}
    return env


def _family(env_id: str) -> Family:
    return next((family for family in FAMILIES if env_id.startswith(family.beginnings)), OTHER)


def _import(family: Family, env_id: str) -> None:
    """Import the module that registers an environment."""
    if family.module is None:
        return
    try:
        module = import_module(family.module)
    except ModuleNotFoundError as error:
        if error.name is None:
            raise
        install = f"pip install '{family.package}'" if family in FAMILIES else "install it, or put it on PYTHONPATH"
        raise UnknownGameError(f"game {env_id!r}: Python finds no module {error.name!r}; {install}") from error
    family.imported(module)
    gymnasium.register_envs(module)
