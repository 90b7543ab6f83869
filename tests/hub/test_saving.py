"""Exported folders: what goes out comes back bit by bit."""

from __future__ import annotations

import copy
import json
import re

import numpy as np
import pytest
import tiny
import torch
from exported import (
    VARIANTS,
    assert_same_play,
    assert_same_state,
    files,
    lived_in,
    logits,
    played,
)
from safetensors.torch import load_file

from bczoo import (
    BCPolicy,
)
from bczoo.core.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread", "offline")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_saved_comes_back(variant, dtype, tmp_path):
    policy = lived_in(tiny.tiny_policy(**VARIANTS[variant])).to(dtype)
    loaded = BCPolicy.from_pretrained(policy.save_pretrained(tmp_path / "policy"))
    assert not any(module.training for module in loaded.modules())
    assert loaded.config == policy.config and loaded.hparams == policy.hparams
    assert loaded.input_spec == policy.input_spec and loaded.layout == policy.layout
    assert_same_state(loaded.state_dict(), policy.state_dict())
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in policy.parameters()]
    assert_same_play(loaded, policy)
    aligned = copy.deepcopy(loaded)  # matrix products round by where a matrix lies; in the file it lies anywhere
    assert_same_state(logits(aligned), logits(policy))
    for name, expected in logits(policy).items():
        torch.testing.assert_close(logits(loaded)[name], expected, atol=2e-5 if dtype == torch.float32 else 0.1, rtol=0)
    for mine, theirs in zip(played(aligned), played(policy), strict=True):
        assert all(np.array_equal(p, mine.probabilities[name]) for name, p in theirs.probabilities.items())


def test_a_loaded_policy_learns_on(tmp_path):
    """Its weights are mapped from the file; training changes them in memory and never in the file."""
    folder = lived_in(tiny.tiny_policy()).save_pretrained(tmp_path / "policy")
    before = (folder / "model.safetensors").read_bytes()
    policy = BCPolicy.from_pretrained(folder).train()
    batch = tiny.tiny_batch(policy)
    sum(x.square().mean() for x in policy(batch["frames"], batch["actions"], batch["text"]).values()).backward()
    torch.optim.SGD(policy.parameters(), lr=0.1).step()
    moved = [
        k for k, v in load_file(folder / "model.safetensors").items() if not torch.equal(v, policy.state_dict()[k])
    ]
    assert len(moved) > 0.9 * len(policy.state_dict()) and (folder / "model.safetensors").read_bytes() == before


def test_types_on_the_way_in_and_out(tmp_path):
    policy = lived_in(tiny.tiny_policy())
    folder = policy.save_pretrained(tmp_path / "float32")
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        expected = copy.deepcopy(policy).to(dtype).state_dict()
        assert_same_state(BCPolicy.from_pretrained(folder, dtype=dtype).state_dict(), expected)
        saved = policy.save_pretrained(tmp_path / str(dtype), dtype)
        assert_same_state(BCPolicy.from_pretrained(saved).state_dict(), expected)
        assert_same_state(load_file(saved / "model.safetensors"), expected)
    assert all(p.dtype == torch.float32 for p in policy.parameters())
    rough = BCPolicy.from_pretrained(tmp_path / "torch.bfloat16", dtype=torch.float32)
    assert_same_state(rough.state_dict(), copy.deepcopy(policy).bfloat16().float().state_dict())


