"""Pixels2Play checkpoints (the reference), both ways.

Place in the pipeline: ``bczoo convert open-p2p`` turns a folder with ``model_config.yaml`` and
``checkpoint-step=*.ckpt`` into an exported folder of ours, ``bczoo convert to-open-p2p`` the reverse. The two systems
compute the same from the same weights (paper 2601.04575); what differs is names, leading axes of length one, and that
the reference system keeps its position vectors, embeddings and sinks in bfloat16. The image tokenizer stands in its
checkpoints twice, under two names.

Every entry is accounted for: missing, extra, misshaped or contradicting ones are named, and nothing is loaded half.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from bczoo.core.actions import ActionSpace
from bczoo.core.errors import UserError
from bczoo.core.files import require_folder_target, write_text
from bczoo.hub.build import check_numbers, described
from bczoo.hub.card import model_card
from bczoo.hub.folder import write_folder
from bczoo.hub.source import locate
from bczoo.hub.state import load_tensors, plain_state
from bczoo.models.bc.decoder import ActionDecoder
from bczoo.models.bc.policy import BCPolicy
from bczoo.nn.encoders import ImageEncoder, torchvision_names
from bczoo.train.callbacks.checkpoint_io import write_tensors
from bczoo.train.run_record import LARGEST_FILE, weights_step

CONFIG_FILE = "model_config.yaml"
CHECKPOINT = re.compile(r"checkpoint-step=(\d+)\.ckpt")
ALIAS = "bc_transformer."  # the image tokenizer's entries stand in the checkpoint again under this prefix
TOKENIZER = "image_tokenizer."
DECODER = "bc_transformer.action_decoder"
BLOCKS = {"transformer": "bc_transformer._transformer.transformer_layers", "decoder": f"{DECODER}.transformer_layers"}
BLOCK_ENTRIES = {
    "attention_norm.scale": "self_attention_norm.scale",
    "attention.qkv.weight": "self_attention.c_attn.weight",
    "attention.q_norm.scale": "self_attention.q_norm.scale",
    "attention.k_norm.scale": "self_attention.k_norm.scale",
    "attention.out.weight": "self_attention.c_proj.weight",
    "attention.k_sinks": "self_attention.k_sinks",
    "attention.v_sinks": "self_attention.v_sinks",
    "ffn_norm.scale": "ffn_norm.scale",
    "ffn.gate_up.weight": "ffn.w13.weight",
    "ffn.down.weight": "ffn.w2.weight",
}
TOKEN_ENTRIES = {
    "tokens.text_projection.weight": "bc_transformer.text_embed_mlp.weight",
    "tokens.text_position": "bc_transformer.text_pos_tokens",
    "tokens.no_text": "bc_transformer.text_embedding_for_no_text_input",
    "tokens.image_positions": "bc_transformer.img_pos_tokens",
    "tokens.thinking": "bc_transformer.thinking_pos_tokens",
    "tokens.action_out": "bc_transformer.action_out_token",
    "tokens.action_positions": "bc_transformer.action_pos_tokens",
    "decoder.positions": f"{DECODER}.pos_tokens",
}
GROUPS = {  # our group: their embedding, their head
    "keys": ("key_action", "keyboard"),
    "mouse_buttons": ("mouse_button", "mouse_button"),
    "mouse_dx": ("mouse_delta_x", "mouse_delta_x"),
    "mouse_dy": ("mouse_delta_y", "mouse_delta_y"),
}
IN_BFLOAT16 = ("_sinks", "pos_tokens", "action_out_token", "for_no_text_input", "_embedding.weight")


def from_open_p2p(source: str, out: str, checkpoint: str | None = None, license: str | None = None) -> None:
    """Turn a Pixels2Play checkpoint into a bczoo policy.

    Args:
        source: folder with model_config.yaml and checkpoint-step=*.ckpt.
        out: folder to write the policy to.
        checkpoint: which checkpoint; the one of the most steps if left out.
        license: of the weights, by its name on the Hub, such as mit.
    """
    require_folder_target(out, "OUT")
    folder = Path(source)
    path = _choose_checkpoint(folder, checkpoint)
    config = _read_config(folder / CONFIG_FILE)
    content = load_tensors(path)
    weights, step = content["state_dict"], content.get("global_step")
    arguments = policy_arguments(config, weights, folder / CONFIG_FILE)
    policy: Any = described({"class_path": "bczoo.BCPolicy", "init_args": arguments}, folder / CONFIG_FILE)
    state = to_ours(policy, weights, path)
    where = path.resolve()
    record: dict[str, Any] = {"converted_from": f"Pixels2Play {where.parent.name}/{where.name}"}
    record |= {"license": license} if license else {}
    record |= {"training": {"steps": step}} if isinstance(step, int) else {}
    write_folder(out, policy.spec, state, model_card(Path(out).resolve().name, policy, record), record)
    print(f"{out}: {policy.parameter_counts()['total']:,} parameters, from {path.name}")


def to_open_p2p(source: str, out: str) -> None:
    """Turn a bczoo policy into a checkpoint that the reference code loads.

    Args:
        source: an exported folder, org/name on the Hub, a run, or a .ckpt file.
        out: folder to write model_config.yaml and the checkpoint to.
    """
    import lightning

    require_folder_target(out, "OUT")
    found = locate(source)
    policy = found.load(BCPolicy)
    config = open_p2p_config(policy)
    state = to_theirs(policy)
    kept = sorted(k for k, v in state.items() if v.dtype == torch.float32 and k.endswith(IN_BFLOAT16))
    step = weights_step(found.record) or 0
    folder = Path(out)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"{folder} is a file or not empty; give a new folder")
    write_text(folder / CONFIG_FILE, yaml.safe_dump(config, sort_keys=False))
    path = folder / f"checkpoint-step={step:08d}.ckpt"
    content = {"state_dict": state, "global_step": step, "epoch": 0, "pytorch-lightning_version": lightning.__version__}
    write_tensors(path, content)
    print(f"{path}: {len(state)} entries")
    if kept:
        print(f"{len(kept)} entries stay in float32, because bfloat16 would round them: {', '.join(kept[:3])}, ...")


# ---------------------------------------------------------------------------------------------------- names


def reference_names(policy: BCPolicy) -> dict[str, str]:
    """Our state-dict names to those of the reference checkpoints (without the second names)."""
    names = dict(TOKEN_ENTRIES)
    for part, theirs in BLOCKS.items():
        for i in range(len(getattr(policy, part).blocks)):
            names |= {f"{part}.blocks.{i}.{a}": f"{theirs}.{i}.{b}" for a, b in BLOCK_ENTRIES.items()}
    for group, (table, head) in GROUPS.items():
        names[f"action_embedding.tables.{group}.weight"] = f"{table}_embedding.weight"
        names |= {f"decoder.heads.{group}.{kind}": f"{head}_out_logits.{kind}" for kind in ("weight", "bias")}
    for name, theirs in torchvision_names(policy.encoder.backbone.state_dict()).items():  # type: ignore[union-attr]
        names[f"encoder.backbone.{name}"] = f"{TOKENIZER}efficientnet_preprocess.{theirs}"
    for kind in ("weight", "bias"):
        names[f"encoder.project.{kind}"] = f"{TOKENIZER}mlp.0.{kind}"
        names[f"encoder.norm.{kind}"] = f"{TOKENIZER}mlp.1.{kind}"
        names[f"decoder.project.{kind}"] = f"{DECODER}.input_proj.{kind}"
    return {ours: names[ours] for ours in policy.state_dict()}


def reference_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The reference shape of one of our entries: the same up to leading axes of length one."""
    if name.endswith("_sinks"):
        return (1, *shape)
    if name.startswith("tokens.") and not name.endswith("weight"):
        return (1,) * (3 - len(shape)) + shape
    return shape


