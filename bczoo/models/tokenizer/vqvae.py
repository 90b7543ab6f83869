"""VQ-VAE: a small convolutional tokenizer with any square number of tokens, or any grid.

Place in the pipeline: a tokenizer of the zoo (:mod:`bczoo.models.tokenizer.training` trains it). The encoder halves
the picture three times, its map is averaged to the grid, quantised, and stretched back for the mirrored decoder::

    (N,3,128,128) --conv 4x4 /2, three times--> (N,C,16,16) --2 residual blocks--> mean to g x g --1x1--> (N,d,g,g)
    (N,d,g,g) --1x1--> bilinear to (N,C,16,16) --2 residual blocks--> transposed conv 4x4 *2, three times--> tanh

Paper 2411.04434 (C.2) varies the tokens of the VQ-VAE (1711.00937) of github.com/nadavbh12/VQ-VAE from 16 to 256 and
does not say how. That one halves twice, which gives 1,024 tokens of 128 x 128 pixels; halving three times and averaging
to the grid is this package's choice.

Shape legend: N pictures, C channels, g rows and columns of tokens, d code width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from bczoo.core import arguments
from bczoo.core.errors import UserError
from bczoo.core.frames import named_size
from bczoo.core.spec import InputSpec
from bczoo.models.tokenizer.quantiser import Quantiser
from bczoo.models.tokenizer.training import VQTokenizer, square_or_grid, tokenizer_optimizer

REDUCTION = 8  # of the convolutions
RESIDUAL = 2  # blocks on either side


class VQVAE(VQTokenizer):
    """A convolutional VQ-VAE.

    Args:
        frame_size: of the frames in pixels, multiples of 8: one number for a square, or height and width.
        tokens: of a picture, a square number such as 64, or rows and columns; at most one for 8 x 8 pixels.
        codebook_size: V.
        channels: C of the convolutions.
        code_width: d.
        learning: how codes learn, ``ema`` or ``gradient``.
        commitment: weight of the loss that draws vectors to their codes.
        decay: of the running counts and sums of the codebook, per training step.
        restart: a code is replaced when it is chosen less often than this share of an even use; 0 replaces none.
        pixel: ``l1`` or ``l2``, the distance of pixels.
        perceptual: ``lpips`` (downloads VGG16 once), ``ssim`` or ``none``.
        perceptual_weight: of that distance.
        adversarial: weight of what a discriminator says, which adapts to the other losses; 0 trains none.
        adversarial_start: optimiser steps before it counts.
        window: steps of a training window; every step is a picture by itself.
        fps: steps per second that recordings are brought to.
        resize: filter that brings frames of another size to ``frame_size``, or ``letterbox``.
        optimizer: makes the optimiser, given the parameters.
        lr_scheduler: makes the learning rate schedule, given the optimiser and the number of steps of the run.
    """

    reference = "[VQ-VAE](https://arxiv.org/abs/1711.00937), as [2411.04434](https://arxiv.org/abs/2411.04434) uses it"

    def __init__(
        self,
        frame_size: int | list[int] = 128,
        tokens: int | list[int] = 64,
        codebook_size: int = 4096,
        channels: int = 128,
        code_width: int = 128,
        learning: str = "gradient",
        commitment: float = 0.5,
        decay: float = 0.97,
        restart: float = 0.03,
        pixel: str = "l2",
        perceptual: str = "none",
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
        for name, value in (("channels", channels), ("code_width", code_width)):
            arguments.whole(name, value, 1)
        grid = square_or_grid(tokens)
        mapped = reduced(spec, REDUCTION)
        if grid[0] > mapped[0] or grid[1] > mapped[1]:
            raise UserError(
                f"frames of {named_size(spec.frame_size)} pixels give a map of {mapped[0]} x {mapped[1]} (rows and "
                f"columns), too small for {grid[0]} x {grid[1]} tokens; take larger frames or fewer tokens"
            )
        super().__init__(
            spec,
            grid,
            Encoder(channels, code_width, grid),
            codebook(codebook_size, code_width, learning, commitment, decay, restart),
            Decoder(channels, code_width, mapped),
            pixel,
            perceptual,
            perceptual_weight,
            adversarial,
            adversarial_start,
            optimizer,
            lr_scheduler,
        )


def reduced(spec: InputSpec, reduction: int) -> tuple[int, int]:
    """Rows and columns of the map of frames that are reduced; a UserError where a side is no multiple."""
    height, width = spec.shape
    if height % reduction or width % reduction:
        raise UserError(
            f"frame_size must be a multiple of {reduction} pixels on both sides, got {named_size(spec.frame_size)}"
        )
    return height // reduction, width // reduction


def codebook(
    size: int, width: int, learning: str, commitment: float, decay: float, restart: float, unit_length: bool = False
) -> Quantiser:
    """A codebook whose ids fit into 16 bits, as they are kept on disk."""
    arguments.whole("codebook_size", size, 2, 2**16)
    return Quantiser(size, width, learning, commitment, decay, restart, unit_length)


class Encoder(nn.Module):
    """Pixels (N, 3, H, W) to a map (N, d, rows, columns)."""

    def __init__(self, channels: int, width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        layers: list[nn.Module] = []
        for before in (3, channels, channels):
            layers += [nn.Conv2d(before, channels, 4, 2, 1), nn.BatchNorm2d(channels), nn.ReLU()]
        layers += [ResidualBlock(channels) for _ in range(RESIDUAL)]
        self.layers = nn.Sequential(*layers)
        self.project = nn.Conv2d(channels, width, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.project(F.adaptive_avg_pool2d(self.layers(pixels), self.grid))


class Decoder(nn.Module):
    """Codes (N, d, rows, columns) to pixels (N, 3, H, W)."""

    def __init__(self, channels: int, width: int, mapped: tuple[int, int]) -> None:
        super().__init__()
        self.mapped = mapped
        self.project = nn.Conv2d(width, channels, 1)
        layers: list[nn.Module] = [ResidualBlock(channels) for _ in range(RESIDUAL)]
        for _ in range(2):
            layers += [nn.ConvTranspose2d(channels, channels, 4, 2, 1), nn.BatchNorm2d(channels), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.last = nn.ConvTranspose2d(channels, 3, 4, 2, 1)

    def forward(self, codes: Tensor) -> Tensor:
        stretched = F.interpolate(self.project(codes), self.mapped, mode="bilinear", align_corners=False)
        return self.last(self.layers(stretched)).tanh()


class ResidualBlock(nn.Module):
    """(N, C, h, w) to the same: a convolution of 3 x 3, one of 1 x 1, and what came in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)
