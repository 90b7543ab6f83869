"""Checkpoints and pickles that may be anyone's: nothing in them is executed."""

from __future__ import annotations

import copy
import json
import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from exported import (
    assert_refused,
    checkpoint_of,
    files,
)

from bczoo import (
    BCPolicy,
)
from bczoo.core.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread", "offline")

GOLDEN = Path(__file__).parents[1] / "golden"
FORMAT_1 = GOLDEN / "format_1"


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
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
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