def to_ours(policy: BCPolicy, weights: Mapping[str, Tensor], where: Path) -> dict[str, Tensor]:
    """Reference weights under our names and in float32.

    Raises:
        UserError: names every kind of entry that does not fit; says which.
    """
    own = policy.state_dict()
    names = reference_names(policy)
    expected = {theirs: reference_shape(ours, tuple(own[ours].shape)) for ours, theirs in names.items()}
    aliases = {ALIAS + theirs: theirs for theirs in expected if theirs.startswith(TOKENIZER)}
    repeated = any(alias in weights for alias in aliases)  # all of them or none
    problems = {
        "missing": [n for n in [*expected, *(aliases if repeated else ())] if n not in weights],
        "not known": [n for n in weights if n not in expected and n not in aliases],
        "misshaped": [
            f"{n} {list(weights[n].shape)} instead of {list(shape)}"
            for n, shape in expected.items()
            if n in weights and tuple(weights[n].shape) != shape
        ],
        "of the wrong type": [
            theirs
            for ours, theirs in names.items()
            if theirs in weights and weights[theirs].is_floating_point() != own[ours].is_floating_point()
        ],
        "different from what they repeat": [
            alias for alias, n in aliases.items() if alias in weights and not _same(weights[alias], weights.get(n))
        ],
    }
    found = "; ".join(f"{what}: {', '.join(sorted(n)[:5])} ({len(n)} in all)" for what, n in problems.items() if n)
    if found:
        raise UserError(f"{where} does not hold the policy of its {CONFIG_FILE}; {found}")
    return {
        ours: (t if (t := weights[theirs]).dtype == torch.int64 else t.float()).reshape(own[ours].shape)
        for ours, theirs in names.items()
    }


