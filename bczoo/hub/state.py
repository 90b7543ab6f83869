"""State dicts under their plain names, whatever was wrapped around the policy while it trained.

Place in the pipeline: everything that is exported passes here, so that compiled, LoRA-trained and plainly trained
policies publish the same names. ``torch.compile`` adds ``_orig_mod.`` to names; peft keeps a layer's own weight as
``base_layer`` beside two small matrices, which are merged here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bczoo.errors import UserError

if TYPE_CHECKING:
    from bczoo.model.policy import BCPolicy

LORA_SCALE = "bczoo_lora_scale"  # key of a checkpoint


def plain_state(policy: BCPolicy, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The weights of a policy, on the CPU, LoRA merged.

    Args:
        policy: the policy, left as it is.
        dtype: brings the weights to this type; as they are if left out.
    """
    return plain(policy.state_dict(), getattr(policy, "lora_scale", None), dtype)


def plain(
    state: Mapping[str, Tensor], lora_scale: float | None = None, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """A state dict under plain names, LoRA merged: W + scale * B A, computed in float32."""
    state = {name.replace("_orig_mod.", ""): tensor for name, tensor in state.items()}
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if ".lora_" in name:
            continue
        plain_name = name.replace(".base_layer.", ".")
        if plain_name != name and name.endswith("weight"):
            if lora_scale is None:
                raise UserError("these weights have LoRA matrices, but it is not known how to scale them")
            layer = name.removesuffix(".base_layer.weight")
            a, b = (state[f"{layer}.lora_{x}.default.weight"].detach() for x in "AB")
            tensor = (tensor.detach().float() + lora_scale * (b.float() @ a.float())).to(tensor.dtype)
        tensor = tensor.detach().cpu()
        out[plain_name] = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
    return out


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint of a training run, without executing anything that is in it.

    Returns:
        ``config`` (arguments of the policy), ``state`` (plain names) and ``step`` (optimiser steps).
    """
    import pickle

    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise UserError(f"{path} cannot be read as a checkpoint without executing code in it: {error}") from error
    config = checkpoint.get("hyper_parameters") if isinstance(checkpoint, dict) else None
    if not config or "transformer" not in config or "state_dict" not in checkpoint:
        raise UserError(f"{path} is not a checkpoint of a bczoo policy")
    return {
        "config": dict(config),
        "state": plain(checkpoint["state_dict"], checkpoint.get(LORA_SCALE)),
        "step": int(checkpoint.get("global_step", 0)),
    }