def test_a_folder_can_be_written_over_by_the_policy_that_is_mapped_from_it(tmp_path):
    """Also in other pieces; pieces that are left from before go."""
    policy = lived_in(tiny.tiny_policy())
    expected = {k: v.clone() for k, v in policy.state_dict().items()}
    folder = policy.save_pretrained(tmp_path / "policy", record={"license": "mit"})
    policies, pieces = [], []
    for size in ("5GB", 200_000, "100KB", 200_000, "5GB"):
        policies.append(BCPolicy.from_pretrained(folder))
        policies[-1].save_pretrained(folder, shard_size=size)
        weights = sorted(p.name for p in folder.iterdir() if p.name.startswith("model"))
        pieces.append(len(weights))
        if size == "5GB":
            assert weights == ["model.safetensors"]
        else:
            count = len(weights) - 1
            named = [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
            assert weights == [*named, "model.safetensors.index.json"]
        assert sorted(p.name for p in folder.iterdir() if p.name not in weights) == ["README.md", "config.json"]
    assert pieces[0] == 1 < pieces[1] < pieces[2] > pieces[3] == pieces[1]
    for loaded in [*policies, BCPolicy.from_pretrained(folder)]:
        assert_same_state(loaded.state_dict(), expected)
    assert [p.name for p in tmp_path.iterdir()] == ["policy"]


def test_pieces_and_one_file_load_the_same(tmp_path):
    policy = lived_in(tiny.tiny_policy())
    whole = BCPolicy.from_pretrained(policy.save_pretrained(tmp_path / "whole"))
    parts = BCPolicy.from_pretrained(policy.save_pretrained(tmp_path / "parts", shard_size=100_000))
    assert_same_state(parts.state_dict(), whole.state_dict())
    assert parts.config == whole.config
    assert_same_play(parts, whole)
    rough = BCPolicy.from_pretrained(tmp_path / "parts", dtype=torch.bfloat16)
    assert_same_state(rough.state_dict(), policy.bfloat16().state_dict())


def test_what_else_lies_in_the_folder_stays(tmp_path):
    folder = tmp_path / "policy"
    folder.mkdir()
    policy = tiny.tiny_policy()
    policy.save_pretrained(folder)  # an empty folder is as good as none
    (folder / "video").mkdir()
    own = {"notes.txt": b"mine", "video/play.mp4": b"moves", "model.onnx": b"x", "model-best.safetensors": b"y"}
    for name, content in own.items():
        (folder / name).write_bytes(content)
    policy.save_pretrained(folder, shard_size=200_000)
    policy.save_pretrained(folder)
    assert {name: (folder / name).read_bytes() for name in own} == own
    assert_same_state(BCPolicy.from_pretrained(folder).state_dict(), policy.state_dict())


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    for name in ("thesis/chapter.txt", "weights/model.safetensors"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"years of work")
    before = files(tmp_path)
    for target in ("thesis", "weights", ".", "thesis/chapter.txt", "thesis/chapter.txt/policy"):
        with pytest.raises(UserError, match=re.escape(str(tmp_path))):
            tiny.tiny_policy().save_pretrained(tmp_path / target)
    assert files(tmp_path) == before


def test_a_save_that_fails_leaves_what_was_there(tmp_path):
    folder = tiny.tiny_policy().save_pretrained(tmp_path / "policy")
    before = files(tmp_path)
    for name in ("policy", "new"):
        with pytest.raises(TypeError):
            tiny.tiny_policy(seed=1).save_pretrained(tmp_path / name, record={"not": {"json"}})
    assert files(tmp_path) == before
    assert_same_state(BCPolicy.from_pretrained(folder).state_dict(), tiny.tiny_policy().state_dict())


def test_the_card_is_named_after_the_folder(tmp_path, monkeypatch):
    for name, target in (("policy", "."), ("other", "../other/"), ("third", tmp_path / "third")):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        card = (tiny.tiny_policy().save_pretrained(target) / "README.md").read_text()
        assert f"\n# {name}\n" in card and f'from_pretrained("{name}")' in card


@pytest.mark.parametrize("shard_size", ["5GB", 200_000])
def test_who_may_read_the_config_may_read_the_weights(shard_size, tmp_path):
    folder = tiny.tiny_policy().save_pretrained(tmp_path / "policy", shard_size=shard_size, record={"license": "mit"})
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in folder.iterdir()}
    assert set(modes.values()) == {modes["config.json"]}, modes


def test_groups_of_any_name_are_saved_whole(tmp_path):
    """Names of action groups are the user's; they may look like what LoRA or compiling adds to names."""
    names = ("lora_lever", "base_layer", "keys_orig_mod", "module", "weight")
    space = {"name": "own", "groups": [{"kind": "switch", "name": n, "names": ["on"]} for n in names]}
    policy = lived_in(tiny.tiny_policy(action_space=space))
    loaded = BCPolicy.from_pretrained(policy.save_pretrained(tmp_path / "policy"))
    assert_same_state(loaded.state_dict(), policy.state_dict())


def test_imagenet_weights_are_no_matter_of_an_exported_policy(tmp_path):
    """Neither written nor asked for; the fixture above would notice a look at the network."""
    policy = tiny.tiny_policy()
    policy.encoder.init_args["pretrained"] = True  # as after training from ImageNet weights
    folder = policy.save_pretrained(tmp_path / "policy")
    content = json.loads((folder / "config.json").read_text())
    assert content["policy"]["init_args"]["encoder"]["init_args"]["pretrained"] is False
    assert set(content) == {"format_version", "library_name", "policy"} and content["library_name"] == "bczoo"
    content["policy"]["init_args"]["encoder"]["init_args"]["pretrained"] = True
    (folder / "config.json").write_text(json.dumps(content))
    loaded = BCPolicy.from_pretrained(folder)
    assert loaded.encoder.spec["init_args"]["pretrained"] is False
    assert_same_state(loaded.state_dict(), policy.state_dict())


def test_hidden_past_actions_are_saved_and_older_policies_see_theirs(tmp_path):
    for past_actions in (True, False):
        policy = tiny.tiny_policy(past_actions=past_actions).eval()
        policy.save_pretrained(tmp_path / str(past_actions))
        assert ("past_actions" in policy.config) != past_actions  # a config from before there was the choice has none
        loaded = BCPolicy.from_pretrained(tmp_path / str(past_actions))
        assert loaded.layout == policy.layout and loaded.layout.past_actions == past_actions
