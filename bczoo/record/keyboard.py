"""A person at the keyboard: a window that shows the game in real time and reads what is pressed.

Place in the pipeline: ``bczoo record --agent keyboard`` records demonstrations of a person,
``bczoo record --policy P --expert keyboard`` a policy that a person corrects. Both come from
:mod:`bczoo.record.command`; episodes are played in this process, one after the other.

A frame is shown for one step of game time; what was pressed by its end is the action that answers it. The window is
pygame's, which is imported when it opens.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bczoo.core.actions import BinnedGroup, HeldGroup, Values
from bczoo.core.errors import UserError
from bczoo.core.workers import closing_on_sigterm
from bczoo.data.recording import RecordingExistsError
from bczoo.games.bindings import MOUSE_BUTTON_NAMES, inputs_in
from bczoo.games.game import Game, RunningGame
from bczoo.play.agent import Agent
from bczoo.play.episodes import check_playable
from bczoo.record.episode import Stored, Todo, episode_writer
from bczoo.record.instruction import NO_INSTRUCTION, Instruction
from bczoo.record.playing import PlayingPolicy

HOLDS_S = 0.5  # a person keeps the controls for so long after the last input
MOVED_PX = 3  # mouse motion in a step from which on it takes over; a hand at rest moves less
HEIGHT_PX = 720  # of the picture, about
BUTTONS = {1: "0", 2: "2", 3: "1"}  # pygame's numbers -> left, middle, right
MOUSE_AXES = ("mouse_dx", "mouse_dy")
NAMED_KEYS = {
    "K_SPACE": "Space",
    "K_UP": "UpArrow",
    "K_DOWN": "DownArrow",
    "K_LEFT": "LeftArrow",
    "K_RIGHT": "RightArrow",
    "K_LSHIFT": "LeftShift",
    "K_RSHIFT": "RightShift",
    "K_LCTRL": "LeftControl",
    "K_RCTRL": "RightControl",
    "K_LALT": "LeftAlt",
    "K_RALT": "RightAlt",
    "K_RETURN": "Enter",
    "K_BACKSPACE": "Backspace",
} | {f"K_{key}": key for key in "abcdefghijklmnopqrstuvwxyz0123456789"}  # Tab and Escape are the window's


@dataclass(frozen=True)
class Pressed:
    """What a person did in one step.

    Args:
        values: held keys and buttons and mouse motion.
        acting: whether the person has the controls.
        ended: the person ended the episode.
        closed: the person closed the window.
    """

    values: Values
    acting: bool
    ended: bool = False
    closed: bool = False


class Window:
    """Shows the game and reads keyboard and mouse; close it with ``close()``.

    Args:
        game: what is played; inputs that it does not listen to are not recorded.
    """

    def __init__(self, game: Game) -> None:
        self.game = game
        self._pygame = pygame = _pygame()
        self._names = _names_of_keys(game, pygame)
        known = game.inputs or inputs_in(game.action_space)
        self._buttons = {n: b for n, b in BUTTONS.items() if MOUSE_BUTTON_NAMES[b] in known}
        self._axes = [axis for axis in MOUSE_AXES if axis in known]
        self._screen: Any = None
        self._held: set[tuple[str, str]] = set()  # group and name
        self._period_s = 1 / game.fps
        self._open()
        self.begin()

    def begin(self) -> None:
        """An episode begins, in which nobody has taken over yet."""
        self._lasting = False  # taken over with Tab
        self._holds = 0  # steps for which the person keeps the controls without an input
        self._next_at = time.perf_counter() + self._period_s

    def show(self, frame: np.ndarray, caption: str, acting: bool) -> None:
        """Draw a frame, uint8 (H, W, 3); a red edge says that the person has the controls."""
        pygame, (height, width) = self._pygame, frame.shape[:2]
        scale = max(1, HEIGHT_PX // height)
        size = (width * scale, height * scale)
        if self._screen is None or self._screen.get_size() != size:
            self._screen = pygame.display.set_mode(size)
            pygame.event.set_grab(True)
            pygame.mouse.set_visible(False)  # with the grab, motion goes on at the edge of the screen
        picture = pygame.image.frombuffer(np.ascontiguousarray(frame), (width, height), "RGB")
        self._screen.blit(pygame.transform.scale(picture, size), (0, 0))
        if acting:
            pygame.draw.rect(self._screen, (255, 40, 40), self._screen.get_rect(), 2 * scale)
        pygame.display.set_caption(caption)
        pygame.display.flip()

    def wait(self) -> Pressed:
        """Wait until the step's time is over; returns what was pressed."""
        now = time.perf_counter()
        if now < self._next_at:
            time.sleep(self._next_at - now)
        # a step that came late is not made up for by faster ones
        self._next_at = max(self._next_at, now) + self._period_s
        return self._read()

    def close(self) -> None:
        self._pygame.display.quit()

    def _open(self) -> None:
        pygame = self._pygame
        try:
            pygame.display.init()
            wanted = os.environ.get("SDL_VIDEODRIVER", "")
            if (driver := pygame.display.get_driver()) in ("dummy", "offscreen") and driver not in wanted:
                raise pygame.error(f"only the {driver} video driver")
        except pygame.error as error:
            pygame.display.quit()
            raise UserError(
                f"a person at the keyboard needs a display, and no window can be opened here ({error}); run this where "
                "there is a screen (DISPLAY or WAYLAND_DISPLAY is set), or let the game's expert play instead (expert)"
            ) from error

    def _read(self) -> Pressed:
        pygame = self._pygame
        tapped: set[tuple[str, str]] = set()  # what was released within the step counts as held in it
        moved = dict.fromkeys(self._axes, 0)
        ended = closed = False
        for event in pygame.event.get():
            if event.type == pygame.QUIT:
                closed = True
            elif event.type == pygame.KEYDOWN and event.key == pygame.K_ESCAPE:
                ended = True
            elif event.type == pygame.KEYDOWN and event.key == pygame.K_TAB:
                self._lasting = not self._lasting
                self._holds = 0
            elif event.type == pygame.WINDOWFOCUSLOST:
                self._held.clear()  # releases go to another window now
            elif event.type == pygame.MOUSEMOTION:
                for axis, distance in zip(MOUSE_AXES, event.rel, strict=True):
                    if axis in moved:
                        moved[axis] += distance
            elif (one := self._input(event)) is not None:
                if event.type in (pygame.KEYDOWN, pygame.MOUSEBUTTONDOWN):
                    self._held.add(one)
                    tapped.add(one)
                else:
                    self._held.discard(one)
        pressed = self._held | tapped
        acting = bool(pressed) or any(abs(distance) >= MOVED_PX for distance in moved.values())
        if acting:
            self._holds = round(HOLDS_S * self.game.fps)
        elif self._holds:
            acting, self._holds = True, self._holds - 1
        values: Values = {g.name: 0 if isinstance(g, BinnedGroup) else [] for g in self.game.action_space.groups}
        for group, name in sorted(pressed):
            values[group].append(name)
        return Pressed(values | moved, self._lasting or acting, ended, closed)

    def _input(self, event: Any) -> tuple[str, str] | None:
        """Group and name of a key or button that the game listens to."""
        pygame = self._pygame
        if event.type in (pygame.KEYDOWN, pygame.KEYUP) and event.key in self._names:
            return "keys", self._names[event.key]
        if event.type in (pygame.MOUSEBUTTONDOWN, pygame.MOUSEBUTTONUP) and event.button in self._buttons:
            return "mouse_buttons", self._buttons[event.button]
        return None


