"""The instruction under which a game is recorded, with the embedding that policies are trained on.

Place in the pipeline: :func:`bczoo.record.command.record` makes an :class:`Instruction` of what the user wrote; experts
(:mod:`bczoo.record.demonstrations`) and people (:mod:`bczoo.record.keyboard`) are recorded under it. Where a policy
plays, its own encoder embeds the text. Imports of other recorders' data embed theirs here too
(:mod:`bczoo.imports.command`). Imports no torch unless a text is embedded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bczoo.core.errors import UserError

if TYPE_CHECKING:
    from bczoo.nn.text import TextEncoder

    EncoderOrName = TextEncoder | str | dict[str, Any]
else:
    EncoderOrName = str | dict  # to the parser of the command line

AT_ONCE = 32  # texts
UNEMBEDDED = (
    "the instruction is written into the recordings without an embedding, and no policy learns from it so; give "
    "--text_encoder, such as bczoo.GemmaTextEncoder"
)


@dataclass(frozen=True)
class Instruction:
    """What the player was told.

    Args:
        text: in words; None for nothing.
        embedding: (E,) float32; None where there is no encoder.
    """

    text: str | None = None
    embedding: np.ndarray | None = None


NO_INSTRUCTION = Instruction()


def instruction_tag(text: str | None, encoder: EncoderOrName | None) -> str:
    """Part of an episode's name that changes with the instruction and its encoder; empty without an instruction."""
    if not text:
        return ""
    spec = encoder if encoder is None or isinstance(encoder, str | Mapping) else encoder.spec
    return "_text-" + hashlib.sha256(json.dumps([text, spec], sort_keys=True).encode()).hexdigest()[:8]


def make_instruction(text: str | None, encoder: EncoderOrName | None) -> Instruction:
    """Embed an instruction.

    Args:
        text: in words; none if it is empty.
        encoder: a text encoder, its class (``bczoo.GemmaTextEncoder``) or its ``{"class_path": ..., "init_args":
            {...}}``.

    Raises:
        UserError: there is no such encoder, or what it gives is no embedding.
    """
    if not text or encoder is None:
        return Instruction(text or None)
    return Instruction(text, embed([text], encoder)[text])


def embed(texts: Sequence[str], encoder: EncoderOrName) -> dict[str, np.ndarray]:
    """The embedding (E,) float32 of every text; encoder and errors as of :func:`make_instruction`."""
    from bczoo.core.parts import build_part  # brings in torch
    from bczoo.nn.text import TextEncoder

    made = build_part("text_encoder", {"class_path": encoder} if isinstance(encoder, str) else encoder, TextEncoder)
    out = {}
    for first in range(0, len(texts), AT_ONCE):
        some = texts[first : first + AT_ONCE]
        for text, row in zip(some, made(list(some)), strict=True):
            out[text] = np.asarray(row, np.float32)
            if out[text].ndim != 1 or not np.isfinite(out[text]).all():
                raise UserError(f"the text encoder gives no row of finite numbers for {text!r}")
    return out
