"""What goes over the socket: messages with their length before them, frames in, actions out.

Place in the pipeline: :mod:`bczoo.serve.server` and :mod:`bczoo.serve.client` read and write these bytes; the messages
themselves are ``inference.Frame`` and ``inference.Action`` of :mod:`bczoo.data.schema`. Either way a message is

    4 bytes    length of the payload, unsigned little-endian
    payload    one protobuf message, ``Frame`` to the server and ``Action`` to the client

as the reference recorder and controller speak it. Three fields are added, which a reference client skips and never
sends:

    Frame.text       instruction of this client from this frame on; empty clears it, absent leaves it
    Action.error     why there is no action, or what else went wrong; the action is neutral unless the policy acted
    Action.dropped   frames that were superseded before they were played, since the last answer to this client

Shape legend: H, W height and width of a frame in pixels; frames are (H, W, 3) uint8, RGB.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from bczoo.data.schema import inference

LARGEST_MESSAGE = 32 * 2**20  # bytes
LARGEST_SIDE = 16_384  # pixels
LONGEST_TEXT = 10_000  # characters of an instruction
LENGTH = struct.Struct("<I")
GROUPS = ("keys", "mouse_buttons", "mouse_dx", "mouse_dy")  # of an action space, that an Action can carry


class FramingError(Exception):
    """Nothing that follows on this connection can be understood."""


class FrameError(Exception):
    """A frame that cannot be played; those after it can.

    Args:
        id: of the frame.
        reason: what is wrong with it.
    """

    def __init__(self, id: int, reason: str) -> None:
        super().__init__(reason)
        self.id = id


class Frame(NamedTuple):
    """A frame as a client sent it."""

    id: int
    pixels: np.ndarray  # (H, W, 3) uint8
    text: str | None  # None: nothing was said


def framed(payload: bytes) -> bytes:
    """A payload with its length before it."""
    return LENGTH.pack(len(payload)) + payload


def payload_length(header: bytes, largest: int = LARGEST_MESSAGE) -> int:
    """Length of the payload that follows a header of four bytes."""
    (length,) = LENGTH.unpack(header)
    if length > largest:
        raise FramingError(
            f"a message of {length} bytes is announced, the largest allowed is {largest}. A message is its length in 4 "
            "bytes, little-endian, and then a Frame"
        )
    return length


def parse_frame(payload: bytes | bytearray) -> Frame:
    """The frame in a payload.

    Raises:
        FramingError: it is no protobuf message of this kind, or one without anything of a frame.
        FrameError: it is a Frame whose picture or text does not fit.
    """
    try:
        message = inference.Frame.FromString(bytes(payload))
    except DecodeError as error:
        raise FramingError(f"a message of {len(payload)} bytes is no Frame in protobuf") from error
    width, height, data = message.width, message.height, message.data
    if not (width or height or data or message.id):  # an id that is not there reads as 0: nothing is to be answered
        raise FramingError(f"a message of {len(payload)} bytes holds nothing of a frame")
    if width < 1 or height < 1:
        raise FrameError(message.id, f"width and height must be at least 1 pixel, got {width} x {height}")
    if max(width, height) > LARGEST_SIDE:
        raise FrameError(message.id, f"a frame of {width} x {height} is too large: a side has at most {LARGEST_SIDE}")
    if len(data) != width * height * 3:
        raise FrameError(
            message.id,
            f"data has {len(data)} bytes, but {width} x {height} pixels in RGB are {width * height * 3} bytes",
        )
    text = message.text if message.HasField("text") else None
    if text is not None and len(text) > LONGEST_TEXT:
        raise FrameError(message.id, f"text has {len(text)} characters, at most {LONGEST_TEXT} are allowed")
    return Frame(message.id, np.frombuffer(data, np.uint8).reshape(height, width, 3), text)


def frame_message(pixels: np.ndarray, id: int, text: str | None = None) -> bytes:
    """A frame, framed to be sent.

    Args:
        pixels: (H, W, 3) uint8, RGB.
        id: comes back with the answer; from -2^31 up to 2^31 - 1.
        text: instruction from this frame on; an empty one clears it, None leaves it.
    """
    height, width = pixels.shape[:2]
    extra = {} if text is None else {"text": text}
    frame = inference.Frame(width=width, height=height, data=pixels.tobytes(), id=id, **extra)
    return framed(frame.SerializeToString())


def action(id: int, values: Mapping[str, Any] | None = None) -> Any:
    """The answer to a frame, an ``inference.Action``.

    Args:
        id: of the frame.
        values: keys, mouse_buttons, mouse_dx and mouse_dy; what is left out is neutral.
    """
    values = values or {}
    message = inference.Action(keys=sorted(set(values.get("keys", ()))), id=id)
    mouse = message.mouse_action
    mouse.buttons_down.extend(sorted(set(values.get("mouse_buttons", ()))))
    # being set, the submessage is there even when the mouse rests, as in the reference
    mouse.mouse_delta_px.x = round(values.get("mouse_dx", 0))
    mouse.mouse_delta_px.y = round(values.get("mouse_dy", 0))
    return message


def action_message(action: Any, error: str | None = None, dropped: int = 0) -> bytes:
    """An answer, framed to be sent.

    Args:
        action: of :func:`action`.
        error: what went wrong.
        dropped: frames that were superseded since the last answer.
    """
    action.error = error or ""
    action.dropped = min(dropped, 2**31 - 1)
    return framed(action.SerializeToString())
