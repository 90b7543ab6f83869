"""Damage, drawn from a seed: to bytes, to protobuf fields, to kinds of files, to names.

Everything takes a :class:`random.Random` and does the same again when it is given the same one.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from bczoo.data.recording import ANNOTATION_FILE, OWN_ANNOTATOR, TOKENIZER
from bczoo.data.schema import annotation as pb

# ------------------------------------------------------------------------------------------------------- bytes


def _somewhere(rng: Random, data: bytes) -> tuple[int, int]:
    """Begin and end of a stretch; short ones are more likely, and so are those near the start, where headers are."""
    begin = rng.randrange(len(data) + 1) if rng.random() < 0.5 else rng.randrange(min(len(data), 300) + 1)
    return begin, min(begin + 2 ** rng.randrange(14), len(data))


def flipped(rng: Random, data: bytes) -> bytes:
    """One to eight bits are the other way round."""
    out = bytearray(data)
    for _ in range(2 ** rng.randrange(4)):
        if out:
            out[_somewhere(rng, data)[0] % len(out)] ^= 1 << rng.randrange(8)
    return bytes(out)


def cut(rng: Random, data: bytes) -> bytes:
    """Only the beginning is there, as after a copy that broke off."""
    return data[: _somewhere(rng, data)[0]]


def zeroed(rng: Random, data: bytes) -> bytes:
    """A stretch is zeros, as in blocks that a power cut left without content."""
    begin, end = _somewhere(rng, data)
    return data[:begin] + bytes(end - begin) + data[end:]


def scrambled(rng: Random, data: bytes) -> bytes:
    """A stretch is random."""
    begin, end = _somewhere(rng, data)
    return data[:begin] + rng.randbytes(end - begin) + data[end:]


def repeated(rng: Random, data: bytes) -> bytes:
    """A stretch comes twice."""
    begin, end = _somewhere(rng, data)
    return data[:end] + data[begin:]


def dropped(rng: Random, data: bytes) -> bytes:
    """A stretch is missing."""
    begin, end = _somewhere(rng, data)
    return data[:begin] + data[end:]


def emptied(rng: Random, data: bytes) -> bytes:
    """Nothing is left."""
    return b""


BYTES = (flipped, cut, zeroed, scrambled, repeated, dropped, emptied)


def damage(rng: Random, path: Path) -> str:
    """Damage the bytes of a file, which gets an inode of its own; returns what was done."""
    how, data = rng.choice(BYTES), path.read_bytes()
    path.unlink()
    path.write_bytes(how(rng, data))
    return f"{path.name} {how.__name__}"


# ---------------------------------------------------------------------------------------------- kinds of files


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        here = os.getcwd()
        os.chdir(path.parent)  # addresses of sockets are short
        listening.bind(path.name[:90])
        os.chdir(here)


KINDS: dict[str, Callable[[Path], Any]] = {
    "missing": lambda path: None,
    "directory": lambda path: path.mkdir(),
    "fifo": lambda path: os.mkfifo(path),
    "socket": _socket,
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "link loop": lambda path: path.symlink_to(path.name),
    "endless device": lambda path: path.symlink_to("/dev/zero"),
    "empty device": lambda path: path.symlink_to("/dev/null"),
    "link to a directory": lambda path: path.symlink_to("/tmp"),
}


def become(path: Path, kind: str) -> None:
    """Put something else in the place of a file or folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    KINDS[kind](path)


# -------------------------------------------------------------------------------------------------- names

NAMES = (
    b"not utf-8 \xff\xfe",
    b"x" * 255,
    b"\x1b[31mred\x07",
    b"two\nlines",
    b"-rf",
    b" ",
    "\u202eright to left \U0001f4a9".encode(),
    b"a'\"b;$(c)",
    b"..rec",
)


def rename(rng: Random, folder: Path) -> Path:
    """Give a folder a name that few people would; returns where it is now."""
    to = folder.with_name(os.fsdecode(rng.choice(NAMES)))
    return folder if to.exists() else folder.rename(to)


# ---------------------------------------------------------------------------------------------- protobuf fields

FLOATS = (float("nan"), float("inf"), -float("inf"), 1e30, -1e30, -1.0, 0.0, 1e-45, 3.4e38)
STRINGS = ("", "\x00", "\x1b[2J", "x" * 100_000, "\U0001f4a9", "two\nlines", "gemma", "bczoo", "w", "F12")


def _absurd(rng: Random, field: Any) -> Any:
    """A value of a scalar field's type that nobody expects."""
    if field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return rng.choice(FLOATS)
    if field.cpp_type == field.CPPTYPE_STRING:
        value = rng.choice(STRINGS)
        return value.encode() if field.type == field.TYPE_BYTES else value
    if field.cpp_type == field.CPPTYPE_BOOL:
        return rng.random() < 0.5
    bits = 32 if field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_UINT32) else 64
    if field.cpp_type in (field.CPPTYPE_UINT32, field.CPPTYPE_UINT64):
        return rng.choice((0, 1, 2**bits - 1))
    return rng.choice((0, -1, 2 ** (bits - 1) - 1, -(2 ** (bits - 1)), 10**9))


