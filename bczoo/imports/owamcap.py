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
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bczoo.data.errors import RecordingError
from bczoo.data.reading import open_regular
from bczoo.imports.format import Format, files_below, needed
from bczoo.imports.frames import timed_frames
from bczoo.imports.keys import key_of_code
from bczoo.imports.session import Event, Session

SAME_FRAME_S = 2e-3  # by which containers round the time of a frame
CROSSING_S = 0.1  # so young a press may not have reached the state yet
SCREENS = ("ScreenEmitted", "ScreenCaptured")
BUTTONS = {name: f"mouse_{name}" for name in ("left", "right", "middle", "x1", "x2")}
RAW_ABSOLUTE, RAW_WHEEL, RAW_SIDEWAYS, NOTCH = 1, 0x400, 0x800, 120.0  # of Windows' RAWMOUSE
RAW_BUTTONS = ("mouse_left", "mouse_right", "mouse_middle", "mouse_x1", "mouse_x2")  # two bits each, down and up
Message = tuple[float, dict[str, Any]]  # seconds, fields


class OwaMcap(Format):
    """Recordings of ocap."""

    name = "owamcap"
    description = "desktop recordings of ocap (open-world-agents): .mcap files with a video beside each"

    def find(self, source: Path) -> Iterator[Path]:
        return files_below(source, ".mcap")

    def read(self, path: Path) -> Session:
        messages = _messages(path)
        screens = sorted(m for kind in SCREENS for m in messages.pop(kind, ()))
        if not screens:
            raise RecordingError(path, "holds no message of a frame (ScreenCaptured)")
        titles = Counter(fields.get("title", "") for _, fields in messages.pop("WindowInfo", ()))
        end = max(time for of_kind in (screens, *messages.values()) for time, _ in of_kind)
        notes: list[str] = []
        try:
            events = [*_keyboard(messages, notes), *_mouse(messages)]
        except (KeyError, TypeError) as error:
            raise RecordingError(path, f"a KeyboardEvent or MouseEvent lacks {error}") from error
        notes += [f"messages of the kind {kind}, which are not read: {len(m)}" for kind, m in sorted(messages.items())]
        return Session(
            _frames(path, [fields for _, fields in screens], notes),
            events,
            end=end,
            env=titles.most_common(1)[0][0] if titles else "",
            notes=notes,
        )


def _messages(path: Path) -> dict[str, list[Message]]:
    """Messages by the last word of their kind, in order of time."""
    reader = needed("mcap.reader")
    found: dict[str, list[Message]] = defaultdict(list)
    try:
        with open_regular(path) as file:
            for schema, _, message in reader.make_reader(file).iter_messages():
                kind = schema.name.replace("/", ".").rpartition(".")[2]
                fields = json.loads(message.data)
                time_ns = fields.get("utc_ns") or message.log_time if kind in SCREENS else message.log_time
                found[kind].append((time_ns / 1e9, fields | {"utc_ns": time_ns}))
    except Exception as error:  # whatever upsets the library is damage of this file
        raise RecordingError(path, f"cannot be read ({type(error).__name__}: {error})") from error
    return found


def _frames(
    path: Path, screens: list[dict[str, Any]], notes: list[str]
) -> Iterator[tuple[float, Callable[[], np.ndarray]]]:
    """The frames of the video at the times of their messages; says in ``notes`` which have no partner."""
    placed = []
    for fields in screens:
        at = fields.get("media_ref") or fields
        name, pts = at.get("uri") or at.get("path"), at.get("pts_ns", fields.get("pts"))
        if not isinstance(name, str) or not isinstance(pts, int):
            raise RecordingError(path, "a frame lies in no video (its message has no pts), and others are not read")
        placed.append((pts / 1e9, fields["utc_ns"] / 1e9, name, fields.get("shape")))
    placed.sort(key=lambda one: one[0])
    if len(names := {name for _, _, name, _ in placed}) > 1:
        raise RecordingError(path, f"its frames lie in {len(names)} videos; one is read")
    video = path.parent / Path(names.pop()).name  # never what an absolute path names, on a computer that is not ours
    shape = placed[0][3]
    number = without_frame = without_message = 0
    for pts, picture in timed_frames(video):
        while number < len(placed) and placed[number][0] < pts - SAME_FRAME_S:
            number, without_frame = number + 1, without_frame + 1
        if number == len(placed) or placed[number][0] > pts + SAME_FRAME_S:
            without_message += 1
            continue
        yield placed[number][1], picture if shape is None else partial(_cropped, picture, shape)
        number += 1
    without_frame += len(placed) - number
    if without_frame:
        notes.append(f"frames that are not in the video: {without_frame} of {len(placed)}")
    if without_message:
        notes.append(f"frames of the video without a message that tells their time, left out: {without_message}")