def to_theirs(policy: BCPolicy) -> dict[str, Tensor]:
    """Our weights under the reference names, second names included, in the reference types where that loses nothing."""
    own = plain_state(policy)
    out = {}
    for ours, theirs in reference_names(policy).items():
        tensor = own[ours].reshape(reference_shape(ours, tuple(own[ours].shape)))
        if theirs.endswith(IN_BFLOAT16) and torch.equal(tensor.bfloat16().float(), tensor.float()):
            tensor = tensor.bfloat16()
        elif tensor.is_floating_point():
            tensor = tensor.float()
        out[theirs] = tensor
    return out | {ALIAS + name: tensor for name, tensor in out.items() if name.startswith(TOKENIZER)}


def _same(a: Tensor, b: Tensor | None) -> bool:
    return b is not None and a.shape == b.shape and torch.equal(a, b)


# ---------------------------------------------------------------------------------------------------- files


def _choose_checkpoint(folder: Path, name: str | None) -> Path:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the one with {CONFIG_FILE} and checkpoint-step=*.ckpt")
    if name is not None:
        path = folder / name if not Path(name).is_file() else Path(name)
        if not path.is_file():
            raise UserError(f"there is no checkpoint {name!r} in {folder}")
        return path
    found = {int(m[1]): p for p in folder.iterdir() if (m := CHECKPOINT.fullmatch(p.name))}
    if not found:
        raise UserError(f"{folder} holds no checkpoint-step=*.ckpt; give --checkpoint FILE if it is called otherwise")
    chosen = found[max(found)]
    if len(found) > 1:
        print(f"{len(found)} checkpoints in {folder}; taking {chosen.name} (--checkpoint chooses another)")
    return chosen


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path} is missing; it tells the architecture of the checkpoint beside it")
    if path.stat().st_size > LARGEST_FILE:
        raise UserError(f"{path} is larger than {LARGEST_FILE >> 20} MiB")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not YAML: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("policy_model"), dict):
        raise UserError(f"{path} has no section policy_model")
    check_numbers({k: config.get(k) for k in ("policy_model", "shared")}, path)
    return config


def policy_arguments(config: Mapping[str, Any], weights: Mapping[str, Tensor], where: Path) -> dict[str, Any]:
    """Arguments of our policy for a ``model_config.yaml``, defaults as in the reference code.

    What its decoder section says is ignored by the reference code, so the decoder is read off the weights.
    """
    model, shared = config["policy_model"], _section(config, "shared", where)
    tokenizer = _section(shared, "tokenizer", where)
    text = _section(shared, "text_tokenizer_config", where).get("text_embedding_shape", [1, 768])
    width, layers = model.get("transformer_dim", 128), model.get("n_transformer_layers", 4)
    heads, window = model.get("n_q_head", 8), shared.get("n_seq_timesteps", 3)
    height, frame = shared.get("frame_height", 192), shared.get("frame_width", 192)
    history = model.get("attention_history_len") or [100] * layers
    wanted = {
        "policy_model.model_type": (model.get("model_type", "dense"), "dense"),
        "policy_model.n_kv_head": (model.get("n_kv_head", 8), heads),
        "shared.tokenizer.type": (tokenizer.get("type", "vit"), "conv"),
        "shared.frame_height": (height, frame),
        "text_embedding_shape[0]": (text[0], 1),
        "length of attention_history_len": (len(history), layers),
    }
    if wrong := [f"{name} is {got!r}, wanted is {want!r}" for name, (got, want) in wanted.items() if got != want]:
        raise UserError(f"{where} describes a policy that bczoo does not have: {'; '.join(wrong)}")
    numbers = {"transformer_dim": width, "n_transformer_layers": layers, "n_q_head": heads, "n_seq_timesteps": window}
    if words := [f"{name} is {value!r}" for name, value in numbers.items() if not isinstance(value, int)]:
        raise UserError(f"{where} has no number where one is needed: {', '.join(words)}")
    blocks = {m[1] for n in weights if (m := re.match(re.escape(BLOCKS["decoder"]) + r"\.(\d+)\.", n))}
    found = [t.shape for n, t in weights.items() if n.startswith(BLOCKS["decoder"]) and n.endswith("_sinks")]
    decoder_heads, sinks = next(((s[1], s[2]) for s in found if len(s) == 4), (8, int(bool(found))))
    return {
        "transformer": {
            "class_path": "bczoo.PolicyTransformer",
            "init_args": {
                "width": width,
                "layers": layers,
                "heads": heads,
                "history": None if min(history) >= window - 1 else history,
                "sinks": model.get("n_kv_sink_tokens", 1),
            },
        },
        "encoder": {
            "class_path": "bczoo.ImageEncoder",
            "init_args": {
                "tokens": _section(tokenizer, "conv_tokenizer_config", where).get("num_tokens", 1),
                "frame_size": frame,
                "pretrained": False,
            },
        },
        "decoder": {
            "class_path": "bczoo.ActionDecoder",
            "init_args": {
                "layers": max(len(blocks), 1),  # without any, the comparison of the weights says what is missing
                "heads": decoder_heads,
                "sinks": sinks,
            },
        },
        "text_dim": text[1],
        "text_encoder": {"class_path": "bczoo.GemmaTextEncoder", "init_args": {}},
        "thinking_tokens": model.get("n_thinking_tokens", 1),
        "window": window,
        "z_loss": model.get("z_loss_weight", 1e-4),
    }


