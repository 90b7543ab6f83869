"""State dicts under their plain names, whatever was wrapped around the policy while it trained.

Place in the pipeline: everything that is exported passes here, so that compiled, LoRA-trained and plainly trained
policies publish the same names. ``torch.compile`` adds ``_orig_mod.`` to names; peft keeps a layer's own weight as
``base_layer`` beside two small matrices, which are merged here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from bczoo.errors import UserError

if TYPE_CHECKING:
    from bczoo.model.policy import BCPolicy

LORA_SCALE = "bczoo_lora_scale"  # key of a checkpoint
LORA_A, LORA_B = ".lora_A.default.weight", ".lora_B.default.weight"  # what peft appends to a layer's name


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
    state = {".".join(part for part in name.split(".") if part != "_orig_mod"): t for name, t in state.items()}
    adapted = {name.removesuffix(LORA_A) for name in state if name.endswith(LORA_A)}
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        layer, _, rest = name.rpartition(".base_layer.")
        if layer in adapted and rest == "weight":
            if lora_scale is None:
                raise UserError("these weights have LoRA matrices, but it is not known how to scale them")
            a, b = state[layer + LORA_A].detach().float(), state[layer + LORA_B].detach().float()
            tensor = (tensor.detach().float() + lora_scale * (b @ a)).to(tensor.dtype)
        elif name.removesuffix(LORA_A) in adapted or name.removesuffix(LORA_B) in adapted:
            continue
        tensor = tensor.detach().cpu()
        plain_name = f"{layer}.{rest}" if layer in adapted else name
        out[plain_name] = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
    return out


class Checkpoint(NamedTuple):
    """What a checkpoint of a training run holds of the policy.

    Args:
        config: arguments of the policy.
        state: weights under plain names.
        step: optimiser steps.
    """

    config: dict[str, Any]
    state: dict[str, Tensor]
    step: int


def read_checkpoint(path: str | Path) -> Checkpoint:
    """A checkpoint, without executing anything that is in it; the policy is not built yet."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged file fails in any way
        raise UserError(f"{path} cannot be read as a checkpoint without executing code in it: {error}") from error
    known = checkpoint if isinstance(checkpoint, dict) else {}
    config, state = known.get("hyper_parameters"), known.get("state_dict")
    step, scale = known.get("global_step", 0), known.get(LORA_SCALE)
    if (
        not isinstance(config, dict)
        or not isinstance(state, dict)
        or not all(isinstance(k, str) and isinstance(t, Tensor) for k, t in state.items())
        or not isinstance(step, int)
        or not isinstance(scale, float | int | None)
    ):
        raise UserError(f"{path} is not a checkpoint of a bczoo policy")
    try:
        return Checkpoint(config, plain(state, scale), step)
    except (UserError, KeyError, RuntimeError) as error:
        raise UserError(f"the LoRA matrices in {path} cannot be merged: {error}") from error
