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

    @cached_property
    def digest(self) -> str:
        """A name for what makes the ids: class, arguments and weights. Take it once the weights are final."""
        made = hashlib.blake2b(repr(self.spec).encode(), digest_size=12)
        add_weights(made, self)
        return made.hexdigest()
