"""What tells a good tokenizer from a bad one: what its pictures lose, and how much of its codebook it uses.

Place in the pipeline: :class:`bczoo.models.tokenizer.training.VQTokenizer` logs them in validation. A codebook that has
collapsed makes the loss of a world model look very good, so its use is to be read beside every other number.

Shape legend: N pictures, H, W pixels, z tokens, V codes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from bczoo.models.tokenizer.losses import Perceptual, ssim


class ReconstructionMetrics(Metric):
    """Means over pictures of PSNR (dB), SSIM and LPIPS, and over all tokens the use of the codebook.

    ``psnr`` (of 8 bits, at most 60), ``ssim``, ``lpips`` (where the tokenizer is trained by it, so that its weights are
    there), ``perplexity`` of code use (1 to V: so many codes in even use have the same entropy) and ``codes_used``,
    the share of codes that was chosen at all.

    Args:
        codes: V.
        perceptual: what the tokenizer is trained by.
    """

    full_state_update = False
    used: Tensor
    sums: Tensor
    count: Tensor

    def __init__(self, codes: int, perceptual: Perceptual) -> None:
        super().__init__()
        self.perceptual = perceptual
        self.add_state("used", torch.zeros(codes, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("sums", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, made: Tensor, target: Tensor, ids: Tensor, counted: Tensor) -> None:
        """Add pictures.

        Args:
            made: (N, 3, H, W), from 0 to 1.
            target: what they should be.
            ids: (N, z).
            counted: (N,) bool, those that count.
        """
        weight = counted.to(torch.float64)
        error = (made - target).square().mean((1, 2, 3)).clamp(min=1e-6)  # 60 dB
        similar = ssim(made, target)
        distance = self.perceptual(made, target) if self.perceptual.kind == "lpips" else torch.zeros_like(error)
        self.sums += torch.stack([-10 * error.log10(), similar, distance]).to(torch.float64) @ weight
        self.count += weight.sum()
        self.used.index_add_(0, ids.flatten(), weight.repeat_interleave(ids.shape[1]))

    def compute(self) -> dict[str, Tensor]:
        psnr, similar, distance = (self.sums / self.count).float()
        share = self.used / self.used.sum()
        values = {
            "psnr": psnr,
            "ssim": similar,
            "perplexity": torch.special.entr(share).sum().exp().float(),
            "codes_used": (self.used > 0).float().mean(),
        }
        return values | {"lpips": distance} if self.perceptual.kind == "lpips" else values
