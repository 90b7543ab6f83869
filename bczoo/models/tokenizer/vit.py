"""ViT-VQGAN: a tokenizer of two transformers, for frames of any proportions.

Place in the pipeline: a tokenizer of the zoo (:mod:`bczoo.models.tokenizer.training` trains it), the one of the models
with 540 tokens of paper 2411.04434 (BE-Large, A.1: 180 x 300 pixels, 18 x 30 tokens, a codebook of 4,096, "150M")::

    (N,3,180,300) --patches of 10 x 10--> (N,540,D) --6 blocks--> linear --> (N,540,32), length 1
    codes, length 1 --> linear --> (N,540,D) --6 blocks--> linear, patches --> (N,3,180,300)

Codes are narrow and compared by direction, after ViT-VQGAN (2110.04627). Width, depth and learned positions are this
package's choice: 153M parameters. Blocks are those of :mod:`bczoo.nn.gpt`, here with full attention.

Shape legend: N pictures, H, W pixels, z tokens, D width, d code width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from bczoo.core import arguments
from bczoo.core.spec import InputSpec
from bczoo.models.tokenizer.training import VQTokenizer, tokenizer_optimizer
from bczoo.models.tokenizer.vqvae import codebook, reduced
from bczoo.nn.gpt import GPT


class ViTVQGAN(VQTokenizer):
    """A VQGAN of two vision transformers.

    Args:
        frame_size: of the frames in pixels, multiples of the patch: one number for a square, or height and width.
        patch: pixels of a token's side.
        codebook_size: V.
        width: D of the transformers.
        layers: blocks of each.
        heads: attention heads per block.
        code_width: d.
        learning: how codes learn, ``ema`` or ``gradient``.
        commitment: weight of the loss that draws vectors to their codes.
        decay: of the running counts and sums of the codebook, per training step.
        restart: a code is replaced when it is chosen less often than this share of an even use; 0 replaces none.
        pixel: ``l1`` or ``l2``, the distance of pixels.
        perceptual: ``lpips`` (downloads VGG16 once), ``ssim`` or ``none``.
        perceptual_weight: of that distance.
        adversarial: weight of what a discriminator says, which adapts to the other losses; 0 trains none, ViT-VQGAN has
            0.1.
        adversarial_start: optimiser steps before it counts.
        checkpointing: recompute the blocks in the backward pass to save memory.
        window: steps of a training window; every step is a picture by itself.
        fps: steps per second that recordings are brought to.
        resize: filter that brings frames of another size to ``frame_size``, or ``letterbox``.
        optimizer: makes the optimiser, given the parameters.
        lr_scheduler: makes the learning rate schedule, given the optimiser and the number of steps of the run.
    """

    reference = (
        "[ViT-VQGAN](https://arxiv.org/abs/2110.04627), as [2411.04434](https://arxiv.org/abs/2411.04434) uses it"
    )
    lowest = 0.0

    def __init__(
        self,
        frame_size: int | list[int] = (180, 300),  # type: ignore[assignment]  # a default that nobody can change
        patch: int = 10,
        codebook_size: int = 4096,
        width: int = 1024,
        layers: int = 6,
        heads: int = 16,
        code_width: int = 32,
        learning: str = "gradient",
        commitment: float = 0.25,
        decay: float = 0.97,
        restart: float = 0.03,
        pixel: str = "l2",
        perceptual: str = "lpips",
        perceptual_weight: float = 0.1,
        adversarial: float = 0.0,
        adversarial_start: int = 10_000,
        checkpointing: bool = False,
        window: int = 4,
        fps: float = 20.0,
        resize: str = "hamming",
        optimizer: Callable[[Iterable], Optimizer] = tokenizer_optimizer,
        lr_scheduler: Callable[[Optimizer, int], LRScheduler] | None = None,
    ) -> None:
        spec = InputSpec(None, frame_size, fps, window, None, resize)  # type: ignore[arg-type]  # YAML gives lists
        arguments.whole("patch", patch, 1)
        arguments.whole("code_width", code_width, 1)
        grid = reduced(spec, patch)
        sides = [GPT(width, layers, heads, grid[0] * grid[1], 0.0, checkpointing, causal=False) for _ in range(2)]
        super().__init__(
            spec,
            grid,
            Encoder(sides[0], patch, code_width),
            codebook(codebook_size, code_width, learning, commitment, decay, restart, unit_length=True),
            Decoder(sides[1], patch, code_width),
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

    def __init__(self, transformer: GPT, patch: int, code_width: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, transformer.width, patch, patch)
        self.transformer = transformer
        self.project = nn.Linear(transformer.width, code_width)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patches(pixels)
        outputs = self.project(self.transformer(patches.flatten(2).transpose(1, 2)))
        return outputs.transpose(1, 2).unflatten(2, patches.shape[2:])


class Decoder(nn.Module):
    """Codes (N, d, rows, columns) to pixels (N, 3, H, W)."""

    def __init__(self, transformer: GPT, patch: int, code_width: int) -> None:
        super().__init__()
        self.project = nn.Linear(code_width, transformer.width)
        self.transformer = transformer
        self.last = nn.ConvTranspose2d(transformer.width, 3, patch, patch)

    def forward(self, codes: Tensor) -> Tensor:
        outputs = self.transformer(self.project(codes.flatten(2).transpose(1, 2)))
        return self.last(outputs.transpose(1, 2).unflatten(2, codes.shape[2:]))
