"""How a tokenizer is trained: encoder, codebook, decoder, and what its pictures are measured by.

Place in the pipeline: :class:`VQTokenizer` is what the tokenizers of the zoo have in common; a family adds its encoder
and decoder::

    frames (B,T,3,H,W) --encoder--> (N,d,h,w) --quantiser--> codes, ids (N,z) --decoder--> pictures (N,3,H,W)

The loss is a distance of pixels, a perceptual distance (`losses.py`), that of vectors and codes, and, if it is asked
for, what a discriminator says (`discriminator.py`). Paper 2411.04434 says "reconstruction losses" alone.

Shape legend: B windows, T steps, N = B T pictures, H, W pixels, h, w rows and columns of tokens, z = h w, d code width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from bczoo.core import arguments
from bczoo.core.errors import UserError
from bczoo.core.frames import named_size
from bczoo.core.spec import Batch, InputSpec, loss_mask, pictures
from bczoo.models.tokenizer.discriminator import SMALLEST_PX, PatchDiscriminator, adaptive_weight, hinge
from bczoo.models.tokenizer.losses import PERCEPTUAL, PIXEL, Perceptual, pixel_distance
from bczoo.models.tokenizer.metrics import ReconstructionMetrics
from bczoo.models.tokenizer.quantiser import Quantiser, full_precision
from bczoo.models.tokenizer.tokenizer import Tokenizer
from bczoo.train.loss import Loss


class Reconstructed(NamedTuple):
    """What a tokenizer makes of pictures.

    Attributes:
        target: (N, 3, H, W) the pictures, in the range of the tokenizer.
        pixels: (N, 3, H, W) the same, decoded.
        ids: (N, z).
        apart: (N,) how far vectors and codes lie apart, weighted.
    """

    target: Tensor
    pixels: Tensor
    ids: Tensor
    apart: Tensor


def tokenizer_optimizer(parameters: Iterable) -> Optimizer:
    """Adam with this package's settings; the paper does not state any."""
    return torch.optim.Adam(parameters, lr=2e-4)


