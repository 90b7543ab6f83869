"""Doom by ViZDoom: a real first-person game that runs anywhere, without a screen.

Place in the pipeline: registers ``doom/<scenario>`` with :mod:`bczoo.games.game`. :class:`DoomEnv` is a plain
``gymnasium.Env`` over the engine; :func:`doom_game` binds keyboard and mouse to it and adds the expert.

Controls: W/A/S/D walk, the left mouse button fires, mouse dx turns (to the right if positive), mouse dy looks
(down if positive). One degree is 4 px: a turn of 15 degrees is 60 px, and the mouse bins near zero are 0.25
degrees wide.

Time: Doom runs at 35 tics a second. Steps last 2, 2, 2, 1 tics in turn, which is 20 steps a second on
average; turns are rescaled, so that a step turns by the same angle whether it lasts one tic or two.

Needs ``pip install 'bczoo[doom]'``.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import math
import os
import shlex
import sys
import tempfile
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from bczoo.core import files
from bczoo.core.errors import UserError
from bczoo.core.files import PartialPath
from bczoo.core.workers import PR_SET_PDEATHSIG
from bczoo.games.bindings import VectorBindings
from bczoo.games.doom_experts import EXPERTS, PX_PER_DEGREE, SeenObject
from bczoo.games.game import Game, register_game

TICS_PER_STEP = (2, 2, 2, 1)
FPS = 35 * len(TICS_PER_STEP) / sum(TICS_PER_STEP)
WIDTH, HEIGHT = 320, 240
BUTTONS = (
    "MOVE_FORWARD",
    "MOVE_LEFT",
    "MOVE_BACKWARD",
    "MOVE_RIGHT",
    "ATTACK",
    "TURN_LEFT_RIGHT_DELTA",
    "LOOK_UP_DOWN_DELTA",
)
TURN, LOOK = 5, 6
BINDINGS = VectorBindings(
    {
        "w": 0,
        "a": 1,
        "s": 2,
        "d": 3,
        "mouse_left": 4,
        "mouse_dx": (TURN, 1 / PX_PER_DEGREE),
        "mouse_dy": (LOOK, -1 / PX_PER_DEGREE),  # the engine's delta is positive upwards, a mouse's downwards
    },
    size=len(BUTTONS),
    low=[0] * 5 + [-180] * 2,
    high=[1] * 5 + [180] * 2,
)
SCENARIOS = (
    "basic",
    "deadly_corridor",
    "defend_the_center",
    "defend_the_line",
    "health_gathering",
    "health_gathering_supreme",
    "my_way_home",
    "predict_position",
    "take_cover",
)
EPISODE_TICS = 2100  # a minute; for the scenarios that set no limit

# The engine by way of a script that lets Linux kill it as soon as the process that plays has died, however it did.
LAUNCHER = """#!/bin/sh
exec {python} -IS -c '
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl({pdeathsig}, signal.SIGKILL)
if os.getppid() == {owner}:  # which may have died before
    os.execv(sys.argv[1], sys.argv[1:])
