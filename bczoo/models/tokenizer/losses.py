"""Distances of pictures that tokenizers are trained by.

Place in the pipeline: :class:`bczoo.models.tokenizer.training.VQTokenizer` adds a distance of pixels and a perceptual
one. LPIPS (1801.03924) compares features of VGG16, whose ImageNet weights torchvision downloads once; SSIM needs
nothing.

Shape legend: N pictures, H, W pixels.
"""

from __future__ import annotations

from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from bczoo.core.errors import UserError

PIXEL = ("l1", "l2")
PERCEPTUAL = ("lpips", "ssim", "none")


def pixel_distance(made: Tensor, target: Tensor, kind: str) -> Tensor:
    """Mean absolute or squared difference (N,) of pictures (N, 3, H, W)."""
    difference = made - target
    return (difference.abs() if kind == "l1" else difference.square()).mean((1, 2, 3))


def ssim(made: Tensor, target: Tensor) -> Tensor:
    """Structural similarity (N,) of pictures (N, 3, H, W) with values from 0 to 1."""
    found: Any = structural_similarity_index_measure(made.float(), target.float(), data_range=1.0, reduction="none")
    return found


class Perceptual:
    """A distance of pictures (N, 3, H, W) with values from 0 to 1, (N,).

    No module: the weights of VGG16 belong to no checkpoint and to no digest of a tokenizer.

    Args:
        kind: ``lpips``, ``ssim`` (1 minus the similarity) or ``none``.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._network: Any = None

    def __call__(self, made: Tensor, target: Tensor) -> Tensor:
        if self.kind == "ssim":
            return 1 - ssim(made, target)
        network = self.network(made.device)
        return network(made, target, normalize=True).flatten()

    def network(self, device: torch.device) -> Any:
        """The network of LPIPS on a device.

        Raises:
            UserError: its weights are not there and cannot be downloaded.
        """
        if self._network is None:
            from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

            try:
                self._network = LearnedPerceptualImagePatchSimilarity(net_type="vgg").net.requires_grad_(False)
            except (URLError, OSError, RuntimeError) as error:
                raise UserError(
                    f"the weights of VGG16, by which LPIPS compares pictures, cannot be downloaded ({error}); connect "
                    "this machine once, or train without them: --model.perceptual ssim --model.perceptual_weight 0.1"
                ) from error
        self._network = self._network.to(device)
        return self._network

    def __getstate__(self) -> dict[str, Any]:
        return {"kind": self.kind, "_network": None}  # another process loads it from the disk
