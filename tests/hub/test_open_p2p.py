"""Reference Pixels2Play checkpoints, both ways, through the command line.

The source folder is built as that project publishes it: its YAML, and a Lightning checkpoint with all of its names,
the image tokenizer's twice. Weights follow the golden formulas, so what comes out is held against golden values.
"""

import json
import pickle
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import golden_case as golden
import pytest
import tiny
import torch
import yaml

from bczoo import ActionDecoder, ActionSpace, BCPolicy, GemmaTextEncoder, ImageEncoder, IndependentHeads
from bczoo.cli import main

CHECKPOINT = "checkpoint-step=00000007.ckpt"
SINK = "bc_transformer.action_decoder.transformer_layers.0.self_attention.k_sinks"
TEXT_POSITION = "bc_transformer.text_pos_tokens"
BIAS = "keyboard_out_logits.bias"
COUNTER = "image_tokenizer.efficientnet_preprocess.0.1.num_batches_tracked"
ALIAS = "bc_transformer.image_tokenizer.mlp.0.bias"

MODEL_CONFIG = """\
shared:
  output_path: ${{USER}}/policy_model/golden
  n_seq_timesteps: {n_seq_timesteps}
  frame_height: {frame[0]}
  frame_width: {frame[1]}
  text_tokenizer_config:
    text_tokenizer_name: "gemma"
    text_embedding_shape: {text_embedding_shape}
    text_annotation_model_version: ["gemini-2.5-flash", "gemini-2.5-flash-thinking-0905"]
  tokenizer:
    type: "conv"
    conv_tokenizer_config:
      num_tokens: {conv_num_tokens}

inference:
  mouse_sampling_approach: "truncated_normal"

policy_model:
  n_transformer_layers: {n_transformer_layers}
  n_q_head: {n_q_head}
  n_kv_head: {n_kv_head}
  n_thinking_tokens: {n_thinking_tokens}
  transformer_dim: &transformer_dim {transformer_dim}
  mask_block_size: 128
  attention_history_len: {attention_history_len}  # one per layer
  n_kv_sink_tokens: {n_kv_sink_tokens}
  model_type: "dense"
  action_decoder:
    embed_dim: *transformer_dim

stage3_finetune:
  optim:
    learning_rate: 0.0001
    weight_decay: 0.0001
    beta_1: 0.9
    beta_2: 0.999
  validation_step_interval: 2_000_000
  n_training_steps: 200_000
  training_dataset:
    batch_size: &batch_size 1
    local_prefix: dataset
    rand_augmentation:
      fraction_augmented: 1.0
      augmentations: [spatial_transform, color]
  validation_datasets:
    - batch_size: *batch_size
      validation_name: "overall"

wandb:
  enabled: true
  project: "policy_model"
"""


pytestmark = pytest.mark.usefixtures("one_thread")


@cache
def content():
    return json.loads((golden.FOLDER / "golden_public.json").read_text())


def model_config() -> str:
    return MODEL_CONFIG.format(**content()["config"])


def golden_state(in_bfloat16=False) -> dict[str, torch.Tensor]:
    """All reference entries; those that are reference in bfloat16 are so here if asked for."""
    state = {}
    for entry in content()["state_dict"]:
        name = entry["alias_of"] or entry["name"]
        if entry["alias_of"]:
            state[entry["name"]] = state[name]
            continue
        state[name] = torch.from_numpy(golden.golden_tensor(name, tuple(entry["shape"])))
        if in_bfloat16 and entry["dtype_in_reference"] == "torch.bfloat16":
            state[name] = state[name].bfloat16()
    return state


