"""A game in forty lines, as a user would plug it in: catch falling dots with a paddle."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from bczoo.core.actions import Values
from bczoo.games import DiscreteBindings, Game

SIZE = 12


class Catch(gymnasium.Env):
    """A dot falls on a board of 12 x 12; the paddle in the last row moves by one column a step."""

    def __init__(self, shown_as: str = "array") -> None:
        self.shown_as = shown_as
        self.render_mode = "rgb_array" if shown_as == "render" else None
        self.observation_space = gymnasium.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.paddle, self.caught, self.dropped = SIZE // 2, 0, 0
        self._drop()
        return self._observe(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.paddle = int(np.clip(self.paddle + (-1, 1, 0)[action], 0, SIZE - 1))
        self.row += 1
        reward = 0.0
        if self.row == SIZE - 1:
            reward = float(self.column == self.paddle)
            self._drop()
        return self._observe(), reward, self.dropped > 5, False, {}

    def render(self) -> np.ndarray:
        frame = np.zeros((SIZE, SIZE, 3), np.uint8)
        frame[self.row, self.column] = (255, 0, 0)
        frame[SIZE - 1, self.paddle] = (0, 255, 0)
        return frame

    def _drop(self) -> None:
        self.row, self.column = 0, int(self.np_random.integers(SIZE))
        self.dropped += 1

    def _observe(self) -> Any:
        if self.shown_as == "dict":
            return {"frame": self.render(), "score": np.zeros(1)}
        return self.render() if self.shown_as == "array" else np.array([self.row, self.column], np.float32)


class CatchExpert:
    """Follows the dot; sees no more than the frame."""

    def reset(self, seed: int) -> None:
        pass

    def act(self, frame: np.ndarray, info: dict[str, Any]) -> Values:
        dot, paddle = frame[..., 0].max(axis=0).argmax(), frame[-1, :, 1].argmax()
        return {"keys": ["a"] if dot < paddle else ["d"] if dot > paddle else [], "mouse_buttons": []}


class CatchIn:
    """Makes the environment; a class with a name, so that other processes can make it too."""

    def __init__(self, shown_as: str) -> None:
        self.shown_as = shown_as

    def __call__(self) -> Catch:
        return Catch(self.shown_as)


def catch(shown_as: str = "array") -> Game:
    return Game("catch", CatchIn(shown_as), DiscreteBindings({"a": 0, "d": 1}, none=2), CatchExpert, time_limit_s=10.0)


def short() -> Game:
    """Ends after ten steps."""
    return Game("short", Catch, DiscreteBindings({"a": 0, "d": 1}, none=2), time_limit_s=0.5)


def with_lambdas() -> Game:
    """As users like to write it; other processes can make it by its name alone."""
    bindings = DiscreteBindings({"a": 0, "d": 1}, none=2)
    return Game("lambdas", lambda: Catch(), bindings, lambda: CatchExpert(), time_limit_s=10.0)
