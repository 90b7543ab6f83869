"""Weights that are numbers.

Place in the pipeline: whatever reads or writes weights asks here: training before it saves
(:mod:`bczoo.train.callbacks.finite`), :mod:`bczoo.hub.folder` and :mod:`bczoo.hub.state` when they load or export. A
policy with a single NaN acts at random, and nothing else would tell.

The check reads all weights once. Where they are mapped from a file that means that the file is read as a whole, here
and not in the first step; it does not mean that they are copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from bczoo.core.errors import UserError
from bczoo.hub.names import some


def not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors, parameters and buffers, that hold NaN or infinity."""
    return [name for name, t in state.items() if t.is_floating_point() and not _finite(t)]


def _finite(tensor: Tensor) -> bool:
    """A sum that is a number has only numbers in it and takes no memory; one that is none may have overflowed."""
    total = tensor.sum(dtype=None if tensor.dtype == torch.float64 else torch.float32)
    return bool(total.isfinite()) or bool(tensor.isfinite().all())


def check_finite(state: Mapping[str, Tensor], where: str | Path) -> None:
    """Raise unless all weights are finite.

    Args:
        state: weights by name.
        where: the file or folder that they are from, for the error.
    """
    if names := not_finite(state):
        raise UserError(
            f"{where} holds weights that are NaN or infinite: {some(names)}, {len(names)} of {len(state)} tensors. "
            "Either their training had failed (take an earlier checkpoint, or train anew), or they are too large for "
            "the type that they are brought to (bfloat16 holds what float16 does not)"
        )
