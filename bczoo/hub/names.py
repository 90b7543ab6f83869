"""Names and shapes of the tensors in a state dict, whatever was wrapped around the model while it trained.

Place in the pipeline: :mod:`bczoo.hub.state` reads weights by these names, :mod:`bczoo.hub.build` compares them.
``torch.compile`` adds ``_orig_mod.`` to names; peft keeps a layer's own weight as ``base_layer`` beside two matrices.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

LORA_A, LORA_B = ".lora_A.default.weight", ".lora_B.default.weight"  # what peft appends to a layer's name


class Header(NamedTuple):
    """What is known of a stored tensor without reading it."""

    shape: tuple[int, ...]
    floating: bool


def plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without what ``torch.compile`` adds to names."""
    return {".".join(part for part in name.split(".") if part != "_orig_mod"): t for name, t in state.items()}


def plain_entries(state: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, tuple[Tensor, Tensor] | None]]:
    """Plain name to tensor and the LoRA matrices (A, B) to merge into it, if there are any."""
    state = plain_names(state)
    adapted = {name.removesuffix(LORA_A) for name in state if name.endswith(LORA_A)}
    out: dict[str, tuple[Tensor, tuple[Tensor, Tensor] | None]] = {}
    for name, tensor in state.items():
        layer, _, rest = name.rpartition(".base_layer.")
        if layer in adapted and rest == "weight" and layer + LORA_B in state:
            out[f"{layer}.weight"] = tensor, (state[layer + LORA_A], state[layer + LORA_B])
        elif layer in adapted:
            out[f"{layer}.{rest}"] = tensor, None
        elif name.removesuffix(LORA_A) not in adapted and name.removesuffix(LORA_B) not in adapted:
            out[name] = tensor, None
    return out


def some(names: list[str]) -> str:
    """The first few of many names."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