def _section(config: Mapping[str, Any], name: str, where: Path) -> Mapping[str, Any]:
    section = config.get(name) or {}
    if not isinstance(section, Mapping):
        raise UserError(f"{where}: {name} is {section!r} instead of a section")
    return section


def open_p2p_config(policy: BCPolicy) -> dict[str, Any]:
    """``model_config.yaml`` for a policy of ours.

    Raises:
        UserError: lists what the reference code does not have.
    """
    config = policy.config
    transformer, encoder, decoder = (config[p]["init_args"] for p in ("transformer", "encoder", "decoder"))
    reference_decoder = {"layers": 3, "heads": 8, "sinks": 1}
    problems = {
        "its image encoder": type(policy.encoder) is not ImageEncoder
        or (encoder["backbone"], encoder["stage"]) != ("efficientnet_b0", 3),
        "its decoder": type(policy.decoder) is not ActionDecoder
        or {k: decoder[k] for k in reference_decoder} != reference_decoder,
        "its action space": policy.action_space != ActionSpace.keyboard_mouse(),
        "kv_heads": transformer["kv_heads"] not in (None, transformer["heads"]),
        "ffn_width": transformer["ffn_width"] is not None,
        "no text": config["text_dim"] is None,
        f"frames resized with {config['resize']}": config["resize"] != "hamming",
        f"{config['fps']:g} steps a second": config["fps"] != 20,
    }
    if found := [what for what, wrong in problems.items() if wrong]:
        raise UserError(f"the reference code has no policy like this one: {', '.join(found)}")
    layers, window = transformer["layers"], config["window"]
    history = transformer["history"]
    return {
        "shared": {
            "n_seq_timesteps": window,
            "frame_height": encoder["frame_size"],
            "frame_width": encoder["frame_size"],
            "text_tokenizer_config": {
                "text_tokenizer_name": "gemma",
                "text_embedding_shape": [1, config["text_dim"]],
            },
            "tokenizer": {"type": "conv", "conv_tokenizer_config": {"num_tokens": encoder["tokens"]}},
        },
        "inference": {"mouse_sampling_approach": "truncated_normal"},
        "policy_model": {
            "n_transformer_layers": layers,
            "n_q_head": transformer["heads"],
            "n_kv_head": transformer["heads"],
            "n_thinking_tokens": config["thinking_tokens"],
            "transformer_dim": transformer["width"],
            "mask_block_size": 128,
            "attention_history_len": [window if h is None else h for h in policy_histories(history, layers)],
            "n_kv_sink_tokens": transformer["sinks"],
            "model_type": "dense",
            "z_loss_weight": config["z_loss"],
            "action_decoder": {"embed_dim": transformer["width"]},
        },
    }


def policy_histories(history: int | list[int] | None, layers: int) -> list[int | None]:
    """One history per layer."""
    return list(history) if isinstance(history, list) else [history] * layers