def write_source(folder: Path, state=None, config=None, checkpoint=CHECKPOINT, **more) -> Path:
    """A folder as reference; ``more`` goes into the checkpoint beside the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_config.yaml").write_text(config or model_config())
    moments = {0: {"step": torch.tensor(7.0), "exp_avg": torch.zeros(3), "exp_avg_sq": torch.zeros(3)}}
    saved = {
        "epoch": 0,
        "global_step": 7,
        "pytorch-lightning_version": "2.5.1",
        "state_dict": golden_state() if state is None else state,
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {},
        "optimizer_states": [{"state": moments, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999), "params": [0]}]}],
        "lr_schedulers": [],
        **more,
    }
    torch.save(saved, folder / checkpoint)
    return folder


def convert(*arguments) -> int:
    return main(["convert", *[str(a) for a in arguments]])


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return write_source(tmp_path_factory.mktemp("reference") / "golden")


@pytest.fixture(scope="module")
def converted(reference, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "golden"
    assert convert("open-p2p", reference, out, "--license", "mit") == 0
    return out


@pytest.fixture(scope="module")
def policy(converted):
    return BCPolicy.from_pretrained(converted)


# ---------------------------------------------------------------------------------------------------- theirs to ours


def test_logits_of_the_converted_policy(policy):
    case = golden.inputs()
    with torch.no_grad():
        logits = policy(case["frames"], case["actions"], case["text"])
    for name, theirs in golden.by_group("f32.logits").items():
        golden.close(logits[name], theirs)


def test_play_of_the_converted_policy_past_the_wrap_of_the_window(policy):
    golden.assert_plays_as_expected(policy.agent(greedy=True))


def test_the_folder_tells_architecture_origin_and_licence(policy, converted):
    assert policy.config == golden.golden_policy("auto").config | {"text_encoder": GemmaTextEncoder().spec}
    record = json.loads((converted / "training.json").read_text())
    assert record == {"converted_from": f"Pixels2Play golden/{CHECKPOINT}", "license": "mit", "training": {"steps": 7}}
    card = (converted / "README.md").read_text()
    assert "license: mit" in card and f"Converted from `Pixels2Play golden/{CHECKPOINT}`" in card


def test_of_several_checkpoints_the_one_of_most_steps(tmp_path, capsys):
    """Most in number: the name of step 9 would be the last in the alphabet."""
    state = golden_state()
    source = write_source(tmp_path / "source", state, checkpoint="checkpoint-step=9.ckpt")
    write_source(source, state | {BIAS: state[BIAS] + 1}, checkpoint="checkpoint-step=00000012.ckpt")
    (source / "notes.ckpt").write_text("not one of them")
    assert convert("open-p2p", source, tmp_path / "most") == 0
    out = capsys.readouterr().out
    assert "2 checkpoints" in out and "taking checkpoint-step=00000012.ckpt" in out and "--checkpoint" in out
    assert convert("open-p2p", source, tmp_path / "chosen", "--checkpoint", "checkpoint-step=9.ckpt") == 0
    assert "2 checkpoints" not in capsys.readouterr().out
    most, chosen = (
        BCPolicy.from_pretrained(tmp_path / f).state_dict()["decoder.heads.keys.bias"] for f in ("most", "chosen")
    )
    assert torch.equal(most, state[BIAS] + 1) and torch.equal(chosen, state[BIAS])


# ---------------------------------------------------------------------------------------------------- and back


def test_there_and_back_nothing_changes(reference, converted, tmp_path, capsys):
    back, again = tmp_path / "back", tmp_path / "again"
    assert convert("to-open-p2p", converted, back) == 0
    out = capsys.readouterr().out
    assert "568 entries" in out and "17 entries stay in float32" in out
    (path,) = back.glob("checkpoint-step=*.ckpt")
    state, before = torch.load(path, weights_only=True)["state_dict"], golden_state()
    assert state.keys() == before.keys() and len(state) == 568
    for name, tensor in before.items():
        assert state[name].dtype == tensor.dtype and torch.equal(state[name], tensor), name
    theirs, ours = (yaml.safe_load((f / "model_config.yaml").read_text()) for f in (reference, back))
    theirs["shared"].pop("output_path")
    theirs["shared"]["text_tokenizer_config"].pop("text_annotation_model_version")
    for section in ("shared", "inference", "policy_model"):
        assert ours[section] == theirs[section] | ({"z_loss_weight": 1e-4} if section == "policy_model" else {})
    assert convert("open-p2p", back, again) == 0
    for file in ("config.json", "model.safetensors"):
        assert (again / file).read_bytes() == (converted / file).read_bytes()


def test_bfloat16_entries_come_back_as_such_where_that_loses_nothing(tmp_path, capsys):
    before = golden_state(in_bfloat16=True)
    assert sum(t.dtype == torch.bfloat16 for t in before.values()) == 17
    ours = tmp_path / "ours"
    assert convert("open-p2p", write_source(tmp_path / "source", before), ours) == 0
    policy = BCPolicy.from_pretrained(ours)
    assert {t.dtype for t in policy.state_dict().values()} == {torch.float32, torch.int64}
    assert convert("to-open-p2p", ours, tmp_path / "back") == 0
    assert "float32" not in capsys.readouterr().out
    (path,) = (tmp_path / "back").glob("*.ckpt")
    state = torch.load(path, weights_only=True)["state_dict"]
    for name, tensor in before.items():
        assert state[name].dtype == tensor.dtype and torch.equal(state[name], tensor), name
    policy.tokens.no_text.data[3] += 1e-6  # one value that bfloat16 cannot hold, beside an exact neighbour
    policy.save_pretrained(ours)
    assert convert("to-open-p2p", ours, tmp_path / "changed") == 0
    assert "1 entries stay in float32" in capsys.readouterr().out
    (path,) = (tmp_path / "changed").glob("*.ckpt")
    state = torch.load(path, weights_only=True)["state_dict"]
    kept = [n for n, t in before.items() if state[n].dtype != t.dtype]
    assert kept == ["bc_transformer.text_embedding_for_no_text_input"]
    assert torch.equal(state[kept[0]][0, 0], policy.tokens.no_text)


def variant(seed=0, width=32, decoder=None, text_encoder=True, **arguments) -> BCPolicy:
    """A small policy that the reference code has, random but for what the arguments say."""
    torch.manual_seed(seed)
    encoder = {"frame_size": 64, "pretrained": False} | arguments.pop("encoder", {})
    transformer = {"class_path": "bczoo.PolicyTransformer"} | {
        "init_args": {"width": width, "layers": 2, "heads": 4} | arguments.pop("transformer", {})
    }
    arguments = {"window": 5, "text_dim": 16, "text_encoder": GemmaTextEncoder() if text_encoder else None} | arguments
    policy = BCPolicy(transformer, partial(ImageEncoder, **encoder), decoder or ActionDecoder, **arguments)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    return policy.eval()


@pytest.mark.parametrize(
    "arguments",
    [
        {"encoder": {"tokens": 2}, "thinking_tokens": 2},
        {"transformer": {"sinks": 3, "layers": 3, "history": [1, 4, 2]}, "z_loss": 1e-3},
        {"thinking_tokens": 0, "window": 3, "encoder": {"frame_size": 96, "tokens": 4}, "text_dim": 24},
    ],
    ids=["tokens", "sinks-histories", "sizes"],
)
def test_variants_survive(arguments, tmp_path):
    policy = variant(**arguments)
    policy.save_pretrained(tmp_path / "ours")
    (tmp_path / "ours" / "training.json").write_text('{"training": {"steps": 1234}}')
    assert convert("to-open-p2p", tmp_path / "ours", tmp_path / "theirs") == 0
    assert (tmp_path / "theirs" / "checkpoint-step=00001234.ckpt").is_file()
    assert convert("open-p2p", tmp_path / "theirs", tmp_path / "back") == 0
    before, after = (BCPolicy.from_pretrained(tmp_path / folder) for folder in ("ours", "back"))
    assert after.config == policy.config
    weights = after.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in policy.state_dict().items())
    size, steps = policy.encoder.frame_size, policy.input_spec.window
    frames = torch.randint(0, 256, (1, steps, 3, size, size), dtype=torch.uint8)
    actions = tiny.random_actions(policy.action_space, 1, steps)
    text = torch.randn(1, steps, policy.input_spec.text_dim)
    text[:, 1] = 0
    with torch.no_grad():
        ours, back = (p(frames, actions, text) for p in (before, after))
    assert all(torch.equal(ours[group], back[group]) for group in ours)


def test_a_folder_that_holds_something_is_not_written_to(converted, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert convert("to-open-p2p", converted, tmp_path) == 1
    assert "not empty" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


NOT_IN_THE_REFERENCE = {
    "gamepad": ({"action_space": "gamepad"}, ["action space"]),
    "another key": ({"action_space": {"name": "keyboard_mouse", "extra_keys": ["r"]}}, ["action space"]),
    "no chain": ({"decoder": IndependentHeads}, ["decoder"]),
    "a smaller decoder": ({"decoder": partial(ActionDecoder, layers=1)}, ["decoder"]),
    "another backbone": ({"encoder": {"backbone": "test_efficientnet"}}, ["image encoder"]),
    "another feature map": ({"encoder": {"stage": 2}}, ["image encoder"]),
    "no text": ({"text_dim": None, "text_encoder": False}, ["no text"]),
    "grouped queries": ({"transformer": {"kv_heads": 2}}, ["kv_heads"]),
    "another feed-forward": ({"transformer": {"ffn_width": 40}}, ["ffn_width"]),
    "another rate": ({"fps": 10.0}, ["10 steps a second"]),
    "all of it": (
        {
            "action_space": "gamepad",
            "decoder": IndependentHeads,
            "encoder": {"backbone": "test_efficientnet"},
            "text_dim": None,
            "fps": 10.0,
            "transformer": {"kv_heads": 2, "ffn_width": 40},
        },
        ["action space", "decoder", "image encoder", "no text", "kv_heads", "ffn_width", "10 steps a second"],
    ),
}


@pytest.mark.parametrize(("arguments", "told"), NOT_IN_THE_REFERENCE.values(), ids=NOT_IN_THE_REFERENCE.keys())
def test_what_the_reference_code_does_not_have_is_listed(arguments, told, tmp_path, capsys):
    variant(**arguments).save_pretrained(tmp_path / "ours")
    capsys.readouterr()
    assert convert("to-open-p2p", tmp_path / "ours", tmp_path / "theirs") == 1
    error = capsys.readouterr().err
    everything = {"action space", "decoder", "image encoder", "no text", "kv_heads", "ffn_width", "10 steps a second"}
    assert {what for what in everything if what in error} == set(told)
    assert not (tmp_path / "theirs").exists()


# ---------------------------------------------------------------------------------------------------- what is wrong


def refused(source, out, capsys, *options) -> str:
    """What is said of a source that is not converted."""
    assert convert("open-p2p", source, out, *options) == 1
    assert not out.exists() and list(out.parent.glob(f".{out.name}*")) == []
    error = capsys.readouterr().err
    assert error.startswith("bczoo: ")
    return error


def without(state, name):
    return {k: v for k, v in state.items() if k != name}


WRONG_STATES = {
    "missing": (lambda s: without(s, BIAS), ["missing", BIAS]),
    "a missing sink": (lambda s: without(s, SINK), ["missing", SINK]),
    "extra": (lambda s: s | {"value_head.weight": torch.zeros(2, 2)}, ["not known", "value_head.weight"]),
    "misshaped": (lambda s: s | {BIAS: torch.zeros(21)}, ["misshaped", f"{BIAS} [21]", "[20]"]),
    "without its leading axes": (
        lambda s: s | {TEXT_POSITION: s[TEXT_POSITION].flatten()},
        ["misshaped", f"{TEXT_POSITION} [64]", "[1, 1, 64]"],
    ),
    "transposed": (lambda s: s | {SINK: s[SINK].transpose(1, 2)}, [SINK]),
    "a sink without axes": (lambda s: s | {SINK: s[SINK].flatten()}, [SINK]),
    "counts for a bias": (lambda s: s | {BIAS: torch.ones(20, dtype=torch.int64)}, [BIAS]),
    "fractions for a count": (
        lambda s: s | {n: torch.tensor(0.5) for n in (COUNTER, f"bc_transformer.{COUNTER}")},
        [COUNTER],
    ),
    "alias of other values": (lambda s: s | {ALIAS: s[ALIAS] + 1}, ["different from what they repeat", ALIAS]),
    "alias of another shape": (lambda s: s | {ALIAS: s[ALIAS][:5]}, ["different from what they repeat", ALIAS]),
    "no original": (lambda s: without(s, ALIAS.removeprefix("bc_transformer.")), ["missing", ALIAS[15:]]),
    "no tensor": (lambda s: s | {BIAS: [0.0] * 20}, ["state_dict of tensors"]),
    "empty": (lambda s: {}, ["missing", "in all)"]),
    "several": (
        lambda s: without(s, BIAS) | {"value_head.weight": torch.zeros(2, 2), SINK: s[SINK][:, :, :, :4]},
        ["missing", BIAS, "not known", "value_head.weight", "misshaped", SINK],
    ),
}


@pytest.mark.parametrize(("change", "told"), WRONG_STATES.values(), ids=WRONG_STATES.keys())
def test_weights_that_do_not_fit_are_named(change, told, tmp_path, capsys):
    source = write_source(tmp_path / "source", change(golden_state()))
    error = refused(source, tmp_path / "out", capsys)
    assert CHECKPOINT in error
    for words in told:
        assert words in error, error


def test_a_checkpoint_of_nothing_but_originals_is_taken(tmp_path):
    """The second names are a habit of the reference files and hold nothing of their own."""
    aliases = {e["name"] for e in content()["state_dict"] if e["alias_of"]}
    state = {k: v for k, v in golden_state().items() if k not in aliases}
    assert len(aliases) == 246
    assert convert("open-p2p", write_source(tmp_path / "source", state), tmp_path / "out") == 0


def changed(section, **values):
    config = yaml.safe_load(model_config())
    config[section] |= values
    return yaml.safe_dump(config)


WRONG_CONFIGS = {
    "broken": (lambda: "policy_model: [1, 2", ["not YAML"]),
    "code": (lambda: "policy_model: !!python/object/apply:os.getcwd []", ["not YAML"]),
    "a list": (lambda: "- 1", ["policy_model"]),
    "no model": (lambda: "shared: {n_seq_timesteps: 6}", ["policy_model"]),
    "mixture": (lambda: changed("policy_model", model_type="sparse_moe"), ["model_type", "sparse_moe"]),
    "grouped": (lambda: changed("policy_model", n_kv_head=2), ["n_kv_head is 2"]),
    "tokenizer": (lambda: changed("shared", tokenizer={"type": "vit"}), ["tokenizer.type", "vit"]),
    "no tokenizer": (lambda: changed("shared", tokenizer=None), ["tokenizer.type", "vit"]),
    "oblong": (lambda: changed("shared", frame_height=108), ["frame_height is 108"]),
    "histories": (lambda: changed("policy_model", attention_history_len=[6, 6]), ["attention_history_len"]),
    "several": (lambda: changed("policy_model", model_type="sparse_moe", n_kv_head=2), ["model_type", "n_kv_head"]),
    "a word": (lambda: changed("policy_model", transformer_dim="wide"), ["transformer_dim"]),
    "no section": (lambda: yaml.safe_dump(yaml.safe_load(model_config()) | {"shared": 5}), ["shared"]),
}


@pytest.mark.parametrize(("config", "told"), WRONG_CONFIGS.values(), ids=WRONG_CONFIGS.keys())
def test_a_config_that_cannot_be_is_told(config, told, tmp_path, capsys):
    error = refused(write_source(tmp_path / "source", config=config()), tmp_path / "out", capsys)
    assert "model_config.yaml" in error
    for words in told:
        assert words in error, error


def test_config_and_weights_of_two_policies(tmp_path, capsys):
    source = write_source(tmp_path / "source", config=changed("policy_model", n_thinking_tokens=2))
    error = refused(source, tmp_path / "out", capsys)
    assert "misshaped: bc_transformer.thinking_pos_tokens [1, 1, 64] instead of [1, 2, 64]" in error


def test_files_that_are_not_there(reference, tmp_path, capsys):
    out = tmp_path / "out"
    assert "is not a folder" in refused(tmp_path / "nowhere", out, capsys)
    source = tmp_path / "source"
    source.mkdir()
    assert "checkpoint-step=*.ckpt" in refused(source, out, capsys)
    (source / CHECKPOINT).write_bytes((reference / CHECKPOINT).read_bytes())
    assert "model_config.yaml is missing" in refused(source, out, capsys)
    (source / "model_config.yaml").write_text(model_config())
    assert "'checkpoint-step=8.ckpt'" in refused(source, out, capsys, "--checkpoint", "checkpoint-step=8.ckpt")
    assert convert("open-p2p", source, out) == 0


class Malicious:
    """What would be executed by a careless reader."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@dataclass
