"""The convolutional VQGAN: residual blocks over four resolutions, attention at the smallest.

Place in the pipeline: a tokenizer of the zoo (:mod:`bczoo.models.tokenizer.training` trains it), that of the models
with 256 tokens of paper 2411.04434 (BE-Small, A.1: 128 x 128 pixels, 16 x 16 tokens, a codebook of 4,096, "28M")::

    (N,3,H,W) --conv--> 2 blocks --/2--> 2 blocks --/2--> 2 blocks --/2--> 2 blocks with attention
              --> block, attention, block --> norm, conv --> (N,d,H/8,W/8), and the mirror with 3 blocks a level

The layout follows VQGAN (2012.09841) with 128 channels times (1, 1, 2, 2), this package's choice: 25.8M parameters.

Shape legend: N pictures, H, W pixels, C channels, d code width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from bczoo.core import arguments
from bczoo.core.spec import InputSpec
from bczoo.models.tokenizer.training import VQTokenizer, tokenizer_optimizer
from bczoo.models.tokenizer.vqvae import codebook, reduced

GROUPS = 32  # of GroupNorm


class VQGAN(VQTokenizer):
    """A convolutional VQGAN.

    Args:
        frame_size: of the frames in pixels, multiples of the reduction: one number for a square, or height and width.
        codebook_size: V.
        channels: of the first resolution, a multiple of 32.
        multipliers: of the channels, by resolution; each but the last is halved, so four reduce by 8.
        blocks: residual blocks a resolution; the decoder has one more.
        code_width: d.
        learning: how codes learn, ``ema`` or ``gradient``.
        commitment: weight of the loss that draws vectors to their codes.
        decay: of the running counts and sums of the codebook, per training step.
        restart: a code is replaced when it is chosen less often than this share of an even use; 0 replaces none.
        pixel: ``l1`` or ``l2``, the distance of pixels.
        perceptual: ``lpips`` (downloads VGG16 once), ``ssim`` or ``none``.
        perceptual_weight: of that distance.
        adversarial: weight of what a discriminator says, which adapts to the other losses; 0 trains none, VQGAN has
            0.8.
        adversarial_start: optimiser steps before it counts.
        window: steps of a training window; every step is a picture by itself.
        fps: steps per second that recordings are brought to.
        resize: filter that brings frames of another size to ``frame_size``, or ``letterbox``.
        optimizer: makes the optimiser, given the parameters.
        lr_scheduler: makes the learning rate schedule, given the optimiser and the number of steps of the run.
    """

    reference = "[VQGAN](https://arxiv.org/abs/2012.09841), as [2411.04434](https://arxiv.org/abs/2411.04434) uses it"

    def __init__(
        self,
        frame_size: int | list[int] = 128,
        codebook_size: int = 4096,
        channels: int = 128,
        multipliers: tuple[int, ...] = (1, 1, 2, 2),
        blocks: int = 2,
        code_width: int = 256,
        learning: str = "gradient",
        commitment: float = 0.25,
        decay: float = 0.97,
        restart: float = 0.03,
        pixel: str = "l1",
        perceptual: str = "lpips",
        perceptual_weight: float = 1.0,
        adversarial: float = 0.0,
        adversarial_start: int = 10_000,
        window: int = 4,
        fps: float = 20.0,
        resize: str = "hamming",
        optimizer: Callable[[Iterable], Optimizer] = tokenizer_optimizer,
        lr_scheduler: Callable[[Optimizer, int], LRScheduler] | None = None,
    ) -> None:
        spec = InputSpec(None, frame_size, fps, window, None, resize)  # type: ignore[arg-type]  # YAML gives lists
        if not isinstance(multipliers, list | tuple) or not multipliers:
            arguments.refuse("multipliers", multipliers, "a list of whole numbers from 1 on")
        for name, value in [("multipliers", m) for m in multipliers] + [("blocks", blocks), ("code_width", code_width)]:
            arguments.whole(name, value, 1)
        arguments.whole("channels", channels, GROUPS)
        if channels % GROUPS:
            arguments.refuse("channels", channels, f"a multiple of {GROUPS}")
        widths = [channels * m for m in multipliers]
        super().__init__(
            spec,
            reduced(spec, 2 ** (len(widths) - 1)),
            Encoder(widths, blocks, code_width),
            codebook(codebook_size, code_width, learning, commitment, decay, restart),
            Decoder(widths, blocks, code_width),
            pixel,
            perceptual,
            perceptual_weight,
            adversarial,
            adversarial_start,
            optimizer,
            lr_scheduler,
        )


class Encoder(nn.Module):
    """Pixels (N, 3, H, W) to a map (N, d, rows, columns)."""

    def __init__(self, widths: list[int], blocks: int, code_width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, padding=1)]
        before = widths[0]
        for level, width in enumerate(widths):
            last = level == len(widths) - 1
            for _ in range(blocks):
                layers += [ResidualBlock(before, width), *([Attention(width)] if last else [])]
                before = width
            if not last:
                layers.append(Halve(width))
        layers += [ResidualBlock(before, before), Attention(before), ResidualBlock(before, before)]
        layers += [norm(before), nn.SiLU(), nn.Conv2d(before, code_width, 3, padding=1)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(code_width, code_width, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(pixels)


class Decoder(nn.Module):
    """Codes (N, d, rows, columns) to pixels (N, 3, H, W)."""

    def __init__(self, widths: list[int], blocks: int, code_width: int) -> None:
        super().__init__()
        before = widths[-1]
        layers: list[nn.Module] = [nn.Conv2d(code_width, code_width, 1), nn.Conv2d(code_width, before, 3, padding=1)]
        layers += [ResidualBlock(before, before), Attention(before), ResidualBlock(before, before)]
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                layers += [ResidualBlock(before, width), *([Attention(width)] if level == len(widths) - 1 else [])]
                before = width
            if level:
                layers.append(Double(width))
        self.layers = nn.Sequential(*layers, norm(before), nn.SiLU())
        self.last = nn.Conv2d(before, 3, 3, padding=1)

    def forward(self, codes: Tensor) -> Tensor:
        return self.last(self.layers(codes))


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """(N, C, h, w) to (N, C', h, w): two convolutions of 3 x 3, and what came in."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            norm(before), nn.SiLU(), nn.Conv2d(before, after, 3, padding=1),
            norm(after), nn.SiLU(), nn.Conv2d(after, after, 3, padding=1),
        )  # fmt: skip
        self.skip = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.layers(x)


class Attention(nn.Module):
    """Attention of one head between all places of a map (N, C, h, w), and what came in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=-1)  # each (N, h w, C)
        mixed = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return x + self.out(mixed.transpose(1, 2).unflatten(2, x.shape[2:]))


class Halve(nn.Module):
    """A convolution of 3 x 3 with stride 2; the zeros lie right and below, as in VQGAN."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Double(nn.Module):
    """Every pixel four times, then a convolution of 3 x 3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
