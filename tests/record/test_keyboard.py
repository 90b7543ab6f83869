"""A person at the keyboard, played by posted events in a window that nobody sees."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_game
from tiny import tiny_policy

from bczoo.core.actions import KEYS, ActionSpace
from bczoo.core.errors import UserError
from bczoo.data.recording import SYSTEM, USER, action_values, known_action, read_annotation
from bczoo.games.bindings import DictBindings, DiscreteBindings, VectorBindings
from bczoo.games.game import Game
from bczoo.play.agent import Agent
from bczoo.record import keyboard
from bczoo.record.command import record
from bczoo.record.keyboard import NAMED_KEYS, Window

pygame = pytest.importorskip("pygame")

CATCH = "tiny_game:catch"
GROUPS = ("keys", "mouse_buttons", "mouse_dx", "mouse_dy")
HOLD = 10  # steps, half a second

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def unseen(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setattr(keyboard.time, "sleep", lambda seconds: None)


@pytest.fixture
def policy():
    tiny_policy(text_dim=None).save_pretrained("policy")
    return "policy"


@pytest.fixture
def script(monkeypatch):
    """Events by the step, counted over all episodes, that they happen in; and what the window showed."""
    events: dict[int, list] = {}
    shown: list[tuple[str, bool]] = []

    def show(self, frame, caption, acting, draw=Window.show):
        draw(self, frame, caption, acting)
        for event in events.get(len(shown), []):
            pygame.event.post(event)
        shown.append((caption, acting))

    monkeypatch.setattr(Window, "show", show)
    events["shown"] = shown  # type: ignore[index]
    return events


def down(key):
    return pygame.event.Event(pygame.KEYDOWN, key=key)


def up(key):
    return pygame.event.Event(pygame.KEYUP, key=key)


def button(number, pressed=True):
    return pygame.event.Event(pygame.MOUSEBUTTONDOWN if pressed else pygame.MOUSEBUTTONUP, button=number)


def motion(x, y):
    return pygame.event.Event(pygame.MOUSEMOTION, rel=(x, y), pos=(0, 0), buttons=(0, 0, 0))


def steps(folder: str) -> tuple[list[int], list[dict]]:
    known = [known_action(f) for f in read_annotation(folder).frame_annotations[1:]]
    return [k for k, _ in known], [action_values(a, GROUPS) for _, a in known]


def everything() -> Game:
    """Catch, but with keys, buttons and mouse bound."""
    bindings = DictBindings(
        move=DiscreteBindings(
            {"a": 0, "d": 1, "LeftShift": 0, "UpArrow": 0, "mouse_left": 0, "mouse_right": 0}, none=2
        ),
        look=VectorBindings({"mouse_dx": 0, "mouse_dy": 1}, size=2),
    )
    return Game("everything", tiny_game.Catch, lambda values: bindings(values)["move"])


def test_keys_buttons_and_motion_are_those_of_the_action_space(script):
    script[0] = [down(pygame.K_a), down(pygame.K_LSHIFT)]
    script[1] = [up(pygame.K_a), button(1), motion(5, -2), motion(7, 0)]
    script[2] = [up(pygame.K_LSHIFT), button(1, False), button(3), down(pygame.K_UP), up(pygame.K_UP)]
    script[3] = [button(3, False), down(pygame.K_x)]  # no key of the action space
    record("test_keyboard:everything", "out", agent="keyboard", episodes=1, size=32)
    (folder,) = Path("out").iterdir()
    kinds, values = steps(folder)
    assert set(kinds) == {USER} and folder.name == "test_keyboard-everything_keyboard_32px_000000"
    assert values[:5] == [
        {"keys": ["LeftShift", "a"], "mouse_buttons": [], "mouse_dx": 0, "mouse_dy": 0},
        {"keys": ["LeftShift"], "mouse_buttons": ["0"], "mouse_dx": 12, "mouse_dy": -2},
        {"keys": ["UpArrow"], "mouse_buttons": ["1"], "mouse_dx": 0, "mouse_dy": 0},
        *[{"keys": [], "mouse_buttons": [], "mouse_dx": 0, "mouse_dy": 0}] * 2,
    ]
    assert read_annotation(folder).metadata.user == "keyboard"


def test_a_person_takes_over_while_pressing_and_half_a_second_more(policy, script, monkeypatch):
    executed = []

    def step(self, action, play=tiny_game.Catch.step):
        executed.append(action)
        return play(self, action)

    def override(self, row, values, do=Agent.override_last_action):
        remembered.append(values["keys"])
        do(self, row, values)

    remembered: list[list[str]] = []
    monkeypatch.setattr(Agent, "override_last_action", override)
    monkeypatch.setattr(tiny_game.Catch, "step", step)
    script[5] = [down(pygame.K_d)]
    script[8] = [up(pygame.K_d)]
    script[9] = [motion(400, 0)]  # this game has no mouse
    (folder,) = record(CATCH, "out", policy=policy, expert="keyboard", episodes=1, size=32)
    kinds, values = steps(folder)
    taken = range(5, 8 + HOLD)
    assert kinds == [USER if i in taken else SYSTEM for i in range(len(kinds))]
    assert remembered == [v["keys"] for i, v in enumerate(values) if i in taken] == [["d"]] * 3 + [[]] * HOLD
    assert [tiny_game.catch().bindings(v) for v in values] == executed
    assert len({tuple(v["keys"]) for k, v in zip(kinds, values, strict=True) if k == SYSTEM}) > 1
    assert [acting for _, acting in script["shown"]][:20] == [False] * 6 + [True] * (2 + HOLD) + [True] + [False]
    assert "the policy plays" in script["shown"][0][0] and "you play" in script["shown"][6][0]
    message = read_annotation(folder)
    assert not any(f.user_action.is_known for f in message.frame_annotations if f.system_action.is_known)
    assert message.metadata.user.endswith("and keyboard")


def test_tab_keeps_the_controls_until_the_next_tab(policy, script):
    script[3], script[30] = [down(pygame.K_TAB)], [down(pygame.K_TAB)]
    (folder,) = record(CATCH, "out", policy=policy, expert="keyboard", episodes=1, size=32)
    kinds = steps(folder)[0]
    assert kinds == [USER if 3 <= i < 30 else SYSTEM for i in range(len(kinds))]


def test_mouse_motion_takes_over_and_a_hand_at_rest_does_not(policy, script):
    script[3], script[20] = [motion(1, -1)], [motion(0, 30)]
    (folder,) = record("test_keyboard:with_mouse", "out", policy=policy, expert="keyboard", episodes=1, size=32)
    kinds, values = steps(folder)
    assert kinds == [USER if 20 <= i <= 20 + HOLD else SYSTEM for i in range(len(kinds))]
    assert values[20]["mouse_dy"] == 30


def with_mouse() -> Game:
    bindings = VectorBindings({"mouse_dx": 0, "mouse_dy": 1}, size=2)
    return Game("with_mouse", ByVector, bindings)


class ByVector(tiny_game.Catch):
    def step(self, action):
        return super().step(2)


def test_escape_ends_an_episode_and_keeps_it_and_closing_the_window_stops(script, capsys):
    script[4] = [down(pygame.K_ESCAPE)]
    script[10] = [pygame.event.Event(pygame.QUIT)]
    folders = record(CATCH, "out", agent="keyboard", episodes=3, size=32)
    assert [len(steps(f)[0]) for f in folders] == [5]
    assert [p.name for p in Path("out").iterdir()] == [Path(folders[0]).name], "nothing half done is left"
    said = capsys.readouterr().out
    assert "the window was closed" in said and "1 episodes" in said
    assert len(script["shown"]) == 11
    assert not pygame.display.get_init()
    script.clear()
    script["shown"] = []
    more = record(CATCH, "out", agent="keyboard", episodes=2, size=32)
    assert more[0] == folders[0] and len(more) == 2, "the same command goes on"


def test_an_episode_that_another_process_has_recorded_stays(script, monkeypatch, capsys):
    (first,) = record(CATCH, "one", agent="keyboard", episodes=1, size=64)

    def recording_of(game, folder, *others, make=keyboard.episode_writer):
        writer = make(game, folder, *others)
        if folder.name == Path(first).name:
            shutil.copytree(first, folder)
        return writer

    monkeypatch.setattr(keyboard, "episode_writer", recording_of)
    folders = record(CATCH, "two", agent="keyboard", episodes=2, size=64)
    assert sorted(str(p) for p in Path("two").iterdir()) == folders and len(folders) == 2
    assert "2 episodes of tiny_game:catch in two, 1 of them were already there" in capsys.readouterr().out


def test_the_picture_is_the_frame_enlarged():
    window = Window(tiny_game.catch())
    try:
        frame = np.zeros((12, 12, 3), np.uint8)
        frame[2, 7] = (255, 0, 0)
        window.show(frame, "catch", acting=False)
        picture = pygame.surfarray.array3d(pygame.display.get_surface()).transpose(1, 0, 2)
        assert picture.shape == (720, 720, 3)
        assert (picture[120:180, 420:480] == (255, 0, 0)).all() and picture.sum() == 255 * 60 * 60
        window.show(frame, "catch", acting=True)
        picture = pygame.surfarray.array3d(pygame.display.get_surface()).transpose(1, 0, 2)
        assert (picture[0, 0] == (255, 40, 40)).all()
    finally:
        window.close()


def test_a_step_takes_as_long_as_in_the_game_and_a_late_one_is_not_made_up_for(monkeypatch):
    clock, slept = [100.0], []

    def sleep(seconds):
        slept.append(round(seconds, 6))
        clock[0] += seconds

    monkeypatch.setattr(keyboard.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(keyboard.time, "sleep", sleep)
    window = Window(tiny_game.catch())
    try:
        for busy in (0.01, 0.02, 0.0, 0.5, 0.01, 0.01):
            clock[0] += busy
            window.wait()
    finally:
        window.close()
    assert slept == [0.04, 0.03, 0.05, 0.04, 0.04], "20 steps a second, and none faster after the late one"


def test_every_published_key_can_be_pressed():
    assert set(KEYS) - {"_no_key"} <= set(NAMED_KEYS.values())
    assert all(hasattr(pygame, constant) for constant in NAMED_KEYS)


def test_what_is_missing_is_named(monkeypatch, tmp_path):
    space = ActionSpace.keyboard_mouse(extra_keys=["F13"])
    monkeypatch.setattr(
        tiny_game, "catch", lambda: Game("f", tiny_game.Catch, DiscreteBindings({"F13": 0}, 1), action_space=space)
    )
    with pytest.raises(UserError, match=r"\['F13'\], which no key of the window"):
        record(CATCH, "out", agent="keyboard")
    pad = Game("p", tiny_game.Catch, DiscreteBindings({"south": 0}, 1), action_space=ActionSpace.gamepad())
    monkeypatch.setattr(tiny_game, "catch", lambda: pad)
    with pytest.raises(UserError, match="keyboard and mouse"):
        record(CATCH, "out", agent="keyboard")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pygame.display, "get_driver", lambda: "offscreen")
    for asked_for in ("dummy", "none"):  # SDL falls back to a driver that shows nothing, or finds none
        monkeypatch.setenv("SDL_VIDEODRIVER", asked_for)
        with pytest.raises(UserError, match=r"needs a display, and no window can be opened here \(.*(offscreen|none)"):
            record(CATCH, "out", agent="keyboard")
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(UserError, match=r"pip install 'bczoo\[window\]'"):
        record(CATCH, "out", agent="keyboard")
