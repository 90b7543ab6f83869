"""OWAMcap: desktop recordings of ocap, messages in an ``.mcap`` file and pictures in a video beside it.

Place in the pipeline: a format of :mod:`bczoo.imports`. Fields are those of open-world-agents/open-world-agents
(MIT), ``projects/owa-msgs``, which have changed twice; all three generations are read:

==========  ============================================  =================================
generation  message of a frame                            where the frame is
==========  ============================================  =================================
0.3         ``owa.env.gst.msg.ScreenEmitted``             ``path``, ``pts``
0.4         ``desktop/ScreenEmitted``, ``ScreenCaptured``  ``path`` or ``media_ref``, ``pts``
0.5         ``desktop/ScreenCaptured``                    ``media_ref`` (``uri``, ``pts_ns``)
==========  ============================================  =================================

What has to be known of them:

* A frame's time is its message's ``utc_ns``, on the clock of the keyboard. The video's own times run ahead of it, by up
  to 0.36 and 1.2 s in the two recordings that the tests read, and only say which frame of the video it is: by them, a
  letter is on the screen before its key is pressed.
* Frames come when the screen changes, at no even rate.
* Releases get lost. ``KeyboardState`` tells once a second which keys are held: who is not among them is released.
* The state may list keys that nobody pressed. They are left out.
* Videos have even sizes, the screen may not; what is added at the edge is cut off.
* A mouse may tell of its motion a thousand times a second. So messages are read as a stream, once to see what kinds
  there are and again for the events, and memory grows by the frames alone.
"""

from __future__ import annotations

import json
import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bczoo.data.errors import RecordingError
from bczoo.data.reading import open_regular
from bczoo.imports.format import Format, files_below, needed
from bczoo.imports.frames import timed_frames
from bczoo.imports.keys import key_of_code
from bczoo.imports.session import Event, Session, Stream

SAME_FRAME_S = 2e-3  # by which containers round the time of a frame
CROSSING_S = 0.1  # so young a press may not have reached the state yet
SCREENS = ("ScreenEmitted", "ScreenCaptured")
KEYBOARD = ("KeyboardState", "KeyboardEvent")
MOUSE = ("MouseEvent", "RawMouseEvent")
BUTTONS = {name: f"mouse_{name}" for name in ("left", "right", "middle", "x1", "x2")}
RAW_ABSOLUTE, RAW_WHEEL, RAW_SIDEWAYS, NOTCH = 1, 0x400, 0x800, 120.0  # of Windows' RAWMOUSE
RAW_BUTTONS = ("mouse_left", "mouse_right", "mouse_middle", "mouse_x1", "mouse_x2")  # two bits each, down and up
DAMAGE = (KeyError, TypeError, AttributeError, json.JSONDecodeError)  # what reading the fields of a message may raise
Message = tuple[float, str, Callable[[], dict[str, Any]]]  # seconds, kind, fields


class OwaMcap(Format):
    """Recordings of ocap."""

    name = "owamcap"
    description = "desktop recordings of ocap (open-world-agents): .mcap files with a video beside each"

    def find(self, source: Path) -> Iterator[Path]:
        return files_below(source, ".mcap")

    def read(self, path: Path) -> Session:
        told, keyboard = _Told(), _Keyboard()
        titles, unread = Counter[str](), Counter[str]()
        kind = ""
        try:
            for time, kind, fields in _messages(path):
                told.end = max(told.end, time)
                if kind in SCREENS:
                    told.screens.add(path, time, fields())
                elif kind in KEYBOARD:
                    list(keyboard(time, kind, fields()))  # for the notes
                elif kind == "WindowInfo":
                    titles[fields().get("title", "")] += 1
                elif kind == "MouseState" and told.place is None:
                    told.place = fields()["x"], fields()["y"]
                elif kind in MOUSE:
                    told.kinds.add(kind)
                elif kind != "MouseState":
                    unread[kind] += 1
        except DAMAGE as error:
            raise _damaged(path, kind, error) from error
        if not len(told.screens.taken):
            raise RecordingError(path, "holds no message of a frame (ScreenCaptured)")
        notes = keyboard.notes()
        notes += [f"messages of the kind {kind}, which are not read: {n}" for kind, n in sorted(unread.items())]
        return Session(
            _frames(path, told.screens, notes),
            Stream(partial(_events, path, told)),
            end=told.end,
            env=titles.most_common(1)[0][0] if titles else "",
            notes=notes,
        )