def corrupt(rng: Random, message: Any) -> None:
    """Give one field somewhere in a message an absurd value, or an absurd number of them."""
    present = [field for field, _ in message.ListFields()]
    field = rng.choice(present) if present and rng.random() < 0.75 else rng.choice(list(message.DESCRIPTOR.fields))
    if rng.random() < 0.1:
        message.ClearField(field.name)
        return
    value = getattr(message, field.name)
    is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
    if is_map:
        corrupt(rng, value[rng.choice([*value, *STRINGS[:4]])])
    elif field.message_type is None and field.is_repeated:
        value.extend([_absurd(rng, field)] * rng.choice((1, 3, 50_000)))
    elif field.message_type is None:
        setattr(message, field.name, _absurd(rng, field))
    elif field.is_repeated:
        if not value or rng.random() < 0.1:
            for _ in range(rng.choice((1, 3, 5_000))):
                value.add()
        corrupt(rng, value[rng.randrange(len(value))])
    else:
        corrupt(rng, value)


def _rewrite(folder: Path, change: Callable[[Any], Any]) -> None:
    message = pb.VideoAnnotation.FromString((folder / ANNOTATION_FILE).read_bytes())
    change(message)
    (folder / ANNOTATION_FILE).unlink()
    (folder / ANNOTATION_FILE).write_bytes(message.SerializeToString())


def _text(value: float, where: str) -> Callable[[Random, Path], None]:
    """Put a number into all instructions of a recording: as duration, or into embeddings."""

    def change(message: Any) -> None:
        for frame in message.frame_annotations:
            for text in frame.frame_text_annotation:
                if where == "duration":
                    text.duration = value
                else:
                    text.text_embedding_dict[OWN_ANNOTATOR].text_embeddings[TOKENIZER].values[1] = value

    return lambda rng, folder: _rewrite(folder, change)


def _action(change: Callable[[Any], Any]) -> Callable[[Random, Path], None]:
    return lambda rng, folder: _rewrite(folder, lambda message: change(message.frame_annotations[5].user_action))


def _video(folder: Path) -> Path:
    return next(path for path in folder.iterdir() if path.name != ANNOTATION_FILE)


def _on(which: str, change: Callable[[Random, Path], Any]) -> Callable[[Random, Path], Any]:
    """A change to one file of a recording."""
    return lambda rng, folder: change(rng, folder / ANNOTATION_FILE if which == "annotation" else _video(folder))


def _kind(kind: str) -> Callable[[Random, Path], Any]:
    return lambda rng, path: become(path, kind)


def _corrupt_some(rng: Random, folder: Path) -> None:
    _rewrite(folder, lambda message: [corrupt(rng, message) for _ in range(2 ** rng.randrange(4))])


RECORDINGS: dict[str, Callable[[Random, Path], Any]] = {
    **{f"duration of {v:g}": _text(v, "duration") for v in FLOATS},
    **{f"embedding of {v:g}": _text(v, "embedding") for v in FLOATS[:5]},
    "stick at nan": _action(lambda a: setattr(a.game_pad.left_stick, "x", float("nan"))),
    "mouse moves by 2**31 - 1": _action(lambda a: setattr(a.mouse.mouse_delta_px, "x", 2**31 - 1)),
    "100,000 keys": _action(lambda a: a.keyboard.keys.extend(map(str, range(100_000)))),
    "a key of 1 MB": _action(lambda a: a.keyboard.keys.append("x" * 1_000_000)),
    "nan frames per second": lambda rng, folder: _rewrite(
        folder, lambda m: setattr(m.metadata, "frames_per_second", float("nan"))
    ),
    "200,000 annotations": lambda rng, folder: _rewrite(
        folder, lambda m: [m.frame_annotations.add() for _ in range(200_000)]
    ),
    "odd fields": _corrupt_some,
    "annotation damaged": _on("annotation", damage),
    "video damaged": _on("video", damage),
    **{f"annotation is {kind}": _on("annotation", _kind(kind)) for kind in KINDS},
    **{f"video is {kind}": _on("video", _kind(kind)) for kind in KINDS},
    "video of size 0x0": _on("video", lambda rng, path: path.rename(path.with_name("0x0.mp4"))),
    "video of absurd size": _on("video", lambda rng, path: path.rename(path.with_name(f"{10**40}x{10**40}.mp4"))),
    "video is an annotation": lambda rng, folder: shutil.copy(folder / ANNOTATION_FILE, _video(folder)),
    "annotation is a video": lambda rng, folder: shutil.copy(_video(folder), folder / ANNOTATION_FILE),
    **{
        f"named {os.fsdecode(name[:20])!r}": lambda rng, folder, name=name: folder.rename(
            folder.with_name(os.fsdecode(name))
        )
        for name in NAMES
    },
}


def arrays_equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    """Whether two dicts hold the same arrays to the bit."""
    return one.keys() == other.keys() and all(
        a.dtype == other[k].dtype and a.shape == other[k].shape and a.tobytes() == other[k].tobytes()
        for k, a in one.items()
    )
