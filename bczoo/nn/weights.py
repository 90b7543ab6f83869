"""What tells the weights of one module from those of another.

Place in the pipeline: recordings of a policy are named by its weights; guesses of an inverse dynamics model and
features of a frozen encoder keep by which weights they were made.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def add_weights(digest: Any, module: nn.Module) -> None:
    """Add names and values of all parameters and buffers to a digest of :mod:`hashlib`."""
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
