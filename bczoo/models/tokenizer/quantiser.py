"""A codebook: vectors in, the nearest codes and their ids out.

Place in the pipeline: between encoder and decoder of every tokenizer (paper 1711.00937). The decoder sees codes; their
gradient goes to the encoder as if nothing had been rounded (straight through).

Codes learn in one of two ways. ``ema``: each follows the mean of the vectors that chose it, in running sums that are
added up over all processes, so that every process keeps the same codebook. ``gradient``: a loss draws each code to the
vectors that chose it. A code that is hardly chosen any more is put on a vector of the batch, the first batch filling
the whole codebook in the same way.

vector-quantize-pytorch was looked at (1.32) and left out. It sums over processes only if they are connected when the
module is made, which is before Lightning connects them; one weight scales both the commitment and the codebook's loss;
gradient and unit length exclude each other; under autocast on a CPU distances are in bfloat16; and every vector has a
row of V ones and zeros beside its row of distances.

Shape legend: M vectors, d values of each, V codes.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from bczoo.core import arguments

LEARNING = ("ema", "gradient")
AT_ONCE = 2**24  # distances that are in memory together: 64 MB


class Quantised(NamedTuple):
    """What a codebook makes of vectors.

    Attributes:
        codes: (M, d), with the gradient of the vectors.
        ids: (M,) int64.
        loss: (M,) how far vectors and codes lie apart, weighted as they learn from it.
    """

    codes: Tensor
    ids: Tensor
    loss: Tensor


class Quantiser(nn.Module):
    """The nearest of V codes, in float32 whatever precision the training has.

    Args:
        codes: V.
        width: d.
        learning: ``ema`` or ``gradient``.
        commitment: weight of the loss that draws vectors to their codes; that of codes to vectors is 1.
        decay: of the running counts and sums, per training step.
        restart: a code is replaced when it is chosen less often than this share of an even use; 0 replaces none. A code
            that nothing chooses any more is so after ln(restart) / ln(decay) steps, by default 115.
        unit_length: compare directions: vectors and codes are brought to length 1 (ViT-VQGAN, 2110.04627).
    """

    codebook: Tensor  # (V, d)
    counts: Tensor  # (V,) running number of vectors a step that choose a code
    sums: Tensor  # (V, d) their running sum

    def __init__(
        self,
        codes: int,
        width: int,
        learning: str = "ema",
        commitment: float = 0.25,
        decay: float = 0.97,
        restart: float = 0.03,
        unit_length: bool = False,
    ) -> None:
        super().__init__()
        arguments.one_of("learning", learning, LEARNING)
        arguments.number("commitment", commitment, 0)
        arguments.share("decay", decay)
        arguments.share("restart", restart)
        arguments.flag("unit_length", unit_length)
        self.learning, self.commitment, self.decay = learning, commitment, decay
        self.restart, self.unit_length = restart, unit_length
        start = torch.randn(codes, width) / width**0.5
        if learning == "gradient":
            self.codebook = nn.Parameter(start)
        else:
            self.register_buffer("codebook", start)
            self.register_buffer("sums", torch.zeros(codes, width))
        self.register_buffer("counts", torch.zeros(codes))

    def lookup(self, ids: Tensor) -> Tensor:
        """Codes (..., d) of ids (...)."""
        return self._length(F.embedding(ids, self.codebook))

    @torch.no_grad()
    def nearest(self, vectors: Tensor) -> Tensor:
        """Ids (M,) of the codes nearest to vectors (M, d); of equally near ones the first."""
        with full_precision(vectors):
            vectors, codes = self._length(vectors.float()), self._length(self.codebook.float())
            half = codes.square().sum(-1) / 2  # |x|^2 is the same for all codes: the least |e|^2 - 2xe is asked for
            some = vectors.split(max(1, AT_ONCE // len(codes)))
            return torch.cat([(part @ codes.T - half).argmax(-1) for part in some])

    def forward(self, vectors: Tensor, counted: Tensor) -> Quantised:
        """Quantise vectors (M, d); in training mode the codebook learns from those that count (M,) bool."""
        with full_precision(vectors):
            vectors = self._length(vectors.float())
            if self.training:
                self._replace(vectors.detach(), counted)
            ids = self.nearest(vectors)
            codes = self.lookup(ids)
            loss = self.commitment * (vectors - codes.detach()).square().mean(-1)
            if self.learning == "gradient":
                loss = loss + (codes - vectors.detach()).square().mean(-1)
            through = vectors + (codes - vectors).detach()
            if self.training:
                self._follow(vectors.detach(), ids, counted)
            return Quantised(through, ids, loss)

    def _length(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1) if self.unit_length else vectors

    @torch.no_grad()
    def _follow(self, vectors: Tensor, ids: Tensor, counted: Tensor) -> None:
        """Take a batch into the running sums, and in ``ema`` move every code to its mean."""
        weight = counted.to(vectors.dtype)
        counts = torch.zeros_like(self.counts).index_add_(0, ids, weight)
        self.counts.lerp_(_over_processes(counts), 1 - self.decay)
        if self.learning == "ema":
            sums = torch.zeros_like(self.sums).index_add_(0, ids, vectors * weight[:, None])
            self.sums.lerp_(_over_processes(sums), 1 - self.decay)
            chosen = self.counts[:, None] > 1e-6  # of others the mean is lost in rounding; they stay where they are
            self.codebook.copy_(torch.where(chosen, self.sums / self.counts[:, None].clamp(min=1e-6), self.codebook))

    @torch.no_grad()
    def _replace(self, vectors: Tensor, counted: Tensor) -> None:
        """Put codes that are hardly chosen on vectors of the batch, on the same ones in every process.

        Vectors are drawn from those that count, each for one code; what is left waits for the next batch.
        """
        if not self.restart:
            return
        order = torch.rand(len(vectors), device=vectors.device).masked_fill(~counted, 2).argsort()
        drawn = torch.zeros_like(self.codebook)
        some = vectors[order[: len(drawn)]]
        drawn[: len(some)] = some
        drawable, total = counted.sum().clamp(max=len(drawn)), _over_processes(counted.sum())
        if distributed.is_available() and distributed.is_initialized():
            distributed.broadcast(drawn, 0)
            distributed.broadcast(drawable, 0)
        even = total.to(self.counts.dtype) / len(drawn)  # vectors a step that a code has in an even use
        dead = self.counts <= self.restart * even
        place = dead.cumsum(0) - 1  # which of the drawn vectors a dead code gets
        revived = dead & (place < drawable)
        drawn = drawn[place.clamp(min=0, max=len(drawn) - 1)]
        self.codebook.copy_(torch.where(revived[:, None], drawn, self.codebook))
        self.counts.copy_(torch.where(revived, even, self.counts))
        if self.learning == "ema":
            self.sums.copy_(torch.where(revived[:, None], drawn * even, self.sums))


def full_precision(tensor: Tensor) -> AbstractContextManager:
    """No autocast where a tensor is; tensors without memory know none."""
    return nullcontext() if tensor.is_meta else torch.autocast(tensor.device.type, enabled=False)


def _over_processes(values: Tensor) -> Tensor:
    """The sum over all processes of a training."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(values)
    return values
