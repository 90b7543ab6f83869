"""The bytes on the socket: as in the reference, to the byte, and understood by those who know nothing of our fields."""

from __future__ import annotations

import random
import struct

import numpy as np
import pytest

from bczoo.data import schema
from bczoo.serve import wire
from bczoo.serve.client import _parse_answer

FRAME = bytes.fromhex("0b000000 0801 1001 1a03010203 2007")
ACTION = bytes.fromhex("19000000 0a0177 1007 1a12 0a0d 0803 10ffffffffffffffffff01 220130")
PICTURE = np.array([[[1, 2, 3]]], np.uint8)


def reference():
    """The messages as the reference client has them."""
    package = f"reference_{random.randrange(10**9)}"
    text = f"""
    package {package};
    import "shared.proto";
    message Frame {{
      int32 width = 1;
      int32 height = 2;
      bytes data = 3;
      int32 id = 4;
    }}
    message MouseAction {{
      oneof mouse_change {{
        shared.Vec2Int mouse_delta_px = 1;
        shared.Vec2Float mouse_pos = 2;
      }}
      shared.Vec2Int scroll_delta_px = 3;
      repeated string buttons_down = 4;
    }}
    message Action {{
      repeated string keys = 1;
      int32 id = 2;
      MouseAction mouse_action = 3;
    }}
    """
    return schema.build(text, f"{package}.proto")


def test_a_reference_frame_is_read_and_written_to_the_byte():
    frame = wire.parse_frame(FRAME[4:])
    assert wire.payload_length(FRAME[:4]) == 11
    assert (frame.id, frame.text) == (7, None)
    np.testing.assert_array_equal(frame.pixels, PICTURE)
    assert wire.frame_message(PICTURE, 7) == FRAME


def test_a_reference_action_is_read_and_written_to_the_byte():
    values = {"keys": ["w"], "mouse_buttons": ["0"], "mouse_dx": 3, "mouse_dy": -1}
    assert wire.action_message(wire.action(7, values)) == ACTION
    assert _parse_answer(ACTION[4:]) == (7, values, None, 0)


def test_a_resting_mouse_is_said_to_rest():
    """The submessages are there and empty, as in the reference."""
    assert wire.action_message(wire.action(7)) == bytes.fromhex("06000000 1007 1a02 0a00")
    assert _parse_answer(bytes.fromhex("1007 1a02 0a00")).values == {
        "keys": [],
        "mouse_buttons": [],
        "mouse_dx": 0,
        "mouse_dy": 0,
    }


def test_held_names_are_sorted_and_told_once():
    action = wire.action(1, {"keys": ["w", "Space", "w", "LeftShift"], "mouse_buttons": ["2", "0", "2"]})
    assert list(action.keys) == ["LeftShift", "Space", "w"]
    assert list(action.mouse_action.buttons_down) == ["0", "2"]


def test_a_reference_client_understands_every_answer():
    data = wire.action_message(wire.action(7, {"keys": ["w"], "mouse_dx": 3}), "something is wrong", 12)
    action = reference().Action.FromString(data[4:])
    assert (list(action.keys), action.id, action.mouse_action.mouse_delta_px.x) == (["w"], 7, 3)
    assert _parse_answer(data[4:])[2:] == ("something is wrong", 12)


def test_a_reference_server_understands_a_frame_with_text():
    frame = reference().Frame.FromString(wire.frame_message(PICTURE, 7, "go")[4:])
    assert (frame.width, frame.height, frame.data, frame.id) == (1, 1, b"\x01\x02\x03", 7)


@pytest.mark.parametrize("text", [None, "", "go to the door"])
def test_text_that_was_not_sent_differs_from_empty_text(text):
    assert wire.parse_frame(wire.frame_message(PICTURE, 7, text)[4:]).text == text


@pytest.mark.parametrize("shape", [(2, 5), (1, 1), (192, 192), (300, 100)])
def test_pixels_arrive_as_they_were_sent(shape):
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    np.testing.assert_array_equal(wire.parse_frame(wire.frame_message(picture, -1)[4:]).pixels, picture)


@pytest.mark.parametrize(
    "fields, told",
    [
        ({}, "at least 1 pixel, got 0 x 0"),
        ({"width": -1, "height": -1, "data": b"xxx"}, "at least 1 pixel, got -1 x -1"),
        ({"width": 2, "height": 0}, "got 2 x 0"),
        ({"width": 2, "height": 1, "data": b"xxx"}, "data has 3 bytes, but 2 x 1 pixels in RGB are 6"),
        ({"width": 1, "height": 1, "data": b"xxxx"}, "data has 4 bytes"),
        ({"width": 2**31 - 1, "height": 2**31 - 1, "data": b"xxx"}, "too large: a side has at most 16384"),
        ({"width": 16_385, "height": 1, "data": bytes(3 * 16_385)}, "too large"),
        ({"width": 1, "height": 1, "data": b"xxx", "text": "x" * 10_001}, "text has 10001 characters, at most 10000"),
    ],
)
def test_what_is_wrong_with_a_frame_is_told_with_its_id(fields, told):
    with pytest.raises(wire.FrameError, match=told) as failed:
        wire.parse_frame(schema.inference.Frame(id=5, **fields).SerializeToString())
    assert failed.value.id == 5


def test_a_length_is_unsigned_and_limited():
    assert wire.payload_length(struct.pack("<I", wire.LARGEST_MESSAGE)) == wire.LARGEST_MESSAGE
    with pytest.raises(wire.FramingError, match="4294967295 bytes is announced, the largest allowed is 33554432"):
        wire.payload_length(b"\xff\xff\xff\xff")


def test_any_bytes_are_a_frame_or_told_not_to_be():
    """Random and mutated payloads, 20,000 of them: no other exception."""
    rng = random.Random(0)
    good = wire.frame_message(PICTURE, 7, "go")[4:]
    seen = set()
    for _ in range(20_000):
        data = bytearray(good) if rng.random() < 0.7 else bytearray(rng.randbytes(rng.randrange(40)))
        for _ in range(rng.randrange(4)):
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            seen.add(type(wire.parse_frame(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.3 else data)))
        except (wire.FrameError, wire.FramingError) as error:
            seen.add(type(error))
    assert seen == {wire.Frame, wire.FrameError, wire.FramingError}
