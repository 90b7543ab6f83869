"""Linear layers packed for play on a CPU.

Place in the pipeline: :meth:`bczoo.BCPolicy.for_play` puts :class:`PackedLinear` in the place of every linear layer of
a policy that is only to play. In play a matrix meets a handful of tokens, so most of the time goes into bringing its
weights into the order that the processor computes in, again for every frame. oneDNN can do that once, at the start.

The operators are those that ``torch.compile`` uses on a CPU. They are not part of torch's public interface, so
:func:`can_pack` tries them on a small layer first; where they fail, policies play unpacked.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bczoo.core.errors import UserError

Module = TypeVar("Module", bound=nn.Module)
SMALLEST = 1 << 18  # weights of a layer; below, the order is not what takes the time
TOKENS = 12  # that a layer meets at once, as a hint for the order; others are computed too


class PackedLinear(nn.Module):
    """A linear layer for inference, with its weight in oneDNN's order.

    Args:
        linear: the layer; it stays as it is.

    Attributes:
        bytes: of weight and bias.
        packed_parameters: how many numbers they are.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.dtype = linear.weight.dtype
        parts = [linear.weight, *([linear.bias] if linear.bias is not None else [])]
        self.bytes = sum(p.numel() * p.element_size() for p in parts)
        self.packed_parameters = sum(p.numel() for p in parts)
        with torch.no_grad():
            self.packed = _pack(linear.weight.detach().contiguous(), TOKENS)
            self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            raise UserError("a policy made by for_play() has no gradients; call it under torch.no_grad()")
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, dtype={self.dtype}"

    def train(self, mode: bool = True) -> PackedLinear:
        if mode:
            raise UserError("a policy made by for_play() cannot be trained; train the one it was made of")
        return super().train(mode)

    def _save_to_state_dict(self, *arguments: Any) -> None:
        raise UserError("a policy made by for_play() cannot be saved; save the one it was made of")

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise UserError("a policy made by for_play() cannot be copied or pickled; copy the one it was made of")


def _pack(weight: Tensor, tokens: int) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight, tokens)


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this machine computes packed layers of a number type, and rightly."""
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():
        return False
    linear = nn.Linear(48, 32, dtype=dtype)
    x = torch.linspace(-1, 1, 5 * 48).view(5, 48).to(dtype)
    try:
        with torch.no_grad():
            difference = PackedLinear(linear)(x) - F.linear(x, linear.weight, linear.bias)
    except (RuntimeError, AttributeError):
        return False
    return float(difference.abs().max()) < (1e-5 if dtype == torch.float32 else 2e-2)


def with_packed_linears(module: Module) -> Module:
    """A twin of a module of this package whose large linear layers are packed; all else is shared with the original.

    Other packages' modules inside, such as an encoder's backbone, are shared whole: they may look into their layers.
    """
    return _twin(module)


def _twin(module: Any) -> Any:
    if type(module) is nn.Linear and module.weight.numel() >= SMALLEST:
        return PackedLinear(module)
    twin = copy.copy(module)
    for name, value in vars(module).items():
        if name.endswith("_hooks") or "_hooks_" in name:
            setattr(twin, name, copy.copy(value))
    twin._modules = {name: _twin(m) if _is_ours(m) else m for name, m in module._modules.items()}
    object.__setattr__(twin, "_apply", _refuse_to_move)  # before any tensor that both of them have is changed
    return twin


def _is_ours(module: Any) -> bool:
    return type(module) in (nn.Linear, nn.ModuleList, nn.ModuleDict) or type(module).__module__.startswith("bczoo.")


def _refuse_to_move(*arguments: Any, **options: Any) -> Any:
    raise UserError("a policy made by for_play() stays on its device and number type; move the one it was made of")
