"""Scripted experts for the Doom scenarios: they see the engine's objects, and press what a person would.

Place in the pipeline: :class:`bczoo.games.doom.DoomEnv` with ``see_objects`` puts :class:`SeenObject` into
``info``; an expert answers with values of keyboard and mouse, which :mod:`bczoo.record` stores beside
the bare frame.

Bearings are in degrees, positive to the right. Mouse motion is rounded to the centres of the reference mouse
bins, so that a policy trained on the recordings can execute exactly what the expert executed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from bczoo.core.actions import ActionSpace, Values

PX_PER_DEGREE = 4
MAX_TURN_DEGREES = 15.0
_SPACE = ActionSpace.keyboard_mouse()


@dataclass(frozen=True)
class SeenObject:
    """One visible object.

    Args:
        name: the engine's name; every scenario has its own, and dead bodies are others (``DeadZombieman``).
        bearing: direction of the middle of its box, degrees to the right of the view.
        half_width: half the width of its box in degrees.
        distance: map units.
    """

    name: str
    bearing: float
    half_width: float
    distance: float


def nearest(info: dict[str, Any], names: Collection[str]) -> SeenObject | None:
    """The nearest visible object that goes by one of ``names``."""
    seen = [thing for thing in info["objects"] if thing.name in names]
    return min(seen, key=lambda thing: thing.distance, default=None)


def press(turn: float = 0.0, walk: str = "", fire: bool = False) -> Values:
    """Values for a turn in degrees (to the right), keys to hold, and the trigger."""
    dx = round(float(np.clip(turn, -MAX_TURN_DEGREES, MAX_TURN_DEGREES)) * PX_PER_DEGREE)
    centre = _SPACE.decode(_SPACE.encode(mouse_dx=dx), "mean")["mouse_dx"]
    return {"keys": sorted(walk), "mouse_buttons": ["0"] if fire else [], "mouse_dx": centre, "mouse_dy": 0}


class Shooter:
    """Turns to the nearest target and taps the trigger when it is in the sights; turns on when there is none.

    Args:
        targets: names of what to shoot.
        aim: fire when the target is off by less than this many degrees, or less than half of its half-width.
        cooldown: steps between two shots.
    """

    def __init__(self, targets: Collection[str], aim: float = 1.0, cooldown: int = 9) -> None:
        self.targets = targets
        self.aim = aim
        self.cooldown = cooldown
        self._wait = 0

    def reset(self, seed: int) -> None:
        self._wait = 0

    def act(self, frame: np.ndarray, info: dict[str, Any]) -> Values:
        return self.engage(info) or press(turn=MAX_TURN_DEGREES)

    def engage(self, info: dict[str, Any]) -> Values | None:
        """Aim and shoot; None where no target is visible."""
        self._wait = max(0, self._wait - 1)
        target = nearest(info, self.targets)
        if target is None:
            return None
        fire = self._wait == 0 and abs(target.bearing) < max(self.aim, target.half_width / 2)
        if fire:
            self._wait = self.cooldown
        return press(turn=target.bearing, fire=fire)


class StrafingShooter(Shooter):
    """A shooter that walks sideways to and fro across its starting point, which fireballs then miss.

    Args:
        targets: names of what to shoot.
        aim: as of :class:`Shooter`.
        cooldown: as of :class:`Shooter`.
        reach: map units to each side of the start, after which it turns around.
    """

    def __init__(self, targets: Collection[str], aim: float = 1.0, cooldown: int = 6, reach: float = 100.0) -> None:
        super().__init__(targets, aim, cooldown)
        self.reach = reach
        self._start: tuple[float, float, float] | None = None
        self._side = "a"

    def reset(self, seed: int) -> None:
        super().reset(seed)
        self._start = None
        self._side = "a"

    def act(self, frame: np.ndarray, info: dict[str, Any]) -> Values:
        if self._start is None:
            self._start = info["x"], info["y"], info["angle"]
        x, y, angle = self._start
        heading = math.radians(angle)
        left = (info["y"] - y) * math.cos(heading) - (info["x"] - x) * math.sin(heading)  # map units
        if abs(left) > self.reach:
            self._side = "d" if left > 0 else "a"
        values = self.engage(info) or press(turn=(info["angle"] - angle + 180) % 360 - 180)
        return {**values, "keys": [self._side]}


class Gatherer:
    """Walks to the nearest item; turns on when there is none."""

    def __init__(self, items: Collection[str]) -> None:
        self.items = items

    def reset(self, seed: int) -> None:
        """Nothing to forget."""

    def act(self, frame: np.ndarray, info: dict[str, Any]) -> Values:
        item = nearest(info, self.items)
        if item is None:
            return press(turn=MAX_TURN_DEGREES)
        return press(turn=item.bearing, walk="w" if abs(item.bearing) < 30 else "")


class CorridorRunner:
    """Shoots its way through the corridor, and runs for the armour at its end whenever nobody is in sight."""

    def __init__(self) -> None:
        self._shooter = Shooter({"Zombieman", "ShotgunGuy", "ChaingunGuy"}, aim=2.0, cooldown=4)

    def reset(self, seed: int) -> None:
        self._shooter.reset(seed)

    def act(self, frame: np.ndarray, info: dict[str, Any]) -> Values:
        fight = self._shooter.engage(info)
        if fight is not None:
            return fight
        armour = nearest(info, {"GreenArmor"})
        if armour is None:  # the corridor runs along angle 0, counter-clockwise
            return press(turn=(info["angle"] + 180) % 360 - 180)
        return press(turn=armour.bearing, walk="w" if abs(armour.bearing) < 30 else "")


EXPERTS: dict[str, Callable[[], Any]] = {
    "basic": functools.partial(Shooter, {"Cacodemon"}, aim=2.0, cooldown=4),
    "deadly_corridor": CorridorRunner,
    "defend_the_center": functools.partial(Shooter, {"Demon", "MarineChainsawVzd"}),
    "defend_the_line": functools.partial(StrafingShooter, {"Demon", "DoomImp"}),
    "health_gathering": functools.partial(Gatherer, {"Medikit"}),
    "health_gathering_supreme": functools.partial(Gatherer, {"CustomMedikit"}),
}