class _Screens:
    """Where the frames of a recording are in its video, and when they were taken; 16 bytes for each."""

    def __init__(self) -> None:
        self.pts, self.taken = array("d"), array("d")  # seconds
        self.names: set[str] = set()  # of videos
        self.shape: list[int] | None = None

    def add(self, path: Path, time: float, fields: dict[str, Any]) -> None:
        at = fields.get("media_ref") or fields
        name, pts = at.get("uri") or at.get("path"), at.get("pts_ns", fields.get("pts"))
        if not isinstance(name, str) or not isinstance(pts, int):
            raise RecordingError(path, "a frame lies in no video (its message has no pts), and others are not read")
        if not self.pts:
            self.shape = fields.get("shape")
        self.pts.append(pts / 1e9)
        self.taken.append(time)
        self.names.add(name)


@dataclass
class _Told:
    """What one pass over a recording's messages tells, before its events can be read.

    Args:
        screens: its frames.
        kinds: of :data:`MOUSE` that there are.
        place: of the pointer at first.
        end: seconds, of the last message.
    """

    screens: _Screens = field(default_factory=_Screens)
    kinds: set[str] = field(default_factory=set)
    place: tuple[float, float] | None = None
    end: float = -math.inf


def _messages(path: Path) -> Iterator[Message]:
    """Messages by the last word of their kind, in order of time; their fields are parsed when they are asked for.

    Raises:
        RecordingError: the file is damaged.
    """
    reader = needed("mcap.reader")
    try:
        with open_regular(path) as file:
            for schema, _, message in reader.make_reader(file).iter_messages():
                kind = schema.name.replace("/", ".").rpartition(".")[2]
                time_ns = message.log_time
                fields = partial(json.loads, message.data)
                if kind in SCREENS:
                    parsed = fields()
                    time_ns, fields = parsed.get("utc_ns") or time_ns, partial(dict, parsed)
                yield time_ns / 1e9, kind, fields
    except RecordingError:
        raise
    except Exception as error:  # whatever upsets the library is damage of this file
        raise RecordingError(path, f"cannot be read ({type(error).__name__}: {error})") from error


def _events(path: Path, told: _Told) -> Iterator[Event]:
    """What the player did, in order of time."""
    keyboard, mouse, kind = _Keyboard(), _Mouse(told), ""
    try:
        for time, kind, fields in _messages(path):
            if kind in KEYBOARD:
                yield from keyboard(time, kind, fields())
            elif kind in MOUSE:
                yield from mouse(time, kind, fields())
    except DAMAGE as error:
        raise _damaged(path, kind, error) from error


def _damaged(path: Path, kind: str, error: Exception) -> RecordingError:
    return RecordingError(path, f"a {kind} is damaged ({type(error).__name__}: {error})")


def _frames(path: Path, screens: _Screens, notes: list[str]) -> Iterator[tuple[float, Callable[[], np.ndarray]]]:
    """The frames of the video at the times of their messages; says in ``notes`` which have no partner."""
    if len(screens.names) > 1:
        raise RecordingError(path, f"its frames lie in {len(screens.names)} videos; one is read")
    order = np.argsort(screens.pts, kind="stable")
    pts, taken = np.array(screens.pts)[order], np.array(screens.taken)[order]
    video = (
        path.parent / Path(next(iter(screens.names))).name
    )  # never what an absolute path names, on a computer that is not ours
    number = without_frame = without_message = 0
    for time, picture in timed_frames(video):
        while number < len(pts) and pts[number] < time - SAME_FRAME_S:
            number, without_frame = number + 1, without_frame + 1
        if number == len(pts) or pts[number] > time + SAME_FRAME_S:
            without_message += 1
            continue
        yield float(taken[number]), picture if screens.shape is None else partial(_cropped, picture, screens.shape)
        number += 1
    without_frame += len(pts) - number
    if without_frame:
        notes.append(f"frames that are not in the video: {without_frame} of {len(pts)}")
    if without_message:
        notes.append(f"frames of the video without a message that tells their time, left out: {without_message}")


