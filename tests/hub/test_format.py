"""Folders of every format load for ever, and a newer one says what to do."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import tiny
import torch
from exported import (
    as_format_1,
    assert_same_state,
    files,
    lived_in,
)

import bczoo
from bczoo import (
    ActionDecoder,
    ActionSpace,
    BCPolicy,
)
from bczoo.core.errors import UserError
from bczoo.hub import folder as hub_folder

pytestmark = pytest.mark.usefixtures("one_thread", "offline")

GOLDEN = Path(__file__).parents[1] / "golden"
FORMAT_1, EXPECTED = GOLDEN / "format_1", GOLDEN / "format_1_expected.json"


def format_1_policy() -> BCPolicy:
    """What tests/golden/format_1 was saved from: options off their defaults, and weights that tell frames apart."""
    policy = lived_in(
        tiny.tiny_policy(
            encoder={"frame_size": 32, "tokens": 2},
            transformer={"width": 16, "layers": 1, "heads": 2, "kv_heads": 1, "sinks": 1, "history": [3]},
            decoder=partial(ActionDecoder, layers=1, heads=2, sinks=1),
            action_space=ActionSpace.keyboard_mouse(["r"], max_keys=3).to_dict(),
            text_dim=8,
            thinking_tokens=2,
            window=4,
            fps=10.0,
            resize="bilinear",
            z_loss=2e-4,
        )
    )
    with torch.no_grad():
        for name, value in policy.state_dict().items():
            if name.startswith(
                ("decoder.heads", "decoder.project", "encoder.norm", "tokens.text_projection", "action_embedding")
            ):
                value.mul_(5)
            elif name == "decoder.positions":
                value.div_(4)
    return policy


def format_1_outputs(policy: BCPolicy) -> dict:
    """Logits of a batch and greedy actions; frames, text and actions by formula."""
    size, space, steps = 32, policy.action_space, 6
    pixels, step = torch.arange(3 * size * size).view(1, 1, 3, size, size), torch.arange(steps).view(1, steps, 1, 1, 1)
    frames = (pixels * (17 + 10 * step) // (1 + 20 * step) % 251).to(torch.uint8)
    text = torch.sin(torch.arange(steps * 8.0)).view(1, steps, 8)
    text[:, ::3] = 0
    actions = {g.name: (torch.arange(steps * g.tokens) % g.choices).view(1, steps, g.tokens) for g in space.groups}
    with torch.no_grad():
        found = policy(frames, actions, text)
    agent = policy.agent(greedy=True)
    wide = frames[0].repeat_interleave(2, dim=-1)  # resized on the way
    ids = [agent.step(f.numpy(), text=t).ids for f, t in zip(wide, text[0], strict=True)]
    return {"logits": {k: v[0].tolist() for k, v in found.items()}, "ids": ids}


def test_a_folder_of_format_1_means_what_it_meant():
    expected = json.loads(EXPECTED.read_text())
    policy = BCPolicy.from_pretrained(FORMAT_1, dtype=torch.float32)
    found = format_1_outputs(policy)
    assert found["ids"] == expected["ids"]
    assert found["logits"].keys() == expected["logits"].keys()
    for name, values in expected["logits"].items():
        torch.testing.assert_close(torch.tensor(found["logits"][name]), torch.tensor(values), atol=1e-4, rtol=1e-4)
    assert json.loads((FORMAT_1 / "config.json").read_text())["format_version"] == 1
    assert {p.dtype for p in BCPolicy.from_pretrained(FORMAT_1).parameters()} == {torch.bfloat16}


def test_both_formats_are_the_same_policy(plain, tmp_path):
    policy, folder = plain
    former = Path(shutil.copytree(folder, tmp_path / "former"))
    as_format_1(former)
    loaded = bczoo.from_pretrained(former)
    assert type(loaded) is BCPolicy and loaded.spec == policy.spec
    assert_same_state(loaded.state_dict(), bczoo.from_pretrained(folder).state_dict())
    written = json.loads((loaded.save_pretrained(tmp_path / "again") / "config.json").read_text())
    assert written == {"format_version": 2, "library_name": "bczoo", "policy": policy.spec}


def test_the_repositorys_own_weights_are_of_format_1_and_load():
    """checkpoints/doom was exported when there was one family."""
    folder = Path(__file__).parents[2] / "checkpoints" / "doom"
    assert json.loads((folder / "config.json").read_text())["format_version"] == 1
    assert type(bczoo.from_pretrained(folder)) is BCPolicy


def test_older_formats_are_brought_up_step_by_step(monkeypatch):
    seen = []

    def wider(by):
        def upgrade(content):
            init_args = content["policy"]["init_args"]
            seen.append(init_args["window"])
            return content | {"policy": content["policy"] | {"init_args": init_args | {"window": by(seen[-1])}}}

        return upgrade

    before = files(FORMAT_1)
    monkeypatch.setattr(hub_folder, "FORMAT_VERSION", 3)
    monkeypatch.setattr(
        hub_folder, "UPGRADES", hub_folder.UPGRADES | {2: wider(lambda w: w + 3), 3: wider(lambda w: w * 2)}
    )
    assert BCPolicy.from_pretrained(FORMAT_1).input_spec.window == 4 + 3 and seen == [4]
    monkeypatch.setattr(hub_folder, "FORMAT_VERSION", 4)
    assert BCPolicy.from_pretrained(FORMAT_1).input_spec.window == (4 + 3) * 2 and seen == [4, 4, 7]
    assert files(FORMAT_1) == before


def test_the_format_is_written_and_a_newer_one_refused(plain, tmp_path, monkeypatch):
    monkeypatch.setattr(hub_folder, "FORMAT_VERSION", 3)
    monkeypatch.setattr(hub_folder, "UPGRADES", hub_folder.UPGRADES | {2: dict})
    folder = plain[0].save_pretrained(tmp_path / "policy")
    assert json.loads((folder / "config.json").read_text())["format_version"] == 3
    BCPolicy.from_pretrained(folder)
    monkeypatch.undo()
    assert hub_folder.FORMAT_VERSION == 2
    with pytest.raises(UserError, match=r"config\.json has format_version 3.* up to 2; pip install -U bczoo"):
        BCPolicy.from_pretrained(folder)


def write_format_1() -> None:
    """How tests/golden/format_1 was made. It stands for what others have uploaded, so it is not made anew."""
    format_1_policy().save_pretrained(FORMAT_1, torch.bfloat16, license="mit")
    found = format_1_outputs(BCPolicy.from_pretrained(FORMAT_1, dtype=torch.float32))
    EXPECTED.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    write_format_1()
