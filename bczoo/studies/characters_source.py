"""Characters of the study ``bczoo study characters``: a Markov chain that never ends, or a text.

Place in the pipeline: :mod:`bczoo.studies.characters` trains on windows of a source. Those of the chain are always
fresh; those of a text start at random places of it, and its last tenth is held out.

Shape legend: B windows, L characters, S symbols of the chain.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np

from bczoo.core.errors import UserError

CLASSES = 128  # ASCII
ORDER = 3  # characters that the next one of the chain depends on
SYMBOLS = 32  # of the chain, S; from FIRST on
FIRST = ord("a") - 1
STRENGTHS = (1.5, 1.5, 1.0)  # of what the last, the last two and the last three characters say
CHAINS = 1024  # that run side by side
MIXING = 64  # characters, after which a chain has forgotten its start
HELD_OUT = 0.1  # of a text


class Source(Protocol):
    """Where windows come from."""

    def windows(self, count: int, length: int) -> np.ndarray:
        """(B, L) codes of ``count`` windows to train on."""


class MarkovSource:
    """An order-3 Markov chain over 32 symbols.

    The logit of the next symbol is that of a Zipf distribution, plus one Gaussian number for the last symbol, one for
    the last two and one for the last three. So there is something to learn at every size: short contexts are few and
    met often, long ones are many and most of them rare.

    Args:
        seed: of the chain's probabilities.
        stream: of the characters drawn from it.
    """

    def __init__(self, seed: int, stream: int) -> None:
        table = np.random.default_rng([seed, 0])
        logits = -np.log(np.arange(1.0, SYMBOLS + 1)).astype(np.float32)
        for order, strength in enumerate(STRENGTHS, 1):
            said = table.standard_normal((SYMBOLS**order, SYMBOLS), dtype=np.float32)
            logits = np.tile(logits, (SYMBOLS if logits.ndim > 1 else SYMBOLS**order, 1)) + strength * said
        chances = np.exp(logits)
        self.chances = chances / chances.sum(axis=1, keepdims=True)  # (S^3, S); a context is its symbols in base S
        self._below = np.cumsum(self.chances, axis=1)[:, :-1]
        self._random = np.random.default_rng([seed, 1, stream])
        self._contexts = self._random.integers(0, SYMBOLS**ORDER, CHAINS)
        self._left = np.empty((0, 0), dtype=np.int64)
        self._advance(MIXING)

    def windows(self, count: int, length: int) -> np.ndarray:
        if self._left.shape[1] != length:
            self._left = np.empty((0, length), dtype=np.int64)
        while len(self._left) < count:
            self._left = np.concatenate([self._left, self._advance(length)])
        taken, self._left = self._left[:count], self._left[count:]
        return taken

    def _advance(self, length: int) -> np.ndarray:
        """(CHAINS, L): all chains go on by so many characters."""
        drawn = np.empty((CHAINS, length), dtype=np.int64)
        for i in range(length):
            chance = self._random.random((CHAINS, 1), dtype=np.float32)
            drawn[:, i] = (chance > self._below[self._contexts]).sum(axis=1)
            self._contexts = (self._contexts * SYMBOLS + drawn[:, i]) % SYMBOLS**ORDER
        return drawn + FIRST


class TextSource:
    """Windows at random places of a text.

    Args:
        path: of the text, in ASCII.
        stream: of the places.
        held_out: take the last tenth, which is not trained on.
    """

    def __init__(self, path: str, stream: int, held_out: bool = False) -> None:
        codes = read_text(path)
        border = len(codes) - int(HELD_OUT * len(codes))
        self._codes = codes[border:] if held_out else codes[:border]
        self._random = np.random.default_rng(stream)

    def windows(self, count: int, length: int) -> np.ndarray:
        starts = self._random.integers(0, len(self._codes) - length + 1, count)
        return self._codes[starts[:, None] + np.arange(length)]


def read_text(path: str) -> np.ndarray:
    """The codes of a text.

    Raises:
        UserError: it is not there, or not in ASCII.
    """
    if not Path(path).is_file():
        raise UserError(f"there is no text {path}")
    codes = np.frombuffer(Path(path).read_bytes(), dtype=np.uint8).astype(np.int64)
    if (outside := np.flatnonzero(codes >= CLASSES)).size:
        raise UserError(
            f"{path} is not in ASCII: {outside.size} bytes, the first at {outside[0]}; convert it, such as by "
            "iconv -t ascii//TRANSLIT"
        )
    return codes


def training_characters(path: str) -> int:
    """Characters of a text that are trained on."""
    codes = read_text(path)
    return len(codes) - int(HELD_OUT * len(codes))
