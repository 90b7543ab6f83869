"""Published folders: what goes out comes back bit by bit, under names that stay, and nothing foreign gets in."""

from __future__ import annotations

import copy
import difflib
import json
import os
import pickle
import re
import shutil
import socket
import struct
import subprocess
import sys
from functools import partial
from itertools import groupby
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import tiny
import torch
from huggingface_hub import ModelCard, metadata_load
from recordings import write_moving
from safetensors.torch import load_file, save_file

from bczoo import (
    ActionDecoder,
    ActionSpace,
    BackboneHeads,
    BCPolicy,
    FineTune,
    IndependentHeads,
    LoRA,
    RecordingDataModule,
    ResumableCheckpoint,
)
from bczoo.cli import main
from bczoo.core.actions import Decision
from bczoo.core.errors import UserError
from bczoo.hub import folder as hub_folder
from bczoo.hub.state import read_checkpoint

GOLDEN = Path(__file__).parent / "golden"
NAMES, FORMAT_1, EXPECTED = GOLDEN / "state_dict_names.txt", GOLDEN / "format_1", GOLDEN / "format_1_expected.json"
SIZES = ("150m", "300m", "600m", "1.2b", "tiny", "quickstart", "doom")
SLOW = os.environ.get("BCZOO_SLOW") == "1"
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}
VARIANTS = {
    "published": {},
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


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The policies here are small: more threads would only wait for each other, the more with tests side by side."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Nothing here has a reason to look at the network; what tries is caught even if its error is swallowed."""
    tried = []

    def connect(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            tried.append(address)
            raise OSError("the network is not for these tests")
        return super(socket.socket, self).connect(address)

    def look_up(host, *rest, **more):
        tried.append(host)
        raise OSError("the network is not for these tests")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    yield
    assert not tried


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
    trainer = L.Trainer(**QUIET)
    trainer.strategy.connect(policy)
    trainer.save_checkpoint(path)
    return path


def python(code: str, **given: object) -> dict:
    """Runs code in a process of its own; it reads ``given`` and leaves its results in ``out``."""
    frame = f"import json, sys\ngiven, out = json.loads(sys.argv[1]), {{}}\n{code}\nprint(json.dumps(out))"
    run = subprocess.run(
        [sys.executable, "-c", frame, json.dumps(given, default=str)],
        env=os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


# ---------------------------------------------------------------------------------------------------- round trips


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


def test_imagenet_weights_are_no_matter_of_a_published_policy(tmp_path):
    """Neither written nor asked for; the fixture above would notice a look at the network."""
    policy = tiny.tiny_policy()
    policy.encoder.init_args["pretrained"] = True  # as after training from ImageNet weights
    folder = policy.save_pretrained(tmp_path / "policy")
    content = json.loads((folder / "config.json").read_text())
    assert content["policy"]["init_args"]["encoder"]["init_args"]["pretrained"] is False
    assert set(content) == {"format_version", "library_name", "policy"} and content["library_name"] == "bczoo"
    content["policy"]["encoder"]["init_args"]["pretrained"] = True
    (folder / "config.json").write_text(json.dumps(content))
    loaded = BCPolicy.from_pretrained(folder)
    assert loaded.encoder.spec["init_args"]["pretrained"] is False
    assert_same_state(loaded.state_dict(), policy.state_dict())


# ---------------------------------------------------------------------------------------------------- names


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


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A plain policy and its folder."""
    policy = lived_in(tiny.tiny_policy())
    return policy, policy.save_pretrained(tmp_path_factory.mktemp("plain") / "policy")


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


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
    options = QUIET | {"enable_checkpointing": True, "callbacks": [ResumableCheckpoint(str(tmp_path))]}
    trainer = L.Trainer(max_steps=2, devices=2, strategy="ddp_fork", limit_val_batches=0, **options)
    trainer.fit(policy, RecordingDataModule(root=str(recordings), batch_size=2))
    checkpoint = read_checkpoint(tmp_path / "last.ckpt")
    assert checkpoint.step == 2 and checkpoint.config == policy.config
    assert checkpoint.state.keys() == weights_in(plain[1]).keys()
    saved = policy.save_pretrained(tmp_path / "policy")
    assert_same_state(weights_in(saved), checkpoint.state)
    assert_same_state(BCPolicy.from_pretrained(tmp_path / "last.ckpt").state_dict(), checkpoint.state)


# ---------------------------------------------------------------------------------------------------- format


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


def test_older_formats_are_brought_up_step_by_step(monkeypatch):
    seen = []

    def to_2(content):
        seen.append(content["format_version"])
        policy = dict(content["policy"], window=content["policy"]["window"] + 3)
        return content | {"format_version": 2, "policy": policy}

    def to_3(content):
        seen.append(content["format_version"])
        return content | {
            "format_version": 3,
            "policy": dict(content["policy"], window=content["policy"]["window"] * 2),
        }

    before = files(FORMAT_1)
    monkeypatch.setattr(hub_folder, "FORMAT_VERSION", 2)
    monkeypatch.setattr(hub_folder, "UPGRADES", {1: to_2, 2: to_3})
    assert BCPolicy.from_pretrained(FORMAT_1).input_spec.window == 4 + 3 and seen == [1]
    monkeypatch.setattr(hub_folder, "FORMAT_VERSION", 3)
    assert BCPolicy.from_pretrained(FORMAT_1).input_spec.window == (4 + 3) * 2 and seen == [1, 1, 2]
    assert files(FORMAT_1) == before


def test_the_format_is_written_and_a_newer_one_refused(plain, tmp_path, monkeypatch):
    monkeypatch.setattr(hub_folder, "FORMAT_VERSION", 2)
    folder = plain[0].save_pretrained(tmp_path / "policy")
    assert json.loads((folder / "config.json").read_text())["format_version"] == 2
    BCPolicy.from_pretrained(folder)
    monkeypatch.undo()
    assert hub_folder.FORMAT_VERSION == 1
    with pytest.raises(UserError, match=r"config\.json has format_version 2.* up to 1; pip install -U bczoo"):
        BCPolicy.from_pretrained(folder)


# ---------------------------------------------------------------------------------------------------- hostile folders


@pytest.fixture
def folder(plain, tmp_path, monkeypatch):
    """A good folder to spoil, two levels down, and a working directory beside it."""
    (tmp_path / "deep" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "here")
    return Path(shutil.copytree(plain[1], tmp_path / "deep" / "policy"))


def assert_refused(folder: Path, *told: str) -> str:
    """Loading ends in an error for users that names the place, and nothing is written anywhere around."""
    around = folder.parent
    before = files(around)
    with pytest.raises(UserError) as refused:
        BCPolicy.from_pretrained(folder)
    message = str(refused.value)
    assert str(folder) in message
    for words in told:
        assert words in message
    assert files(around) == before
    return message


def spoil(folder: Path, where: str, value: object) -> None:
    """Set one entry of config.json: ``policy.encoder.init_args.tokens``."""
    content = json.loads((folder / "config.json").read_text())
    *path, last = where.split(".")
    inner = content
    for key in path:
        inner = inner[int(key) if isinstance(inner, list) else key]
    inner[int(last) if isinstance(inner, list) else last] = value
    (folder / "config.json").write_text(json.dumps(content))


def test_the_good_folder_is_good(folder):
    spoil(folder, "policy.window", 6)
    assert BCPolicy.from_pretrained(folder).input_spec.window == 6


RUN = {"command": "touch marker", "args": ["touch", "marker"], "shell": True}
CALLS = [
    (f"policy.{part}", {"class_path": call, "init_args": {name: RUN[name] for name in names}})
    for call, names in (("os.system", ["command"]), ("subprocess.Popen", ["args"]))
    for part in ("transformer", "encoder", "decoder", "text_encoder")
]
CONFIGS = [
    *CALLS,
    ("policy.decoder.class_path", "no_such_module.Decoder"),
    ("policy.decoder.class_path", "bczoo.ImageEncoder"),
    ("policy.decoder.class_path", "bczoo.hub.folder.PublishedFolder"),
    ("policy.encoder.class_path", "os.ImageEncoder"),
    ("policy.encoder.class_path", ["bczoo.ImageEncoder"]),
    ("policy.encoder.class_path", {"bczoo.ImageEncoder": 1}),
    ("policy.encoder", "bczoo.ImageEncoder"),
    ("policy.transformer", None),
    ("policy.transformer.init_args.init_args", {}),
    ("policy.encoder.init_args.width", 5),
    ("policy.encoder.init_args.backbone", "hf-hub:evil/model"),
    ("policy.encoder.init_args.backbone", "hf_hub:evil/model"),
    ("policy.encoder.init_args.backbone", "local-dir:/etc"),
    ("policy.encoder.init_args.backbone", "../../evil"),
    ("policy.encoder.init_args.backbone", "no_such_backbone"),
    ("policy.encoder.init_args.backbone", "eva02_enormous_patch14_clip_224"),
    ("policy.encoder.init_args.stage", 10**5),
    ("policy.encoder.init_args.frame_size", 10**6),
    ("policy.encoder.init_args.tokens", 10**6),
    ("policy.encoder.init_args.tokens", 0),
    ("policy.transformer.init_args.layers", 10**12),
    ("policy.transformer.init_args.layers", -1),
    ("policy.transformer.init_args.width", 10**6),
    ("policy.transformer.init_args.width", 10**12),
    ("policy.transformer.init_args.width", "32"),
    ("policy.transformer.init_args.width", 10**400),
    ("policy.transformer.init_args.heads", 0),
    ("policy.transformer.init_args.sinks", 10**6),
    ("policy.transformer.init_args.ffn_width", 10**6),
    ("policy.transformer.init_args.history", [1] * 10**5),
    ("policy.transformer.init_args.dropout", float("nan")),
    ("policy.text_dim", 10**6),
    ("policy.text_dim", -(10**12)),
    ("policy.thinking_tokens", 10**6),
    ("policy.thinking_tokens", -1),
    ("policy.window", 10**9),
    ("policy.window", 10**400),
    ("policy.window", 0),
    ("policy.window", [5]),
    ("policy.fps", float("inf")),
    ("policy.fps", -(10**400)),
    ("policy.z_loss", float("nan")),
    ("policy.resize", "__class__"),
    ("policy.action_space", "no_such_space"),
    ("policy.action_space", 5),
    ("policy.action_space.groups", []),
    ("policy.action_space.groups.0.name", "__class__"),
    ("policy.action_space.groups.0.name", "forward"),
    ("policy.action_space.groups.0.name", "training"),
    ("policy.action_space.groups.0.name", "_modules"),
    ("policy.action_space.groups.0.name", "a.b"),
    ("policy.action_space.groups.0.name", "mouse_dx"),
    ("policy.action_space.groups.0.name", 5),
    ("policy.action_space.groups.0.kind", "os.system"),
    ("policy.action_space.groups.0.kind", ["held"]),
    ("policy.action_space.groups.0.tokens", 10**6),
    ("policy.action_space.groups.0.tokens", -1),
    ("policy.action_space.groups.0.tokens", 4.5),
    ("policy.action_space.groups.0.names", []),
    ("policy.action_space.groups.2.edges", [float("nan")] * 22),
    ("policy.optimizer", {"class_path": "torch.optim.SGD"}),
    ("policy.pretrained", True),
    ("policy", {}),
    ("policy", ["transformer"]),
    ("policy", None),
    ("format_version", None),
    ("format_version", True),
    ("format_version", "1"),
    ("format_version", 1.0),
    ("format_version", 0),
    ("format_version", 10**400),
]


def short(value: object) -> str:
    return value.replace("policy.", "") if isinstance(value, str) else str(value)[:30]


@pytest.mark.parametrize(("where", "value"), CONFIGS, ids=short)
def test_configs_that_describe_no_policy_are_refused(where, value, folder):
    loaded = {name.partition(".")[0] for name in sys.modules}
    spoil(folder, where, value)
    assert_refused(folder, "config.json")
    assert {name.partition(".")[0] for name in sys.modules} == loaded  # nothing was imported for it
    assert not Path("marker").exists()


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("policy.transformer.init_args.layers", 10**4),
        ("policy.action_space.groups", [{"kind": "switch", "name": f"g{i}", "names": ["a"]} for i in range(9_000)]),
    ],
    ids=["layers", "groups"],
)
def test_a_policy_without_end_is_not_built_to_its_end(where, value, folder):
    spoil(folder, where, value)
    assert_refused(folder, "config.json", "parameter tensors")


def bomb(opening: str, closing: str, depth: int) -> bytes:
    return ('{"format_version": 1, "policy": ' + opening * depth + "0" + closing * depth + "}").encode()


CONTENTS = {
    "nothing": b"",
    "no JSON": b"transformer: {}",
    "half": b'{"format_version": 1, "policy": {',
    "null": b"null",
    "a list": b'[{"format_version": 1}]',
    "no text": b"\xff\xfe\x00",
    "a pickle": pickle.dumps({"format_version": 1}),
    "many digits": b'{"format_version": 1, "policy": {"window": ' + b"9" * 5000 + b"}}",
    # between the depths that Python's JSON takes and those that Python's functions take; it differs by version
    **{f"{depth} lists deep": bomb("[", "]", depth) for depth in (900, 1500, 4000, 400_000)},
    **{f"{depth} objects deep": bomb('{"a": ', "}", depth) for depth in (900, 1500, 4000, 400_000)},
    "50 MB": b'{"format_version": 1, "policy": {"transformer": "' + b"a" * 50_000_000 + b'"}}',
    "50 MB of blanks": b'{"format_version": 1, "policy": {}' + b" " * 50_000_000 + b"}",
}


@pytest.mark.parametrize("content", CONTENTS)
def test_configs_that_cannot_be_read_are_refused(content, folder):
    (folder / "config.json").write_bytes(CONTENTS[content])
    assert_refused(folder, "config.json", "larger than" if content.startswith("50 MB") else "")


def test_what_is_no_policy_says_what_it_lacks(folder):
    (folder / "config.json").rename(folder / "konfig.json")
    assert_refused(folder, "config.json")
    (folder / "konfig.json").rename(folder / "config.json")
    (folder / "model.safetensors").unlink()
    assert_refused(folder, "model.safetensors")
    (folder / "model.safetensors").mkdir()
    assert_refused(folder, "model.safetensors")


def test_a_module_that_lies_around_is_not_imported(tmp_path, monkeypatch):
    """A part is known once the user imports it, and not because a config names it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    code = "from pathlib import Path\nfrom bczoo import IndependentHeads\nPath('marker').touch()\n"
    (tmp_path / "lies_around.py").write_text(code + "class Heads(IndependentHeads):\n    pass\n")
    policy = lived_in(tiny.tiny_policy(decoder=IndependentHeads))
    folder = policy.save_pretrained(tmp_path / "policy")
    spoil(folder, "policy.decoder.class_path", "lies_around.Heads")
    assert_refused(folder, "config.json", "lies_around.Heads", "must be imported")
    assert "lies_around" not in sys.modules and not Path("marker").exists()
    import lies_around

    loaded = BCPolicy.from_pretrained(folder)
    assert type(loaded.decoder) is lies_around.Heads and Path("marker").exists()
    assert_same_state(loaded.state_dict(), policy.state_dict())
    assert BCPolicy.from_pretrained(loaded.save_pretrained(tmp_path / "again")).config == loaded.config


def rewrite(path: Path, change) -> None:
    """Change the header of a safetensors file and nothing else."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def header_with(**entry: object):
    """Changes to the header's entry of one tensor."""
    return partial(rewrite, change=lambda header: header["tokens.no_text"].update(entry))


def with_length(length: int):
    return lambda path: path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])


def shifted(header: dict) -> None:
    """The tensor begins where another one lies."""
    other = header["tokens.text_position"]["data_offsets"]
    header["tokens.no_text"]["data_offsets"] = list(other)


def ten_gigabytes(header: dict) -> None:
    header["tokens.no_text"] |= {"shape": [2_500_000_000]}
    start = header["tokens.no_text"]["data_offsets"][0]
    header["tokens.no_text"]["data_offsets"] = [start, start + 10_000_000_000]


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


class Touch:
    """A pickle that writes a file when it is read."""

    def __reduce__(self):
        return os.system, ("touch marker",)


@pytest.mark.parametrize("kind", ["zip", "old", "pickle", "in the weights"])
def test_pickles_are_not_executed(kind, folder, tmp_path):
    checkpoint = {"state_dict": {"a": torch.zeros(2)}, "hyper_parameters": {"transformer": {}}, "x": Touch()}
    path = tmp_path / "evil.ckpt"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Touch()))
    else:
        content = {"state_dict": {"a": Touch()}} if kind == "in the weights" else checkpoint
        torch.save(content, path, _use_new_zipfile_serialization=kind != "old")
    before = files(tmp_path)
    with pytest.raises(UserError, match=re.escape(str(path))):
        BCPolicy.from_pretrained(path)
    assert files(tmp_path) == before
    for name in ("model.safetensors", "config.json"):
        shutil.copy(path, folder / name)
        assert_refused(folder, name)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    shutil.copy(FORMAT_1 / "config.json", folder / "config.json")
    write_index(folder, {"weight_map": {"a": "model-00001-of-00001.safetensors"}})
    assert_refused(folder, "model-00001-of-00001.safetensors")
    assert not list(tmp_path.rglob("marker"))


