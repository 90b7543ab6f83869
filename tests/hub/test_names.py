"""Weights go out under names that stay, whatever was wrapped around the policy while it trained."""

from __future__ import annotations

import copy
import difflib
import re
from itertools import groupby
from pathlib import Path

import lightning as L
import pytest
import tiny
import torch
from exported import (
    assert_same_state,
    checkpoint_of,
    logits,
    weights_in,
)
from processes import several

from bczoo import (
    BCPolicy,
    FineTune,
    LoRA,
    RecordingDataModule,
    ResumableCheckpoint,
)
from bczoo.hub.state import read_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread", "offline")

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = GOLDEN / "state_dict_names.txt"
SIZES = ("150m", "300m", "600m", "1.2b", "tiny", "quickstart", "doom")


def entries(state: dict[str, torch.Tensor]) -> list[str]:
    """Names and shapes, equal blocks of the transformers as one: ``decoder.blocks.{0..2}.ffn.down.weight [32, 88]``."""
    rows = []
    for name, value in state.items():
        block = re.fullmatch(r"((?:transformer|decoder)\.blocks)\.(\d+)\.(.*)", name)
        stack, number, rest = (block[1], int(block[2]), block[3]) if block else (name, -1, "")
        rows.append((stack, rest, str(list(value.shape)), number))
    lines = []
    for (stack, rest, shape), same in groupby(sorted(rows), key=lambda row: row[:3]):
        numbers = [row[3] for row in same]
        if numbers == [-1]:
            lines.append(f"{stack} {shape}")
        else:
            assert numbers == list(range(numbers[0], numbers[-1] + 1))
            lines.append(f"{stack}.{{{numbers[0]}..{numbers[-1]}}}.{rest} {shape}")
    return sorted(lines)


def names_of_all_sizes() -> str:
    """The golden file: every entry under the sizes that have it."""
    owners: dict[str, list[str]] = {}
    for size in SIZES:
        with torch.device("meta"):
            policy = BCPolicy.from_config(size, pretrained=False)
        for line in entries(policy.state_dict()):
            owners.setdefault(line, []).append(size)
    sections: dict[str, list[str]] = {}
    for line, sizes in owners.items():
        sections.setdefault(", ".join(sizes), []).append(line)
    return "\n".join(f"# {sizes}\n" + "\n".join(sorted(lines)) + "\n" for sizes, lines in sections.items())


def test_names_and_shapes_of_every_size_stay():
    """Published weights are read by these names; a policy with others needs an upgrade of the format."""
    expected, found = NAMES.read_text().splitlines(), names_of_all_sizes().splitlines()
    difference = difflib.unified_diff(expected, found, str(NAMES.name), "this version", lineterm="", n=0)
    assert expected == found, "\n".join(difference)


def compiled_whole(policy):
    return torch.compile(policy)


def compiled_in_place(policy):
    policy.compile()
    return policy


def compiled_parts(policy):
    policy.transformer, policy.encoder.backbone = (
        torch.compile(policy.transformer),
        torch.compile(policy.encoder.backbone),
    )
    return policy


@pytest.mark.parametrize("wrapped", [compiled_whole, compiled_in_place, compiled_parts])
def test_compiled_policies_are_saved_under_plain_names(wrapped, plain, tmp_path):
    policy, folder = plain
    compiled = wrapped(copy.deepcopy(policy))
    saved = compiled.save_pretrained(tmp_path / "policy")
    assert_same_state(weights_in(saved), weights_in(folder))
    assert (saved / "config.json").read_text() == (folder / "config.json").read_text()
    if wrapped is not compiled_whole:
        checkpoint = read_checkpoint(checkpoint_of(compiled, tmp_path / "compiled.ckpt"))
        assert_same_state(checkpoint.state, weights_in(folder))


@pytest.mark.parametrize("compiled", [False, True])
def test_lora_is_merged_as_peft_would(compiled, plain, tmp_path):
    policy, folder = plain
    tuned = FineTune(str(folder), lora=LoRA(rank=2, alpha=3)).eval()
    expected = weights_in(folder)
    layers = {name: m for name, m in tuned.named_modules() if hasattr(m, "get_delta_weight")}
    assert len(layers) == 4 * len(tuned.transformer.blocks)
    with torch.no_grad():
        for name, layer in layers.items():
            for matrix in (layer.lora_A, layer.lora_B):
                matrix["default"].weight.normal_()
            expected[f"{name}.weight"] = expected[f"{name}.weight"] + layer.get_delta_weight("default")
    if compiled:
        tuned.transformer = torch.compile(tuned.transformer)
    before = {k: v.clone() for k, v in tuned.state_dict().items()}
    saved = tuned.save_pretrained(tmp_path / "policy")
    assert_same_state(tuned.state_dict(), before)
    checkpoint = read_checkpoint(checkpoint_of(tuned, tmp_path / "tuned.ckpt"))
    for merged in (weights_in(saved), checkpoint.state):
        assert merged.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(merged[name], value, atol=1e-6, rtol=0, msg=name)
    loaded = BCPolicy.from_pretrained(saved)
    assert type(loaded) is BCPolicy and loaded.config == policy.config
    if not compiled:
        for name, value in logits(tuned).items():
            torch.testing.assert_close(logits(loaded)[name], value, atol=1e-3, rtol=1e-4)


def test_two_processes_leave_a_checkpoint_with_plain_names(recordings, plain, tmp_path):
    policy = tiny.tiny_policy(encoder={"frame_size": 96})
    options = tiny.QUIET | {"enable_checkpointing": True, "callbacks": [ResumableCheckpoint(str(tmp_path))]}
    trainer = L.Trainer(max_steps=2, **several(2), limit_val_batches=0, **options)
    trainer.fit(policy, RecordingDataModule(root=str(recordings), batch_size=2))
    checkpoint = read_checkpoint(tmp_path / "last.ckpt")
    assert checkpoint.step == 2 and checkpoint.spec == policy.spec
    assert checkpoint.state.keys() == weights_in(plain[1]).keys()
    saved = policy.save_pretrained(tmp_path / "policy")
    assert_same_state(weights_in(saved), checkpoint.state)
    assert_same_state(BCPolicy.from_pretrained(tmp_path / "last.ckpt").state_dict(), checkpoint.state)


def write_names() -> None:
    NAMES.write_text(names_of_all_sizes())


if __name__ == "__main__":
    write_names()