def record_by_hand(
    game: Game,
    playing: PlayingPolicy | None,
    stored: Stored,
    todo: Todo,
    on_episode: Callable[[], object],
    instruction: Instruction = NO_INSTRUCTION,
) -> list[float | None]:
    """Record a person who plays, or who corrects a policy.

    Args:
        game: what is played.
        playing: the policy; None for demonstrations, in which the person always plays.
        stored: how frames are stored.
        todo: seeds and folders.
        on_episode: called after every episode.
        instruction: written into demonstrations; a policy has its own.

    Returns:
        Returns of the episodes, None where another process was faster, whose recording stays; fewer than asked for
        where the window was closed.
    """
    returns: list[float | None] = []
    if playing is not None:
        instruction = Instruction(playing.text, playing.embedding)
    with contextlib.ExitStack() as stack:
        stack.enter_context(closing_on_sigterm())
        agent = None
        if playing is not None:
            check_playable(game, playing.opened.policy.input_spec)
            agent = stack.enter_context(playing.agent(1, todo[0][0] if todo else 0))
        window = stack.enter_context(contextlib.closing(Window(game)))
        running = stack.enter_context(game.open())
        for seed, folder in todo:
            try:
                returns.append(_episode(window, running, playing, agent, seed, folder, stored, instruction))
            except RecordingExistsError:
                returns.append(None)
            except _Closed:
                print("the window was closed; the episode in it is not kept")
                break
            on_episode()
    return returns


