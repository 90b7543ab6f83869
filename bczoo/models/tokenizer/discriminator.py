"""A discriminator of patches, for tokenizers that are trained adversarially (VQGAN, 2012.09841).

Place in the pipeline: :class:`bczoo.models.tokenizer.training.VQTokenizer` adds what it says to its loss. Both learn in
one backward pass and by one optimiser: the tokenizer through the discriminator's weights as constants, the
discriminator from pictures as constants, so no gradient of one reaches the other.

Shape legend: N pictures, H, W pixels.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

CHANNELS = (64, 128, 256, 512)  # of PatchGAN (1611.07004), of which each output sees 70 x 70 pixels
GROUPS = 32
SMALLEST_PX = 32  # of which one output is left
LARGEST = 1e4  # of the adaptive weight


class PatchDiscriminator(nn.Module):
    """A number for every patch: above 0 for real ones.

    Layers and widths are PatchGAN's; GroupNorm takes the place of BatchNorm, whose statistics would tell real from made
    batches by themselves.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, CHANNELS[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for i, (before, after) in enumerate(pairwise(CHANNELS)):
            stride = 2 if i < len(CHANNELS) - 2 else 1
            layers += [nn.Conv2d(before, after, 4, stride, 1), nn.GroupNorm(GROUPS, after), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(CHANNELS[-1], 1, 4, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (N, 3, H, W) to (N, 1, rows, columns)."""
        return self.layers(pixels)

    def judge(self, pixels: Tensor) -> Tensor:
        """What it says of pictures (N, 3, H, W) on average, (N,), with a gradient to them and none to itself."""
        fixed = {name: parameter.detach() for name, parameter in self.named_parameters()}
        return functional_call(self, fixed, pixels).float().mean((1, 2, 3))


def hinge(discriminator: PatchDiscriminator, real: Tensor, made: Tensor) -> Tensor:
    """What the discriminator learns from: real patches above 1, made ones below -1; (N,)."""
    said_real, said_made = discriminator(real).float(), discriminator(made).float()
    return (F.relu(1 - said_real) + F.relu(1 + said_made)).mean((1, 2, 3)) / 2


def adaptive_weight(reconstruction: Tensor, judged: Tensor, last: Tensor) -> Tensor:
    """By how much the gradient of the other losses at the decoder's last weights exceeds that of what is judged."""
    (wanted,) = torch.autograd.grad(reconstruction, last, retain_graph=True)
    (other,) = torch.autograd.grad(judged, last, retain_graph=True)
    return (wanted.norm() / (other.norm() + 1e-4)).clamp(0, LARGEST).detach()