def _cropped(picture: Callable[[], np.ndarray], shape: list[int]) -> np.ndarray:
    """A picture without the row and the column that made its size even."""
    array, (width, height) = picture(), shape
    if 0 <= array.shape[0] - height <= 1 and 0 <= array.shape[1] - width <= 1:
        return np.ascontiguousarray(array[:height, :width])
    return array


class _Keyboard:
    """Presses and releases, message by message, with those releases that only the states tell of."""

    def __init__(self) -> None:
        self._held: dict[int, float] = {}  # code -> since when
        self._pressed: set[int] = set()
        self._listed: set[int] = set()
        self._stuck = Counter[int]()

    def __call__(self, time: float, kind: str, fields: dict[str, Any]) -> Iterator[Event]:
        if kind == "KeyboardEvent":
            code, down = fields["vk"], fields["event_type"] == "press"
            self._pressed.add(code)
            if down:
                self._held.setdefault(code, time)
            else:
                self._held.pop(code, None)
            yield Event(time, key_of_code(code), down)
            return
        state = set(fields.get("buttons") or fields.get("pressed_keys") or ())
        self._listed |= state
        late = [code for code, since in self._held.items() if code not in state and time - since > CROSSING_S]
        for code in late:
            self._stuck[code] += 1
            del self._held[code]
            yield Event(time, key_of_code(code), 0)

    def notes(self) -> list[str]:
        """What was put right."""
        notes = [
            f"{key_of_code(code)} was released {n} times without an event" for code, n in sorted(self._stuck.items())
        ]
        if phantoms := sorted(key_of_code(code) for code in self._listed - self._pressed if not 1 <= code <= 6):
            notes.append(f"{', '.join(phantoms)}: in the keyboard's state but never pressed, so left out")
        return notes


class _Mouse:
    """Buttons, wheel and motion; motion from the device where that was recorded, else from the pointer's places."""

    def __init__(self, told: _Told) -> None:
        self._pointer, self._raw = (kind in told.kinds for kind in MOUSE)
        self._place = told.place

    def __call__(self, time: float, kind: str, fields: dict[str, Any]) -> Iterator[Event]:
        if kind == "MouseEvent":
            x, y = fields["x"], fields["y"]
            if self._place is not None and not self._raw:
                yield Event(time, "mouse_dx", x - self._place[0])
                yield Event(time, "mouse_dy", y - self._place[1])
            self._place = x, y
            if fields["event_type"] == "scroll":
                yield Event(time, "scroll_dx", fields.get("dx") or 0)
                yield Event(time, "scroll_dy", fields.get("dy") or 0)
            elif fields["event_type"] == "click" and (button := BUTTONS.get(fields.get("button") or "")):
                yield Event(time, button, bool(fields["pressed"]))
            return
        if not fields.get("us_flags", 0) & RAW_ABSOLUTE:
            yield Event(time, "mouse_dx", fields["last_x"])
            yield Event(time, "mouse_dy", fields["last_y"])
        if not self._pointer:
            yield from _raw_buttons(time, fields.get("button_flags", 0), fields.get("button_data", 0))


def _raw_buttons(time: float, flags: int, data: int) -> list[Event]:
    events = [
        Event(time, name, down)
        for i, name in enumerate(RAW_BUTTONS)
        for bit, down in ((2 * i, 1), (2 * i + 1, 0))
        if flags >> bit & 1
    ]
    notches = (data - 0x10000 if data & 0x8000 else data) / NOTCH  # a signed number of 16 bits
    wheels = ((RAW_WHEEL, "scroll_dy"), (RAW_SIDEWAYS, "scroll_dx"))
    return events + [Event(time, name, notches) for bit, name in wheels if flags & bit]
