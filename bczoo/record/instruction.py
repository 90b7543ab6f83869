"""The instruction under which a game is recorded, with the embedding that policies are trained on.

Place in the pipeline: :func:`bczoo.record.command.record` makes an :class:`Instruction` of what the user wrote; experts
(:mod:`bczoo.record.demonstrations`) and people (:mod:`bczoo.record.keyboard`) are recorded under it. Where a policy
plays, its own encoder embeds the text. Imports no torch unless a text is embedded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bczoo.core.errors import UserError

if TYPE_CHECKING:
    from bczoo.nn.text import TextEncoder

    EncoderOrName = TextEncoder | str | dict[str, Any]
else:
    EncoderOrName = str | dict  # to the parser of the command line

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
    from bczoo.core.parts import build_part  # brings in torch
    from bczoo.nn.text import TextEncoder

    made = build_part("text_encoder", {"class_path": encoder} if isinstance(encoder, str) else encoder, TextEncoder)
    embedding = np.asarray(made([text])[0], np.float32)
    if embedding.ndim != 1 or not np.isfinite(embedding).all():
        raise UserError(f"the text encoder gives no row of finite numbers for {text!r}")
    return Instruction(text, embedding)
