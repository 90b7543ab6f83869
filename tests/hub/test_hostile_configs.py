"""A config.json that may be anyone's: nothing it says is imported, run or built beyond measure."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest
import tiny
from exported import (
    as_format_1,
    assert_refused,
    assert_same_state,
    bomb,
    lived_in,
    spoil,
)

from bczoo import (
    BCPolicy,
    IndependentHeads,
)

pytestmark = pytest.mark.usefixtures("one_thread", "offline")


@pytest.mark.parametrize("version", [1, 2])
def test_the_good_folder_is_good(version, folder):
    if version == 1:
        as_format_1(folder)
    spoil(folder, "init_args.window", 6)
    assert BCPolicy.from_pretrained(folder).input_spec.window == 6


RUN = {"command": "touch marker", "args": ["touch", "marker"], "shell": True}
CALLS = [
    (f"init_args.{part}", {"class_path": call, "init_args": {name: RUN[name] for name in names}})
    for call, names in (("os.system", ["command"]), ("subprocess.Popen", ["args"]))
    for part in ("transformer", "encoder", "decoder", "text_encoder")
]
CONFIGS = [
    *CALLS,
    ("init_args.decoder.class_path", "no_such_module.Decoder"),
    ("init_args.decoder.class_path", "bczoo.ImageEncoder"),
    ("init_args.decoder.class_path", "bczoo.hub.folder.ExportedFolder"),
    ("init_args.encoder.class_path", "os.ImageEncoder"),
    ("init_args.encoder.class_path", ["bczoo.ImageEncoder"]),
    ("init_args.encoder.class_path", {"bczoo.ImageEncoder": 1}),
    ("init_args.encoder", "bczoo.ImageEncoder"),
    ("init_args.transformer", None),
    ("init_args.transformer.init_args.init_args", {}),
    ("init_args.encoder.init_args.width", 5),
    ("init_args.encoder.init_args.backbone", "hf-hub:evil/model"),
    ("init_args.encoder.init_args.backbone", "hf_hub:evil/model"),
    ("init_args.encoder.init_args.backbone", "local-dir:/etc"),
    ("init_args.encoder.init_args.backbone", "../../evil"),
    ("init_args.encoder.init_args.backbone", "no_such_backbone"),
    ("init_args.encoder.init_args.backbone", "eva02_enormous_patch14_clip_224"),
    ("init_args.encoder.init_args.stage", 10**5),
    ("init_args.encoder.init_args.frame_size", 10**6),
    ("init_args.encoder.init_args.tokens", 10**6),
    ("init_args.encoder.init_args.tokens", 0),
    ("init_args.transformer.init_args.layers", 10**12),
    ("init_args.transformer.init_args.layers", -1),
    ("init_args.transformer.init_args.width", 10**6),
    ("init_args.transformer.init_args.width", 10**12),
    ("init_args.transformer.init_args.width", "32"),
    ("init_args.transformer.init_args.width", 10**400),
    ("init_args.transformer.init_args.heads", 0),
    ("init_args.transformer.init_args.sinks", 10**6),
    ("init_args.transformer.init_args.ffn_width", 10**6),
    ("init_args.transformer.init_args.history", [1] * 10**5),
    ("init_args.transformer.init_args.dropout", float("nan")),
    ("init_args.text_dim", 10**6),
    ("init_args.text_dim", -(10**12)),
    ("init_args.thinking_tokens", 10**6),
    ("init_args.thinking_tokens", -1),
    ("init_args.window", 10**9),
    ("init_args.window", 10**400),
    ("init_args.window", 0),
    ("init_args.window", [5]),
    ("init_args.fps", float("inf")),
    ("init_args.fps", -(10**400)),
    ("init_args.z_loss", float("nan")),
    ("init_args.resize", "__class__"),
    ("init_args.action_space", "no_such_space"),
    ("init_args.action_space", 5),
    ("init_args.action_space.groups", []),
    ("init_args.action_space.groups.0.name", "__class__"),
    ("init_args.action_space.groups.0.name", "forward"),
    ("init_args.action_space.groups.0.name", "training"),
    ("init_args.action_space.groups.0.name", "_modules"),
    ("init_args.action_space.groups.0.name", "a.b"),
    ("init_args.action_space.groups.0.name", "mouse_dx"),
    ("init_args.action_space.groups.0.name", 5),
    ("init_args.action_space.groups.0.kind", "os.system"),
    ("init_args.action_space.groups.0.kind", ["held"]),
    ("init_args.action_space.groups.0.tokens", 10**6),
    ("init_args.action_space.groups.0.tokens", -1),
    ("init_args.action_space.groups.0.tokens", 4.5),
    ("init_args.action_space.groups.0.names", []),
    ("init_args.action_space.groups.2.edges", [float("nan")] * 22),
    ("init_args.optimizer", {"class_path": "torch.optim.SGD"}),
    ("init_args.pretrained", True),
    ("init_args.encoder.init_args", None),
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


FAMILIES = [  # of format 2, which names one
    *(
        ("policy.class_path", named)
        for named in (None, 5, {}, "os.system", "BCPolicy", "bczoo.NoSuchPolicy", "bczoo.Policy", "bczoo.FineTune",
                      "bczoo.CNNPolicy", "bczoo.ImageEncoder", "no_such_module.Policy")
    ),
    ("policy.init_args", None),
    ("policy.init_args", []),
    ("policy.init_args", {}),
]  # fmt: skip


def short(value: object) -> str:
    return value.replace("init_args.", "") if isinstance(value, str) else str(value)[:30]


CASES = [(1, *case) for case in CONFIGS] + [(2, *case) for case in (*CONFIGS, *FAMILIES)]


@pytest.mark.parametrize(("version", "where", "value"), CASES, ids=short)
def test_configs_that_describe_no_policy_are_refused(version, where, value, folder):
    if version == 1:
        as_format_1(folder)
    loaded = {name.partition(".")[0] for name in sys.modules}
    spoil(folder, where, value)
    assert_refused(folder, "config.json")
    assert {name.partition(".")[0] for name in sys.modules} == loaded  # nothing was imported for it
    assert not Path("marker").exists()


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("init_args.transformer.init_args.layers", 10**4),
        ("init_args.action_space.groups", [{"kind": "switch", "name": f"g{i}", "names": ["a"]} for i in range(9_000)]),
    ],
    ids=["layers", "groups"],
)
def test_a_policy_without_end_is_not_built_to_its_end(where, value, folder):
    spoil(folder, where, value)
    assert_refused(folder, "config.json", "parameter tensors")


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
    spoil(folder, "init_args.decoder.class_path", "lies_around.Heads")
    assert_refused(folder, "config.json", "lies_around.Heads", "imported first")
    assert "lies_around" not in sys.modules and not Path("marker").exists()
    import lies_around

    loaded = BCPolicy.from_pretrained(folder)
    assert type(loaded.decoder) is lies_around.Heads and Path("marker").exists()
    assert_same_state(loaded.state_dict(), policy.state_dict())
    assert BCPolicy.from_pretrained(loaded.save_pretrained(tmp_path / "again")).config == loaded.config
