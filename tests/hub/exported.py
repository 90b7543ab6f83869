"""What the tests of exported folders share: policies whose every value was moved, comparisons, ways to spoil."""

from __future__ import annotations

import json
import struct
import sys
from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file

from bczoo import (
    ActionDecoder,
    ActionSpace,
    BackboneHeads,
    BCPolicy,
    IndependentHeads,
)
from bczoo.cli import main
from bczoo.core.actions import Decision
from bczoo.core.errors import UserError

VARIANTS = {
    "reference": {},
    "backbone-heads-on-a-gamepad": {"decoder": BackboneHeads, "action_space": "gamepad"},
    "independent-heads-without-text": {"decoder": IndependentHeads, "text_dim": None, "thinking_tokens": 0},
    "sinks-and-grouped-queries": {
        "transformer": {"sinks": 2, "kv_heads": 2},
        "decoder": partial(ActionDecoder, layers=1, heads=4, sinks=1),
    },
    "history-per-layer": {"transformer": {"history": [1, None]}, "window": 3, "fps": 10.0, "resize": "box"},
    "two-image-tokens": {"encoder": {"tokens": 2, "stage": 2}, "thinking_tokens": 2, "z_loss": 0.0},
    "extra-keys": {"action_space": ActionSpace.keyboard_mouse(["r", "LeftControl"], max_keys=3).to_dict()},
    "channels-last-and-frozen": {"encoder": {"channels_last": True, "frozen": True, "drop_path": 0.2}},
}


@torch.no_grad()
def lived_in(policy: BCPolicy) -> BCPolicy:
    """The policy with every value of its state off where it began: running statistics and counters, too."""
    for value in policy.state_dict().values():
        value.add_((torch.rand_like(value) - 0.5) / 5 if value.is_floating_point() else 7)
    return policy.eval()


def played(policy: BCPolicy) -> list[Decision]:
    """Seven greedy steps: more than fit into a window of five."""
    batch, agent = tiny.tiny_batch(policy, steps=7, seed=1), policy.agent(greedy=True)
    texts = batch["text"][0] if "text" in batch else [None] * 7
    return [agent.step(f.numpy(), text=t) for f, t in zip(batch["frames"][0], texts, strict=True)]


def assert_same_play(one: BCPolicy, other: BCPolicy) -> None:
    """Equal decisions, and probabilities as close as weights that lie elsewhere in memory let them be."""
    atol = 1e-5 if next(one.parameters()).dtype == torch.float32 else 2e-2
    for a, b in zip(played(one), played(other), strict=True):
        assert a.ids == b.ids and a.values == b.values
        for name, p in a.probabilities.items():
            np.testing.assert_allclose(p, b.probabilities[name], atol=atol, rtol=0)


@torch.no_grad()
def logits(policy: BCPolicy) -> dict[str, torch.Tensor]:
    batch = tiny.tiny_batch(policy)
    return policy(batch["frames"], batch["actions"], batch.get("text"))


def assert_same_state(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Equal to the last bit, type included."""
    assert one.keys() == other.keys()
    differing = [k for k, v in one.items() if v.dtype != other[k].dtype or not torch.equal(v, other[k])]
    assert not differing


def files(folder: Path) -> dict[str, object]:
    """Everything below a folder, with rights, sizes and times of change."""
    found = {}
    for path in sorted(folder.rglob("*")):
        stat = path.lstat()
        found[str(path.relative_to(folder))] = (stat.st_mode, stat.st_size, stat.st_mtime_ns)
    return found


def checkpoint_of(policy: BCPolicy, path: Path) -> Path:
    """What the trainer writes of a policy."""
    trainer = L.Trainer(**tiny.QUIET)
    trainer.strategy.connect(policy)
    trainer.save_checkpoint(path)
    return path


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_refused(folder: Path, *said: str) -> str:
    """Loading ends in an error for users that names the place, and nothing is written anywhere around."""
    around = folder.parent
    before = files(around)
    with pytest.raises(UserError) as refused:
        BCPolicy.from_pretrained(folder)
    message = str(refused.value)
    assert str(folder) in message
    for words in said:
        assert words in message
    assert files(around) == before
    return message


def as_format_1(folder: Path) -> None:
    """Write a folder's config as format 1 had it: the arguments of a BCPolicy alone."""
    content = json.loads((folder / "config.json").read_text())
    content |= {"format_version": 1, "policy": content["policy"]["init_args"]}
    (folder / "config.json").write_text(json.dumps(content))


def spoil(folder: Path, where: str, value: object) -> None:
    """Set one entry of config.json, of either format: ``init_args.encoder.init_args.tokens``, ``policy.class_path``."""
    content = json.loads((folder / "config.json").read_text())
    *path, last = where.split(".")
    inner = content
    if path and path[0] == "init_args":
        inner = content["policy"] if content["format_version"] == 1 else content["policy"]["init_args"]
        path = path[1:]
    for key in path:
        inner = inner[int(key) if isinstance(inner, list) else key]
    inner[int(last) if isinstance(inner, list) else last] = value
    (folder / "config.json").write_text(json.dumps(content))


def bomb(opening: str, closing: str, depth: int) -> bytes:
    return ('{"format_version": 1, "policy": ' + opening * depth + "0" + closing * depth + "}").encode()


def rewrite(path: Path, change) -> None:
    """Change the header of a safetensors file and nothing else."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def ten_gigabytes(header: dict) -> None:
    header["tokens.no_text"] |= {"shape": [2_500_000_000]}
    start = header["tokens.no_text"]["data_offsets"][0]
    header["tokens.no_text"]["data_offsets"] = [start, start + 10_000_000_000]


def bczoo(*words: object) -> int:
    """The command line in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["bczoo", *map(str, words)])
        return main([str(word) for word in words])