def _cropped(picture: Callable[[], np.ndarray], shape: list[int]) -> np.ndarray:
    """A picture without the row and the column that made its size even."""
    array, (width, height) = picture(), shape
    if 0 <= array.shape[0] - height <= 1 and 0 <= array.shape[1] - width <= 1:
        return np.ascontiguousarray(array[:height, :width])
    return array


def _keyboard(messages: dict[str, list[Message]], notes: list[str]) -> list[Event]:
    """Presses and releases, with those releases that only the states tell of."""
    events: list[Event] = []
    held: dict[int, float] = {}
    pressed, stuck, listed = set(), Counter[int](), set()
    told = [(time, "state", fields) for time, fields in messages.pop("KeyboardState", ())]
    told += [(time, "event", fields) for time, fields in messages.pop("KeyboardEvent", ())]
    for time, what, fields in sorted(told, key=lambda one: one[0]):
        if what == "event":
            code, down = fields["vk"], fields["event_type"] == "press"
            events.append(Event(time, key_of_code(code), down))
            pressed.add(code)
            if down:
                held.setdefault(code, time)
            else:
                held.pop(code, None)
            continue
        state = set(fields.get("buttons") or fields.get("pressed_keys") or ())
        listed |= state
        for code in [code for code, since in held.items() if code not in state and time - since > CROSSING_S]:
            events.append(Event(time, key_of_code(code), 0))
            stuck[code] += 1
            del held[code]
    notes += [f"{key_of_code(code)} was released {n} times without an event" for code, n in sorted(stuck.items())]
    if phantoms := sorted(key_of_code(code) for code in listed - pressed if not 1 <= code <= 6):
        notes.append(f"{', '.join(phantoms)}: in the keyboard's state but never pressed, so left out")
    return events


def _mouse(messages: dict[str, list[Message]]) -> list[Event]:
    """Buttons, wheel and motion; motion from the device where that was recorded, else from the pointer's places."""
    pointer, raw = messages.pop("MouseEvent", []), messages.pop("RawMouseEvent", [])
    events: list[Event] = []
    states = messages.pop("MouseState", [])
    place = (states[0][1]["x"], states[0][1]["y"]) if states else None
    for time, fields in pointer:
        x, y = fields["x"], fields["y"]
        if place is not None and not raw:
            events += [Event(time, "mouse_dx", x - place[0]), Event(time, "mouse_dy", y - place[1])]
        place = x, y
        if fields["event_type"] == "scroll":
            events += [Event(time, "scroll_dx", fields.get("dx") or 0), Event(time, "scroll_dy", fields.get("dy") or 0)]
        elif fields["event_type"] == "click" and (button := BUTTONS.get(fields.get("button") or "")):
            events.append(Event(time, button, bool(fields["pressed"])))
    for time, fields in raw:
        if not fields.get("us_flags", 0) & RAW_ABSOLUTE:
            events += [Event(time, "mouse_dx", fields["last_x"]), Event(time, "mouse_dy", fields["last_y"])]
        if not pointer:
            events += _raw_buttons(time, fields.get("button_flags", 0), fields.get("button_data", 0))
    return events


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