' {engine} "$@"
"""

_open: dict[Path, tuple[PartialPath, Any]] = {}  # folder and its engine; there until both have been removed
_starting = threading.Lock()


class DoomEnv(gymnasium.Env):
    """One scenario of ViZDoom.

    Observation: the screen, uint8 (240, 320, 3) RGB. Action: one float per button of ``BUTTONS``, the last
    two in degrees per step. The same seed gives the same episode for the same actions, whatever was played
    before.

    Args:
        scenario: a configuration that comes with ViZDoom, such as ``basic``.
        see_objects: put into ``info`` what an expert sees: ``objects`` (list of SeenObject), ``x`` and ``y``,
            ``angle`` (degrees, counter-clockwise), ``health``; let :meth:`command` do what the scenario's
            skill forbids. Halves the speed.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": FPS}  # noqa: RUF012  (gymnasium's own attribute)

    def __init__(self, scenario: str, see_objects: bool = False) -> None:
        self.render_mode = "rgb_array"
        self.scenario = scenario
        self.see_objects = see_objects
        self.observation_space = gymnasium.spaces.Box(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        self.action_space = gymnasium.spaces.Box(
            np.array(BINDINGS.low, np.float32), np.array(BINDINGS.high, np.float32)
        )
        self._frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        self._step = 0
        self._engine = _make_engine(scenario, see_objects)
        files.sweep(tempfile.gettempdir())
        partial = PartialPath(Path(tempfile.gettempdir()) / "bczoo_doom")  # never committed
        self._folder = partial.path
        weakref.finalize(self, _close, self._folder).atexit = False
        self._start(partial)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        episode = int(self.np_random.integers(2**31)) if seed is None else seed
        self._engine.set_seed(episode % 2**32)
        self._engine.new_episode()
        self._step = 0
        return self._look()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        buttons, tics = self._next_tics(action)
        reward = self._engine.make_action(buttons, tics)
        over = self._engine.is_episode_finished()
        timeout = over and self._engine.is_episode_timeout_reached()
        frame, info = self._look()
        return frame, float(reward), over and not timeout, timeout, info

    def replay(self, seed: int, actions: Sequence[np.ndarray]) -> None:
        """Play an episode again up to the end of ``actions``, some 30 times as fast as by steps: nothing is drawn.

        What a step shows after it is what it showed when all of them were drawn.
        """
        self.reset(seed=seed)
        for action in actions:
            buttons, tics = self._next_tics(action)
            self._engine.set_action(buttons)
            self._engine.advance_action(tics, False)

    def command(self, text: str) -> None:
        """Give a command to the engine's console, such as ``summon Medikit``; the next step begins with it."""
        self._engine.send_game_command(text)

    def render(self) -> np.ndarray:
        return self._frame

    def close(self) -> None:
        """Stop the engine and remove its files; safe to call twice."""
        _close(self._folder)

    def _next_tics(self, action: np.ndarray) -> tuple[list[float], int]:
        """The engine's buttons for the next step, and how many tics it lasts."""
        tics = TICS_PER_STEP[self._step % len(TICS_PER_STEP)]
        self._step += 1
        buttons = np.asarray(action, np.float64).copy()
        buttons[[TURN, LOOK]] /= tics  # the engine takes degrees per tic
        return buttons.tolist(), tics

    def _start(self, partial: PartialPath) -> None:
        # The engine writes _vizdoom/ and _vizdoom.ini into its working directory, which it takes over from
        # this process at the start.
        _open[self._folder] = partial, self._engine  # before the folder: a signal may end the process at any moment
        try:
            self._folder.mkdir(0o700)
            _end_with_this_process(self._engine, self._folder / "launch")
            with _starting:
                here = os.getcwd()
                try:
                    os.chdir(self._folder)
                    self._engine.init()
                finally:
                    os.chdir(here)
            _unlink_memory(self._engine)
        except BaseException:
            self.close()
            raise

    def _look(self) -> tuple[np.ndarray, dict[str, Any]]:
        state = self._engine.get_state()
        if state is None:  # after the last step there is nothing new to see
            return self._frame, {}
        self._frame = state.screen_buffer.copy()
        if not self.see_objects:
            return self._frame, {}
        x, y, angle, health = (float(v) for v in state.game_variables)
        objects = [  # at a view of 90 degrees the middle of the edge is at 45
            SeenObject(
                name=label.object_name,
                bearing=math.degrees(math.atan((label.x + label.width / 2) / (WIDTH / 2) - 1)),
                half_width=math.degrees(math.atan(label.width / WIDTH)),
                distance=math.hypot(label.object_position_x - x, label.object_position_y - y),
            )
            for label in state.labels
        ]
        return self._frame, {"objects": objects, "x": x, "y": y, "angle": angle, "health": health}


def _close(folder: Path) -> None:
    """Stop the engine of a folder and remove both; what a signal cuts short is done again at exit."""
    if (opened := _open.get(folder)) is not None:
        partial, engine = opened
        engine.close()
        partial.discard()
        _open.pop(folder, None)


def _end_with_this_process(engine: Any, script: Path) -> None:
    """Start the engine through ``script``, where the system can run it."""
    import vizdoom

    binary = Path(vizdoom.__file__).with_name("vizdoom")
    if sys.platform != "linux" or not binary.exists():
        return
    launcher = LAUNCHER.format(
        python=shlex.quote(sys.executable),
        pdeathsig=PR_SET_PDEATHSIG,
        owner=os.getpid(),
        engine=shlex.quote(str(binary)),
    )
    script.write_text(launcher)
    script.chmod(0o700)
    if os.access(script, os.X_OK):  # not in a file system that is mounted noexec
        engine.set_vizdoom_path(str(script))


def _unlink_memory(engine: Any) -> None:
    """Take the names from the memory shared with a running engine: it is freed with the processes that use it."""
    for kind in ("SM", "MQCtr", "MQDoom"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"/dev/shm/ViZDoom{kind}{engine.get_instance_id()}")


def doom_game(scenario: str) -> Game:
    """The game ``doom/<scenario>``, without starting it."""
    if importlib.util.find_spec("vizdoom") is None:
        raise UserError(f"game 'doom/{scenario}' needs ViZDoom: pip install 'bczoo[doom]'")
    return Game(
        name=f"doom/{scenario}",
        env=functools.partial(DoomEnv, scenario),
        bindings=BINDINGS,
        expert=EXPERTS.get(scenario),
        expert_env=functools.partial(DoomEnv, scenario, see_objects=True),
        fps=FPS,
    )


def _make_engine(scenario: str, see_objects: bool) -> Any:
    import vizdoom

    engine = vizdoom.DoomGame()
    engine.load_config(os.path.join(vizdoom.scenarios_path, f"{scenario}.cfg"))
    engine.set_window_visible(False)
    engine.set_sound_enabled(False)
    engine.set_mode(vizdoom.Mode.PLAYER)
    engine.set_screen_resolution(vizdoom.ScreenResolution.RES_320X240)
    engine.set_screen_format(vizdoom.ScreenFormat.RGB24)
    engine.set_available_buttons([getattr(vizdoom.Button, name) for name in BUTTONS])
    variables = vizdoom.GameVariable
    engine.set_available_game_variables(
        [variables.POSITION_X, variables.POSITION_Y, variables.ANGLE, variables.HEALTH] if see_objects else []
    )
    engine.set_labels_buffer_enabled(see_objects)
    if see_objects:
        engine.add_game_args("+sv_cheats 1")
    if engine.get_episode_timeout() == 0:
        engine.set_episode_timeout(EPISODE_TICS)
    return engine


@atexit.register
def _close_all() -> None:
    for folder in list(_open):
        _close(folder)


for _scenario in SCENARIOS:
    register_game(f"doom/{_scenario}", functools.partial(doom_game, _scenario))
