"""Measures whose networks are downloaded at first use: LPIPS, and FVD on the features of an r3d_18.

Place in the pipeline: ``bczoo evaluate --networks true``. LPIPS is torchmetrics' (AlexNet, v0.1). FVD stands for the
Frechet distance on the 512 features of torchvision's r3d_18 (Kinetics-400, 112 x 112 pixels), not on those of the I3D
of the literature; its name says so, and numbers of other backbones do not compare.

Shape legend: N clips, T steps, H, W height and width in pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bczoo.core.errors import UserError

SHORTEST = 8  # frames that r3d_18 halves three times
CLIPS = 8  # at once


def lpips(one: Tensor, other: Tensor) -> Tensor:
    """LPIPS (N, T) of clips (N, T, 3, H, W) uint8, mean over nothing: of every picture."""
    from torchmetrics.functional.image import learned_perceptual_image_patch_similarity as measure

    try:
        pairs = zip(one.flatten(0, 1), other.flatten(0, 1), strict=True)
        values = [measure(a[None] / 255, b[None] / 255, net_type="alex", normalize=True) for a, b in pairs]
    except OSError as error:
        raise _unreachable("AlexNet", error) from error
    return torch.stack(values).view(one.shape[:2])


@torch.no_grad()
def r3d18_features(clips: Tensor) -> np.ndarray:
    """Features (N, 512) of clips (N, T, 3, H, W) uint8, at least 8 frames long."""
    from torchvision.models.video import R3D_18_Weights, r3d_18

    weights = R3D_18_Weights.KINETICS400_V1
    try:
        network = r3d_18(weights=weights).eval()
    except OSError as error:
        raise _unreachable("r3d_18", error) from error
    network.fc = torch.nn.Identity()
    prepare = weights.transforms()
    features = [network(prepare(some)) for some in clips.split(CLIPS)]
    return torch.cat(features).double().numpy()


def _unreachable(network: str, error: OSError) -> UserError:
    return UserError(
        f"the weights of {network} cannot be downloaded ({error}); leave --networks out, or run it once where there is "
        "a network and bring torch's cache along (TORCH_HOME)"
    )