class Settings:
    """Something of one's own that a checkpoint may hold."""

    width: int = 64


@pytest.mark.parametrize("kind", ["checkpoint", "weights", "old format", "plain pickle"])
def test_nothing_in_a_checkpoint_is_executed(kind, tmp_path, capsys):
    source, marker = write_source(tmp_path / "source"), tmp_path / "marker"
    path, bad = source / CHECKPOINT, Malicious(marker)
    if kind == "checkpoint":
        write_source(source, hyper_parameters=bad)
    elif kind == "weights":
        write_source(source, {**golden_state(), BIAS: bad})
    elif kind == "old format":
        torch.save({"state_dict": {BIAS: bad}}, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps({"state_dict": {BIAS: bad}}))
    assert CHECKPOINT in refused(source, tmp_path / "out", capsys)
    assert not marker.exists()
    with path.open("rb") as file:  # careless readers
        pickle.load(file) if kind == "plain pickle" else torch.load(file, weights_only=False)
    assert marker.exists()


def test_a_checkpoint_with_an_object_of_ones_own(tmp_path, capsys):
    source = write_source(tmp_path / "source", hyper_parameters={"settings": Settings()})
    error = refused(source, tmp_path / "out", capsys)
    assert CHECKPOINT in error and "is not executed" in error and "Settings" in error


def test_a_checkpoint_that_was_cut_off(reference, tmp_path, capsys):
    source = write_source(tmp_path / "source")
    whole = (reference / CHECKPOINT).read_bytes()
    for length in (0, len(whole) // 2):
        (source / CHECKPOINT).write_bytes(whole[:length])
        assert CHECKPOINT in refused(source, tmp_path / "out", capsys)


def test_a_space_of_the_same_choices_is_the_reference_one():
    """What the error about the action space goes by: values, not identity."""
    assert ActionSpace.from_dict(ActionSpace.keyboard_mouse().to_dict()) == ActionSpace.keyboard_mouse()