class VQTokenizer(Tokenizer):
    """Base class of tokenizers with an encoder, a codebook and a decoder.

    Args:
        input_spec: what pictures are brought to; without actions.
        grid: rows and columns of tokens.
        encoder: pixels (N, 3, H, W) to (N, d, h, w).
        quantiser: the codebook.
        decoder: codes (N, d, h, w) to pixels; its last layer is ``last``.
        pixel: ``l1`` or ``l2``, the distance of pixels.
        perceptual: ``lpips`` (downloads VGG16 once), ``ssim`` or ``none``.
        perceptual_weight: of that distance.
        adversarial: weight of what a discriminator says, which adapts to the other losses; 0 trains none.
        adversarial_start: optimiser steps before it counts.
        optimizer: makes the optimiser, given the parameters.
        lr_scheduler: makes the learning rate schedule, given the optimiser and the number of steps of the run.

    Attributes:
        lowest: value of a black pixel; that of a white one is 1.
    """

    template = True
    lowest = -1.0

    def __init__(
        self,
        input_spec: InputSpec,
        grid: tuple[int, int],
        encoder: nn.Module,
        quantiser: Quantiser,
        decoder: Any,
        pixel: str,
        perceptual: str,
        perceptual_weight: float,
        adversarial: float,
        adversarial_start: int,
        optimizer: Callable[[Iterable], Optimizer],
        lr_scheduler: Callable[[Optimizer, int], LRScheduler] | None,
    ) -> None:
        arguments.one_of("pixel", pixel, PIXEL)
        arguments.one_of("perceptual", perceptual, PERCEPTUAL)
        arguments.number("perceptual_weight", perceptual_weight, 0)
        arguments.number("adversarial", adversarial, 0)
        arguments.whole("adversarial_start", adversarial_start, 0)
        if adversarial and min(input_spec.shape) < SMALLEST_PX:
            raise UserError(
                f"a discriminator (adversarial {adversarial:g}) takes frames of at least {SMALLEST_PX} pixels on both "
                f"sides, got {named_size(input_spec.frame_size)}"
            )
        super().__init__(input_spec, optimizer, lr_scheduler)
        self.grid, self.codebook_size = grid, len(quantiser.codebook)
        self.encoder, self.quantiser = encoder, quantiser
        self.decoder: Any = decoder
        self.pixel, self.perceptual_weight = pixel, perceptual_weight
        self.perceptual = Perceptual(perceptual)
        self.adversarial, self.adversarial_start = adversarial, adversarial_start
        self.discriminator = PatchDiscriminator() if adversarial else None
        with torch.device("cpu"):  # a loaded model is built without memory, and no file holds what these begin with
            stages = ("val", "test")
            self.metrics = nn.ModuleDict(
                {s: ReconstructionMetrics(self.codebook_size, self.perceptual) for s in stages}
            )

    # ------------------------------------------------------------------ ids and pictures

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Ids (N, z) int64, row by row, of frames (N, 3, H, W) uint8, in float32 and in evaluation mode."""
        if self.dtype != torch.float32:
            self.float()
        training = self.training
        self.eval()  # BatchNorm would give a picture other ids by what it is encoded with, and learn from it
        try:
            with full_precision(frames):
                return self.quantiser.nearest(self._vectors(self.to_pixels(frames))).unflatten(0, (len(frames), -1))
        finally:
            self.train(training)

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        """Frames (N, 3, H, W) uint8 of ids (N, z)."""
        if ids.ndim != 2 or ids.shape[1] != self.tokens:
            raise UserError(f"ids have the shape (N, {self.tokens}), got {tuple(ids.shape)}")
        training = self.training
        self.eval()
        try:
            return self.to_frames(self._decoded(self.quantiser.lookup(ids).flatten(0, 1)))
        finally:
            self.train(training)

    def to_pixels(self, frames: Tensor) -> Tensor:
        """Frames (N, 3, H, W) uint8 as numbers from ``lowest`` to 1."""
        if frames.dtype != torch.uint8 or frames.ndim != 4 or tuple(frames.shape[1:]) != (3, *self.input_spec.shape):
            raise UserError(
                f"this tokenizer takes uint8 frames of {named_size(self.input_spec.frame_size)} pixels, "
                f"(N, 3, {self.input_spec.shape[0]}, {self.input_spec.shape[1]}), got {frames.dtype} "
                f"{tuple(frames.shape)}"
            )
        return self.lowest + frames.float() * ((1 - self.lowest) / 255)

    def to_unit(self, pixels: Tensor) -> Tensor:
        """Pixels as numbers from 0 to 1, as measures and the perceptual distance take them."""
        return ((pixels.float() - self.lowest) / (1 - self.lowest)).clamp(0, 1)

    def to_frames(self, pixels: Tensor) -> Tensor:
        """Pixels as uint8."""
        return (self.to_unit(pixels) * 255).round().to(torch.uint8)

    def reconstruct(self, frames: Tensor, counted: Tensor) -> Reconstructed:
        """Encode and decode frames (N, 3, H, W) uint8; the codebook learns from those that count (N,), in training."""
        target = self.to_pixels(frames)
        codes, ids, apart = self.quantiser(self._vectors(target), counted.repeat_interleave(self.tokens))
        ids, apart = ids.unflatten(0, (-1, self.tokens)), apart.unflatten(0, (-1, self.tokens)).mean(1)
        return Reconstructed(target, self._decoded(codes).float(), ids, apart)

    def _vectors(self, pixels: Tensor) -> Tensor:
        """Vectors (N z, d) of pixels (N, 3, H, W)."""
        return self.encoder(pixels).permute(0, 2, 3, 1).flatten(0, 2)

    def _decoded(self, codes: Tensor) -> Tensor:
        """Pixels (N, 3, H, W) of codes (N z, d)."""
        return self.decoder(codes.unflatten(0, (-1, *self.grid)).permute(0, 3, 1, 2).contiguous())

    # ------------------------------------------------------------------ training

    def loss(self, batch: Batch) -> Loss:
        """The distances of a batch's pictures from what the tokenizer makes of them."""
        return self._loss(*self._reconstructed(batch))

    def _reconstructed(self, batch: Batch) -> tuple[Reconstructed, Tensor]:
        """What becomes of a batch's pictures, and which of them (N,) count."""
        counted = loss_mask(batch, self.supervision).flatten()
        return self.reconstruct(pictures(batch).flatten(0, 1), counted), counted

    def _loss(self, made: Reconstructed, counted: Tensor) -> Loss:
        weight = counted.float()
        count = self.mean_over_processes(weight.sum()).clamp(min=1e-6)

        def mean(values: Tensor) -> Tensor:  # (N,) of pictures
            return (values * weight).sum() / count

        pixel = mean(pixel_distance(made.pixels, made.target, self.pixel))
        parts = {self.pixel: pixel, "commitment": mean(made.apart)}
        total = pixel
        if self.perceptual.kind != "none":
            distance = self.perceptual(self.to_unit(made.pixels), self.to_unit(made.target))
            parts[self.perceptual.kind] = mean(distance)
            total = total + self.perceptual_weight * parts[self.perceptual.kind]
        if self.discriminator is not None:
            judged = mean(-self.discriminator.judge(made.pixels))
            started = self.global_step >= self.adversarial_start
            if torch.is_grad_enabled():
                judged = adaptive_weight(total, judged, self.decoder.last.weight) * judged
            learned = mean(hinge(self.discriminator, made.target, made.pixels.detach()))
            # before the start times 0, so that every weight has a gradient in every process
            total = total + (self.adversarial * judged + learned) * started
            parts |= {"adversarial": judged, "discriminator": learned}
        return Loss(total + parts["commitment"], parts)

    # ------------------------------------------------------------------ validation

    def evaluate(self, batch: Batch, stage: str) -> dict[str, Any]:
        """Add a batch to the measures; returns pictures and what became of them, uint8, for callbacks."""
        made, counted = self._reconstructed(batch)
        loss = self._loss(made, counted)
        for name, value in {"loss": loss.total, **loss.parts}.items():
            size = len(batch["recording"])
            self.log(f"{stage}/{name}", value, prog_bar=name == "loss", batch_size=size, sync_dist=True)
        self.metrics[stage].update(self.to_unit(made.pixels), self.to_unit(made.target), made.ids, counted)  # type: ignore[operator]
        return {"frames": self.to_frames(made.target), "reconstructions": self.to_frames(made.pixels)}

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def _log_metrics(self, stage: str) -> None:
        metrics = self.metrics[stage]
        values = metrics.compute()  # type: ignore[operator]  # of all ranks, so the same on all of them
        metrics.reset()  # type: ignore[operator]
        for name, value in values.items():
            self.log(f"{stage}/{name}", value, prog_bar=name == "psnr", sync_dist=True)


def square_or_grid(tokens: int | list[int]) -> tuple[int, int]:
    """Rows and columns of a number of tokens that is a square, or of both numbers."""
    if isinstance(tokens, list | tuple):
        if len(tokens) != 2:
            arguments.refuse("tokens", tokens, "a square number such as 64, or rows and columns such as [18, 30]")
        for side in tokens:
            arguments.whole("tokens", side, 1)
        return tokens[0], tokens[1]
    arguments.whole("tokens", tokens, 1)
    side = round(tokens**0.5)
    if side * side != tokens:
        arguments.refuse("tokens", tokens, "a square number such as 64, or rows and columns such as [18, 30]")
    return side, side