def with_hyper_parameters(**changes):
    return lambda good: good | {"hyper_parameters": good["hyper_parameters"] | changes}


def holding_itself() -> list:
    ring: list = []
    ring.append(ring)
    return ring


def sparse(good: dict) -> dict:
    return good | {"state_dict": {k: v.to_sparse() if v.ndim == 2 else v for k, v in good["state_dict"].items()}}


CHECKPOINTS = {
    "a list": lambda good: [good],
    "nothing": lambda good: {},
    "hyperparameters a number": lambda good: good | {"hyper_parameters": 5},
    "hyperparameters a list": lambda good: good | {"hyper_parameters": ["transformer"]},
    "hyperparameters a word": lambda good: good | {"hyper_parameters": "transformer"},
    "os.system": with_hyper_parameters(decoder={"class_path": "os.system", "init_args": {"command": "touch marker"}}),
    "unknown argument": with_hyper_parameters(unknown=1),
    "wrong type": with_hyper_parameters(fps="fast"),
    "wrong size": with_hyper_parameters(text_dim=17),
    "no weights": lambda good: good | {"state_dict": {}},
    "weights a list": lambda good: good | {"state_dict": [torch.zeros(2)]},
    "weights of words": lambda good: good | {"state_dict": dict.fromkeys(good["state_dict"], "weight")},
    "sparse weights": sparse,
    "steps a word": lambda good: good | {"global_step": "many"},
    "a list that holds itself": with_hyper_parameters(window=holding_itself()),
}


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize("spoilt", CHECKPOINTS)
def test_checkpoints_that_are_no_policy_are_refused(spoilt, plain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = checkpoint_of(copy.deepcopy(plain[0]), tmp_path / "policy.ckpt")
    torch.save(CHECKPOINTS[spoilt](torch.load(path, weights_only=True)), path)
    before = files(tmp_path)
    with pytest.raises(UserError, match=re.escape(str(path))):
        BCPolicy.from_pretrained(path)
    assert files(tmp_path) == before


def test_checkpoints_that_were_damaged_are_refused(plain, tmp_path):
    path = checkpoint_of(copy.deepcopy(plain[0]), tmp_path / "policy.ckpt")
    good = path.read_bytes()
    start = good.index(b"data.pkl") + 8
    end = good.index(b"PK\x03\x04", start)
    pickled = good.index(b"\x80\x02", start)
    damaged = [b"", good[:1000], good[: len(good) // 2], good[:pickled] + b"." * (end - pickled) + good[end:]]
    rng = np.random.default_rng(0)
    for _ in range(20):
        content = np.frombuffer(good, np.uint8).copy()
        content[rng.integers(pickled, end, 20)] = rng.integers(0, 256, 20)
        damaged.append(content.tobytes())
    for content in damaged:
        path.write_bytes(content)
        try:
            BCPolicy.from_pretrained(path)
        except UserError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        bomb("[", "]", 400_000),
        b'{"play": {"doom": {}}}',
        b'{"metrics": 5}',
        b'{"metrics": {"step": 1, "val/loss": 1' + b"0" * 400 + b"}}",
        b'{"init_from": 5}',
    ],
    ids=["half", "list", "bomb", "play", "metrics", "number", "source"],
)
def test_a_broken_record_is_told_and_does_not_keep_a_policy_from_playing(
    content, folder, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(sys, "argv", ["bczoo"])
    (folder / "training.json").write_bytes(content)
    BCPolicy.from_pretrained(folder)
    assert main(["export", str(folder), str(tmp_path / "out")]) == 1
    assert "training.json" in capsys.readouterr().err and not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------------- memory

needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
# resource.getrusage would count what the parent held when it forked
PEAK = """
import re, socket
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
tried = []
def refuse(*a, **k):
    tried.append(str(a))
    raise OSError("no network")
socket.socket.connect = socket.getaddrinfo = refuse
import torch, bczoo
from bczoo import BCPolicy
from bczoo.core.errors import UserError
BCPolicy.from_pretrained(given["small"])
before = peak()
"""


@needs_proc
def test_what_a_hostile_policy_claims_takes_no_memory(plain, tmp_path):
    def spoilt(name: str) -> Path:
        return Path(shutil.copytree(plain[1], tmp_path / name))

    rewrite(spoilt("header of 10 GB") / "model.safetensors", ten_gigabytes)
    for where, value in (("layers", 50), ("width", 10**6), ("ffn_width", 10**6), ("sinks", 10**6)):
        config = spoilt(f"config of {where}")
        spoil(config, f"policy.transformer.init_args.{where}", value)
        if where == "layers":
            spoil(config, "policy.transformer.init_args.width", 4096)  # 40 GB of weights
    spoil(spoilt("config of tokens"), "policy.encoder.init_args.tokens", 10**6)
    spoil(spoilt("config of a backbone"), "policy.encoder.init_args.backbone", "convnext_xxlarge")
    many = ",".join(f'"{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(800_000))
    header = f"{{{many}}}".encode()
    (spoilt("header of many") / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    both = spoilt("header and config")
    spoil(both, "policy.text_dim", 10**6)
    rewrite(
        both / "model.safetensors",
        lambda header: header["tokens.text_projection.weight"].update(shape=[32, 10**6]),
    )
    with torch.device("meta"):
        large = large_policy()
    good = torch.load(checkpoint_of(copy.deepcopy(plain[0]), tmp_path / "good.ckpt"), weights_only=True)
    # a number that is said to fill a matrix; two vectors whose product is one
    filled = {k: torch.zeros((), dtype=v.dtype).expand(v.shape) for k, v in large.state_dict().items()}
    torch.save(good | {"hyper_parameters": large.config, "state_dict": filled}, tmp_path / "filled.ckpt")
    vectors = {"base_layer": torch.zeros(1), "lora_A.default": torch.zeros(1, 12_000)}
    vectors |= {"lora_B.default": torch.zeros(12_000, 1)}
    product = good["state_dict"] | {f"transformer.more.{k}.weight": v for k, v in vectors.items()}
    torch.save(good | {"state_dict": product, "bczoo_lora_scale": 1.0}, tmp_path / "product.ckpt")
    code = """
for path in given["hostile"]:
    before = peak()
    try:
        BCPolicy.from_pretrained(path)
        out[path] = ["loaded", 0]
    except UserError as error:
        out[path] = [str(error), 0]
    out[path][1] = peak() - before
"""
    hostile = sorted(p for p in tmp_path.iterdir() if p.name != "good.ckpt")
    out = python(PEAK + code, small=plain[1], hostile=hostile)
    assert len(out) == len(hostile) == 11
    for path, (message, _) in out.items():
        assert path in message
    grown = {Path(path).name: size for path, (_, size) in out.items()}
    assert sum(grown.values()) < 300_000_000, grown


def save_large(folder: Path, policy) -> int:
    """Saves a policy whose weights were never written to, so that making it is quick; bytes of the weights."""
    with torch.device("meta"):
        policy = policy()
    policy = policy.to_empty(device="cpu").eval()
    with torch.no_grad():
        for name, value in policy.state_dict().items():
            if name.startswith(("encoder", "tokens")):
                value.fill_(1)
    policy.save_pretrained(folder)
    return sum(p.stat().st_size for p in folder.glob("*.safetensors"))


def large_policy():
    return tiny.tiny_policy(transformer={"width": 1024, "layers": 6, "heads": 8})


LOAD = """
policy = BCPolicy.from_pretrained(given["folder"])
out["built"] = peak() - before
for value in policy.state_dict().values():
    value.flatten()[::500].sum()  # reads every page of 4096 bytes
out["read"], out["tried"], out["devices"] = peak() - before, tried, sorted({p.device.type for p in policy.parameters()})
"""


@needs_proc
@pytest.mark.parametrize(
    "policy",
    [
        large_policy,
        pytest.param(
            partial(BCPolicy.from_config, "1.2b", pretrained=False),
            marks=[pytest.mark.slow, pytest.mark.skipif(not SLOW, reason="6 GB; set BCZOO_SLOW=1")],
            id="1.2b",
        ),
    ],
)
def test_loading_takes_the_memory_of_the_weights_once(policy, plain, tmp_path):
    """Weights are mapped; after every page of them was read, as much is resident as the file has, and little more."""
    size = save_large(tmp_path / "large", policy)
    assert size > 400_000_000
    out = python(PEAK + LOAD, small=plain[1], folder=tmp_path / "large")
    shutil.rmtree(tmp_path / "large")
    print(f"{size:,} bytes of weights; resident after loading {out['built'] / size:.3f}, read {out['read'] / size:.3f}")
    assert out["tried"] == [] and out["devices"] == ["cpu"]
    assert out["built"] < 0.25 * size
    assert 0.9 * size < out["read"] < 1.25 * size


# ---------------------------------------------------------------------------------------------------- export


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    return write_moving(tmp_path_factory.mktemp("recordings"), 4, 40)


def bczoo(*words: object) -> int:
    """The command line in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["bczoo", *map(str, words)])
        return main([str(word) for word in words])


@pytest.fixture(scope="module")
def runs(recordings, tmp_path_factory):
    """Three runs in the same place: three steps, the last one not validated any more, then four, and other four."""
    here = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        for seed, (steps, kept) in enumerate([(3, "first"), (4, "second"), (4, "third")]):
            assert bczoo(
                "fit", "--config", "tiny", "--seed_everything", seed, "--data.root", recordings, "--data.batch_size", 2,
                "--data.val_fraction", 0.5, "--trainer.max_steps", steps,
                "--trainer.val_check_interval", 2, "--trainer.limit_val_batches", 2,
                "--trainer.num_sanity_val_steps", 0, "--trainer.accelerator", "cpu", "--trainer.logger", "false",
                "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false",
            ) == 0  # fmt: skip
            shutil.copytree("runs/tiny", kept)
    return here


def exported(folder: Path) -> tuple[str, dict, dict]:
    """The card's text and head, and the record."""
    card = folder / "README.md"
    record = folder / "training.json"
    head = metadata_load(card)
    assert head == ModelCard.load(card).data.to_dict() and head["library_name"] == "bczoo"
    return card.read_text(), head, json.loads(record.read_text()) if record.exists() else {}


def cell(key: str, record: dict) -> str:
    return f"| `{key}` | {record['metrics'][key]:.4f} |"


def test_a_run_is_exported_with_its_numbers(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    out = tmp_path / "my-policy"
    assert bczoo("export", "second", out, "--license", "mit", "--flaws", '["It only walks."]') == 0
    assert str(out) in capsys.readouterr().out
    checkpoint = read_checkpoint(runs / "second" / "checkpoints" / "last.ckpt")
    policy = BCPolicy.from_pretrained(out)
    assert_same_state(policy.state_dict(), checkpoint.state)
    assert policy.config == BCPolicy.from_pretrained(runs / "second").config
    text, head, record = exported(out)
    known = json.loads((runs / "second" / "record.json").read_text())
    assert record == known | {"license": "mit", "flaws": ["It only walks."]}
    metrics = [k for k in known["metrics"] if k != "step"]
    assert "val/loss" in metrics and "val/perplexity/keys" in metrics and len(metrics) > 8
    assert all(cell(k, known) in text for k in metrics)
    assert "not on these weights" not in text and "4 steps in" in text
    for what, count in policy.parameter_counts().items():
        assert f"{count:,}" in text, what
    assert text.splitlines().count("# my-policy") == 1 and "mit" in text and "- It only walks." in text
    assert head["license"] == "mit" and "bczoo" in head["tags"] and "model-index" not in head
    for number in re.findall(r"[\d,]{6,} parameters", text):
        assert number == f"{policy.parameter_counts()['total']:,} parameters"


def test_a_checkpoint_is_exported_by_its_path_and_in_another_type(runs, tmp_path):
    path = runs / "second" / "checkpoints" / "last.ckpt"
    assert bczoo("export", path, tmp_path / "policy", "--dtype", "bfloat16") == 0
    stored = weights_in(tmp_path / "policy")
    expected = {k: v.bfloat16() if v.is_floating_point() else v for k, v in read_checkpoint(path).state.items()}
    assert_same_state(stored, expected)
    text, head, record = exported(tmp_path / "policy")
    assert record == json.loads((runs / "second" / "record.json").read_text())
    assert "saved as bfloat16" in text and "measured before the weights were rounded" in text
    assert "license" not in head and "No licence was stated" in text
    assert bczoo("export", tmp_path / "policy", tmp_path / "again", "--license", "cc-by-4.0") == 0  # a folder, too
    assert_same_state(weights_in(tmp_path / "again"), expected)
    assert exported(tmp_path / "again")[1]["license"] == "cc-by-4.0"


def test_numbers_of_an_earlier_step_say_so(runs, tmp_path):
    """The first run ended at step 3 and was last validated at step 2."""
    assert bczoo("export", runs / "first", tmp_path / "policy") == 0
    text, _, record = exported(tmp_path / "policy")
    assert record["training"]["steps"] == 3 and record["metrics"]["step"] == 2
    assert cell("val/loss", record) in text and "measured at step 2 of 3, not on these weights" in text


@pytest.mark.parametrize("interrupted", [False, True])
def test_numbers_of_another_checkpoint_say_so(interrupted, runs, tmp_path):
    """A checkpoint of step 3 beside the record of a run of four: an earlier run's, or that of a run not yet ended."""
    run = Path(shutil.copytree(runs / "second", tmp_path / "run"))
    (kept,) = (run / "checkpoints").glob("before-*.ckpt")
    if interrupted:
        kept.replace(run / "checkpoints" / "last.ckpt")
    source = run if interrupted else kept
    assert bczoo("export", source, tmp_path / "policy") == 0
    text, _, record = exported(tmp_path / "policy")
    assert "4 steps in" not in text
    if record.get("metrics"):
        assert "measured at step 4 of 3, not on these weights" in text


def test_numbers_of_another_run_are_not_taken_for_those_of_a_kept_checkpoint(runs, tmp_path):
    """The third run has as many steps as the second one, whose checkpoint it kept."""
    (kept,) = (p for p in (runs / "third" / "checkpoints").glob("before-*.ckpt") if read_checkpoint(p).step == 4)
    assert_same_state(read_checkpoint(kept).state, read_checkpoint(runs / "second" / "checkpoints" / "last.ckpt").state)
    assert bczoo("export", kept, tmp_path / "policy") == 0
    text, _, _ = exported(tmp_path / "policy")
    theirs = json.loads((runs / "third" / "record.json").read_text())
    assert theirs["metrics"]["step"] == 4
    assert cell("val/loss", theirs) not in text or "not on these weights" in text


def test_returns_in_play_are_shown_for_the_weights_they_were_measured_on(runs, tmp_path):
    run = Path(shutil.copytree(runs / "second", tmp_path / "run"))
    record = json.loads((run / "record.json").read_text())
    players = {
        name: {"mean": mean, "low": mean - 1, "high": mean + 1, "episodes": 10}
        for name, mean in (("policy", 123.456), ("expert", 200.0))
    }
    for step, mine in ((4, True), (3, False)):
        record["play"] = {"doom/basic": {"seed": 1000, "step": step, "players": players}}
        (run / "record.json").write_text(json.dumps(record))
        assert bczoo("export", run, tmp_path / f"at-{step}") == 0
        text, head, _ = exported(tmp_path / f"at-{step}")
        assert "| policy | 123.5 | 122.5 to 124.5 | 10 |" in text and "| expert | 200.0 |" in text
        assert ("measured at step 3 of 4, not on these weights" in text) != mine
        assert ("model-index" in head) == mine
    (result,) = ModelCard.load(tmp_path / "at-4" / "README.md").data.eval_results
    assert (result.dataset_name, result.metric_value) == ("doom/basic", 123.46)


def test_a_run_without_a_record_is_exported_without_numbers(runs, tmp_path):
    run = Path(shutil.copytree(runs / "second", tmp_path / "run"))
    (run / "record.json").unlink()
    assert bczoo("export", run, tmp_path / "policy", "--license", "mit") == 0
    text, head, record = exported(tmp_path / "policy")
    assert "Nothing was measured" in text and "val/" not in text and "## Training" not in text
    assert head["license"] == "mit" and record == {"license": "mit"}


def test_a_merged_lora_run_is_exported_as_a_plain_policy(plain, tmp_path):
    tuned = FineTune(str(plain[1]), lora=LoRA(rank=2))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    checkpoint_of(tuned, tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert bczoo("export", tmp_path / "run", tmp_path / "policy") == 0
    tuned.save_pretrained(tmp_path / "direct")
    stored = weights_in(tmp_path / "policy")
    assert_same_state(stored, weights_in(tmp_path / "direct"))
    moved = {k for k, v in weights_in(plain[1]).items() if not torch.equal(stored[k], v)}
    assert moved == {
        k for k in stored if re.fullmatch(r"transformer\.blocks\.\d\.\w+\.(qkv|out|gate_up|down)\.weight", k)
    }


@pytest.mark.parametrize("source", ["nowhere", "empty", "thesis.txt"])
def test_what_cannot_be_exported_is_told_in_one_line(source, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("thesis.txt").write_text("years of work")
    before = files(tmp_path)
    assert bczoo("export", source, "out") == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("bczoo: ") and source in line
    assert files(tmp_path) == before


def write_names() -> None:
    NAMES.write_text(names_of_all_sizes())


def write_format_1() -> None:
    """How tests/golden/format_1 was made. It stands for what others have published, so it is not made anew."""
    format_1_policy().save_pretrained(FORMAT_1, torch.bfloat16, license="mit")
    found = format_1_outputs(BCPolicy.from_pretrained(FORMAT_1, dtype=torch.float32))
    EXPECTED.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    {"names": write_names, "format_1": write_format_1}[sys.argv[1]]()


def test_hidden_past_actions_are_saved_and_older_policies_see_theirs(tmp_path):
    for past_actions in (True, False):
        policy = tiny.tiny_policy(past_actions=past_actions).eval()
        policy.save_pretrained(tmp_path / str(past_actions))
        assert ("past_actions" in policy.config) != past_actions  # a config from before there was the choice has none
        loaded = BCPolicy.from_pretrained(tmp_path / str(past_actions))
        assert loaded.layout == policy.layout and loaded.layout.past_actions == past_actions
