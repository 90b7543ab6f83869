"""A world model as a game: ``--env dream:WORLD`` wherever a game is asked for.

Place in the pipeline: :func:`bczoo.games.game.make_game` comes here for names that begin with ``dream:``; what follows
is an exported folder, a run or a name on the Hub. An episode begins from one of the world's own starts, real steps that
it keeps in its weights, chosen by the seed; every action then leads to the next picture that the world dreams. There
are no rewards and no end but the time limit. What is pressed is the world's action space, so it is played by the
policies, people and servers that play any other game.

Shape legend: A action tokens, H, W height and width in pixels.
"""

from __future__ import annotations

import os
from functools import lru_cache, partial
from importlib import import_module
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from bczoo.core.actions import ActionSpace, Values
from bczoo.core.configs import IMPORT
from bczoo.core.devices import play_threads
from bczoo.core.errors import UserError
from bczoo.games.bindings import Bindings, inputs_in
from bczoo.games.game import DREAM, Game
from bczoo.hub.source import Source, locate
from bczoo.models.token.dream import Dream
from bczoo.models.token.world import WorldModel
from bczoo.worlds.command import flat_ids, values_of


class DreamEnv(gymnasium.Env):
    """One dream of a world; the observation is the picture (H, W, 3) uint8, an action the ids (A,)."""

    def __init__(self, source: str) -> None:
        self.world = load_world(source)
        self.world.start(0)  # says at once that there is none
        play_threads(self.world)
        space = self.world.action_space
        self.observation_space = spaces.Box(0, 255, (*self.world.input_spec.shape, 3), np.uint8)
        self.action_space = spaces.MultiDiscrete([g.choices for g in space.token_groups])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.dream = Dream(self.world, seed=int(self.np_random.integers(2**32)))
        tokens = self.world.start(int(self.np_random.integers(2**32)))
        pictures, actions = self.world.layout.apart(tokens[None])
        self.dream.see(pictures, actions[:, :-1])
        return self.dream.pixels(pictures[:, -1])[0], {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        pictures = self.dream.step(torch.as_tensor(np.asarray(action, np.int64))[None]).ids
        return self.dream.pixels(pictures)[0], 0.0, False, False, {}


class SpaceBindings(Bindings):
    """Values to the ids of an action space; everything in it is listened to.

    Args:
        space: the action space.
    """

    def __init__(self, space: ActionSpace) -> None:
        self.space = space
        self.inputs = frozenset(inputs_in(space))

    def __call__(self, values: Values) -> np.ndarray:
        return flat_ids(self.space, values).numpy()


def dream_game(name: str) -> Game:
    """The game of a world model.

    Args:
        name: ``dream:`` and an exported folder, a run, a .ckpt file, or ``org/name`` on the Hub.

    Raises:
        UserError: there is no such world model.
    """
    source = name.removeprefix(DREAM)
    world = _located(source).blueprint()
    if not isinstance(world, WorldModel):
        raise UserError(f"game {name!r}: {source} holds a {world.kind}, and only a world model can be dreamt in")
    spec = world.input_spec
    return Game(
        name,
        env=partial(DreamEnv, source),
        bindings=SpaceBindings(spec.actions),
        random=partial(_recorded_action, source),
        action_space=spec.actions,
        fps=spec.fps,
        frame_skip=1,
        about="a world model dreams it; it ends with the time limit, and there is nothing to win",
    )


@lru_cache(maxsize=1)  # episodes of a process share it
def load_world(source: str) -> WorldModel:
    """A world model to play in."""
    return _located(source).load(WorldModel)


def _located(source: str) -> Source:
    """Where a world model lies, with what ``--import`` named imported: a game's own process has not seen that."""
    for module in filter(None, os.environ.get(IMPORT, "").split(",")):
        import_module(module)
    return locate(source)


def _recorded_action(source: str, rng: np.random.Generator) -> Values:
    """What was done in some step of the world's starts: keys that mean something there."""
    world = load_world(source)
    tokens = world.start(int(rng.integers(2**32)))
    _, ids = world.layout.apart(tokens[int(rng.integers(len(tokens)))])
    return values_of(world.action_space, ids)
