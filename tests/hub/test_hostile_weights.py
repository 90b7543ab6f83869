"""Weights that may be anyone's: cut off, overlapping, of another policy, in pieces that lead elsewhere."""

from __future__ import annotations

import json
import shutil
import struct
from functools import partial
from pathlib import Path

import pytest
import torch
from exported import (
    assert_refused,
    bomb,
    rewrite,
    ten_gigabytes,
)
from safetensors.torch import load_file, save_file

from bczoo import (
    BCPolicy,
)

pytestmark = pytest.mark.usefixtures("one_thread", "offline")


def header_with(**entry: object):
    """Changes to the header's entry of one tensor."""
    return partial(rewrite, change=lambda header: header["tokens.no_text"].update(entry))


def with_length(length: int):
    return lambda path: path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])


def shifted(header: dict) -> None:
    """The tensor begins where another one lies."""
    other = header["tokens.text_position"]["data_offsets"]
    header["tokens.no_text"]["data_offsets"] = list(other)


def twice(path: Path) -> None:
    """The same name two times in the header."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    text = content[8 : 8 + length].replace(b'"tokens.no_text"', b'"tokens.text_position"')
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def rebuilt(change):
    """A whole and valid file of other tensors."""

    def spoil_weights(path: Path) -> None:
        state = load_file(path)
        change(state)
        path.unlink()  # some of the tensors are mapped from it
        save_file(state, path)

    return spoil_weights


WEIGHTS = {
    "nothing": lambda path: path.write_bytes(b""),
    "seven bytes": lambda path: path.write_bytes(b"1234567"),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "cut off in the header": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "longer than it says": lambda path: path.write_bytes(path.read_bytes() + b"0"),
    "header of 2**62 bytes": with_length(2**62),
    "header of 2**64 - 1 bytes": with_length(2**64 - 1),
    "header of 0 bytes": with_length(0),
    "header of 4 bytes": with_length(4),
    "header no JSON": lambda path: path.write_bytes(struct.pack("<Q", 8) + b"no json!"),
    "header a list": lambda path: path.write_bytes(struct.pack("<Q", 2) + b"[]"),
    "header a bomb": lambda path: path.write_bytes(struct.pack("<Q", 200_000) + b"[" * 200_000),
    "header without anything": lambda path: path.write_bytes(struct.pack("<Q", 2) + b"{}"),
    "offsets behind the end": header_with(data_offsets=[10**12, 10**12 + 128]),
    "offsets backwards": header_with(data_offsets=[128, 0]),
    "offsets below zero": header_with(data_offsets=[-128, 0]),
    "offsets of another length": header_with(data_offsets=[0, 64]),
    "overlapping": partial(rewrite, change=shifted),
    "ten gigabytes": partial(rewrite, change=ten_gigabytes),
    "shape beyond numbers": header_with(shape=[2**40, 2**40]),
    "shape below zero": header_with(shape=[-32]),
    "shape of words": header_with(shape=["32"]),
    "another shape": header_with(shape=[2, 16]),
    "unknown type": header_with(dtype="F33"),
    "whole numbers for a float": header_with(dtype="I32"),
    "small floats": rebuilt(lambda s: s.update({"tokens.no_text": s["tokens.no_text"].to(torch.float8_e4m3fn)})),
    "complex": rebuilt(lambda s: s.update({"tokens.no_text": s["tokens.no_text"].to(torch.complex64)})),
    "a float for a counter": rebuilt(
        lambda s: s.update({k: v.double() for k, v in s.items() if k.endswith("num_batches_tracked")})
    ),
    "one tensor less": rebuilt(lambda s: s.pop("tokens.no_text")),
    "one tensor more": rebuilt(lambda s: s.update({"transformer.blocks.2.ffn.down.weight": torch.zeros(3)})),
    "names with prefix": rebuilt(lambda s: s.update({f"module.{k}": s.pop(k) for k in list(s)})),
    "the same name twice": twice,
}


@pytest.mark.parametrize("weights", WEIGHTS)
def test_weights_that_are_not_whole_or_not_of_this_policy_are_refused(weights, folder):
    WEIGHTS[weights](folder / "model.safetensors")
    message = assert_refused(folder)
    assert "model.safetensors" in message or "config.json" in message


@pytest.fixture
def shards(folder):
    """A folder in pieces, and its index."""
    policy = BCPolicy.from_pretrained(folder)
    policy.save_pretrained(folder, shard_size=200_000)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    return folder, index


def write_index(folder: Path, index: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "name",
    [
        "../../model-00001-of-00004.safetensors",
        "../x.safetensors",
        "../policy/{first}",
        "./{first}",
        "sub/{first}",
        "sub\\{first}",
        "{absolute}",
        "{first}\n",
        "{first}\0",
        "\n{first}",
        "..",
        "",
        "config.json",
        "model.safetensors",
        "MODEL-00001-OF-00004.SAFETENSORS",
    ],
)
def test_pieces_lie_in_the_folder_under_their_own_names(name, shards):
    """Whatever the other name leads to holds the right weights, so that only the name is wrong."""
    folder, index = shards
    first = sorted(set(index["weight_map"].values()))[0]
    name = name.format(first=first, absolute=folder.parent / "x.safetensors")
    (folder / "sub").mkdir()
    for place in ("sub/" + first, "../x.safetensors", "../../model-00001-of-00004.safetensors"):
        shutil.copy(folder / first, folder / place)
    index["weight_map"] = {k: name if v == first else v for k, v in index["weight_map"].items()}
    write_index(folder, index)
    assert_refused(folder, "model.safetensors.index.json", repr(name))


def test_pieces_and_index_agree(shards):
    folder, good = shards
    names = sorted(set(good["weight_map"].values()))
    tensor = next(k for k, v in good["weight_map"].items() if v == names[0])
    other = next(k for k, v in good["weight_map"].items() if v == names[1])
    for told, wrong in (
        (tensor, {k: v for k, v in good["weight_map"].items() if k != tensor}),
        (tensor, good["weight_map"] | {tensor: names[1]}),
        ("surplus", good["weight_map"] | {"surplus": names[0]}),
        (other, good["weight_map"] | {other: names[0]}),
    ):
        write_index(folder, {"weight_map": wrong})
        assert_refused(folder, "index.json", told)
    for broken in ({}, {"weight_map": []}, {"weight_map": {tensor: 1}}, {"weight_map": {tensor: None}}, [], None):
        write_index(folder, broken)
        assert_refused(folder, "model.safetensors.index.json")
    for content in (bomb("[", "]", 400_000), b'{"weight_map": {"a": "' + b"a" * 50_000_000 + b'"}}', b""):
        (folder / "model.safetensors.index.json").write_bytes(content)
        assert_refused(folder, "model.safetensors.index.json")
    write_index(folder, good)
    BCPolicy.from_pretrained(folder)


def test_every_tensor_lies_in_one_piece(shards):
    folder, index = shards
    names = sorted(set(index["weight_map"].values()))
    first, second = load_file(folder / names[0]), load_file(folder / names[1])
    tensor = next(iter(first))

    def write(piece: str, state: dict) -> None:
        (folder / piece).unlink()
        save_file(state, folder / piece)

    write(names[1], second | {tensor: first[tensor] + 1})
    assert_refused(folder, tensor)
    write(names[1], second)
    BCPolicy.from_pretrained(folder)
    write(names[0], {k: v for k, v in first.items() if k != tensor})
    assert_refused(folder, tensor)
    write_index(folder, {"weight_map": {k: v for k, v in index["weight_map"].items() if k != tensor}})
    assert_refused(folder, tensor, "missing")
    (folder / names[0]).unlink()
    assert_refused(folder, names[0])
