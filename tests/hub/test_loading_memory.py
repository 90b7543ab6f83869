"""What loading takes: the memory of the weights once, and none for what a hostile folder claims."""

from __future__ import annotations

import copy
import json
import os
import shutil
import struct
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import tiny
import torch
from exported import (
    checkpoint_of,
    rewrite,
    spoil,
    ten_gigabytes,
)

from bczoo import (
    BCPolicy,
)

pytestmark = pytest.mark.usefixtures("one_thread", "offline")

SLOW = os.environ.get("BCZOO_SLOW") == "1"


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
        spoil(config, f"init_args.transformer.init_args.{where}", value)
        if where == "layers":
            spoil(config, "init_args.transformer.init_args.width", 4096)  # 40 GB of weights
    spoil(spoilt("config of tokens"), "init_args.encoder.init_args.tokens", 10**6)
    spoil(spoilt("config of a backbone"), "init_args.encoder.init_args.backbone", "convnext_xxlarge")
    many = ",".join(f'"{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(800_000))
    header = f"{{{many}}}".encode()
    (spoilt("header of many") / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    both = spoilt("header and config")
    spoil(both, "init_args.text_dim", 10**6)
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
    """Saves a policy of plain weights, so that making it is quick; bytes of the weights."""
    with torch.device("meta"):
        policy = policy()
    policy = policy.to_empty(device="cpu").eval()
    with torch.no_grad():
        for name, value in policy.state_dict().items():
            value.fill_(int(name.startswith(("encoder", "tokens"))))
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
    """Weights are mapped and read once, to see that they are numbers: what the file has is resident, and no copy."""
    size = save_large(tmp_path / "large", policy)
    assert size > 400_000_000
    out = python(PEAK + LOAD, small=plain[1], folder=tmp_path / "large")
    shutil.rmtree(tmp_path / "large")
    print(f"{size:,} bytes of weights; resident after loading {out['built'] / size:.3f}, read {out['read'] / size:.3f}")
    assert out["tried"] == [] and out["devices"] == ["cpu"]
    assert out["built"] < 1.1 * size
    assert 0.9 * size < out["read"] < 1.25 * size
