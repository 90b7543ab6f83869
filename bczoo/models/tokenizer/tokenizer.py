"""What token models ask of an image tokenizer: pictures to ids, ids to pictures, and a name for what makes the ids.

Place in the pipeline: ``bczoo fit`` trains a tokenizer on frames; ``bczoo tokenize`` writes the ids of recordings once;
token models (``bczoo/models/token``) learn from the ids and hold the tokenizer, frozen, to play and to show pictures.

Shape legend: N pictures, H, W pixels, z tokens of a picture (rows x columns, row by row), V codes.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import ClassVar

from torch import Tensor

from bczoo.models.model import Model
from bczoo.nn.weights import add_weights


class Tokenizer(Model):
    """Base class of image tokenizers (paper 2411.04434, A.1 and C.2).

    A tokenizer takes and predicts no actions: its ``input_spec`` has ``action_space=None``, and all steps count.

    Attributes:
        grid: rows and columns of tokens.
        codebook_size: V; ids are 0 to V - 1.
    """

    template = True
    kind = "tokenizer"
    title = "An image tokenizer, for the Python package `bczoo`: pixels in, ids of a codebook out, and back."
    supervision: ClassVar[str] = "none"
    grid: tuple[int, int]
    codebook_size: int

    @property
    def tokens(self) -> int:
        """Tokens z of a picture."""
        return self.grid[0] * self.grid[1]

    def encode(self, frames: Tensor) -> Tensor:
        """Ids (N, z) int64, row by row, of frames (N, 3, H, W) uint8; in float32, whatever precision training has."""
        raise NotImplementedError(f"{type(self).__name__} must define encode(frames)")

    def decode(self, ids: Tensor) -> Tensor:
        """Frames (N, 3, H, W) uint8 of ids (N, z)."""
        raise NotImplementedError(f"{type(self).__name__} must define decode(ids)")

    def card_facts(self) -> list[str]:
        """Lines of the model card."""
        rows, columns = self.grid
        return [
            f"{rows} x {columns} tokens of a picture (rows and columns), a codebook of {self.codebook_size:,}",
            f"digest `{self.digest}`, which ids made by these weights carry",
        ]

    def card_example(self) -> str:
        """Python of the model card."""
        height, width = self.input_spec.shape
        return (
            f"ids = model.encode(frames)  # (N, {self.tokens}) of uint8 frames (N, 3, {height}, {width})\n"
            "frames = model.decode(ids)\n"
        )

    @cached_property
    def digest(self) -> str:
        """A name for what makes the ids: class, arguments and weights. Take it once the weights are final."""
        made = hashlib.blake2b(repr(self.spec).encode(), digest_size=12)
        add_weights(made, self)
        return made.hexdigest()