class _Closed(Exception):
    """The window was closed."""


def _episode(
    window: Window,
    running: RunningGame,
    playing: PlayingPolicy | None,
    agent: Agent | None,
    seed: int,
    folder: Path,
    stored: Stored,
    instruction: Instruction,
) -> float:
    """Play and write one episode; if the window is closed nothing is written."""
    user = "keyboard" if playing is None else f"{playing.described} and keyboard"
    total, acting, done = 0.0, agent is None, False
    with episode_writer(running.game, folder, stored, user, instruction.text) as writer:
        frame, _ = running.reset(seed)
        if agent is not None:
            agent.reset(0, seed)
        window.begin()
        while not done:
            window.show(frame, _caption(running.game, folder, total, acting, agent), acting and agent is not None)
            decision = agent.step(frame, instruction.embedding) if agent is not None else None
            pressed = window.wait()
            if pressed.closed:
                raise _Closed
            acting = agent is None or pressed.acting
            values = pressed.values if acting or decision is None else decision.values
            if acting and agent is not None:
                agent.override_last_action(0, values)
            writer.add(
                frame,
                user=values if acting else None,
                system=None if acting else values,
                text=instruction.text,
                text_embedding=instruction.embedding,
            )
            frame, reward, done, _ = running.step(values)
            total += reward
            done = done or pressed.ended
    return total


def _caption(game: Game, folder: Path, total: float, acting: bool, agent: Agent | None) -> str:
    if agent is None:
        who = "Escape ends the episode"
    else:
        who = "you play" if acting else "the policy plays; press to take over, Tab to keep the controls, Escape to end"
    return f"{game.name}   return {total:.1f}   {who}"


def _pygame() -> Any:
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        import pygame
    except ImportError as error:
        raise UserError("a person at the keyboard needs a window: pip install 'bczoo[window]'") from error
    return pygame


def _names_of_keys(game: Game, pygame: Any) -> dict[int, str]:
    """pygame's key numbers -> names in the action space, of the keys that the game listens to."""
    space = game.action_space
    if not all(
        isinstance(g, HeldGroup | BinnedGroup) and g.name in ("keys", "mouse_buttons", *MOUSE_AXES)
        for g in space.groups
    ):
        raise UserError(f"a person plays with keyboard and mouse, but {game.name!r} has action space {space.name!r}")
    known = inputs_in(space)
    reachable = {*NAMED_KEYS.values(), *MOUSE_BUTTON_NAMES.values(), *MOUSE_AXES}
    if missing := sorted(game.inputs - reachable):
        raise UserError(f"{game.name} is played with {missing}, which no key of the window stands for")
    wanted = {name for name in NAMED_KEYS.values() if name in (game.inputs or known)}
    return {getattr(pygame, constant): name for constant, name in NAMED_KEYS.items() if name in wanted}
