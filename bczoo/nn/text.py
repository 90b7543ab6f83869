"""Live instructions: a frozen text encoder.

Place in the pipeline: recordings carry precomputed embeddings; in play a written instruction goes through the same
frozen EmbeddingGemma-300M (paper 2601.04575, section 3): the mean over the last hidden states of up to 128 tokens.

Shape legend: N texts, L tokens, E text width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bczoo.core import arguments
from bczoo.core.devices import usable_device
from bczoo.core.errors import UserError
from bczoo.core.parts import Configured

MOST_TEXT_TOKENS = 2048  # of an instruction, what EmbeddingGemma takes


def where_untold(text: Tensor, instruction: Tensor) -> Tensor:
    """Embeddings (..., E) with an instruction (E,) at steps that carry none, which are all zero there."""
    return torch.where((text == 0).all(dim=-1, keepdim=True), instruction.to(text), text)


class TextEncoder(Configured):
    """Base class of text encoders. They are no part of the policy's weights."""

    template = True

    def __call__(self, texts: list[str]) -> Tensor:
        """Texts to embeddings (N, E), float32 on the CPU."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(texts)")


class GemmaTextEncoder(TextEncoder):
    """EmbeddingGemma through transformers, loaded on first use and kept frozen.

    Args:
        model: Hub name or local folder of the model and its tokenizer.
        max_tokens: longer instructions are cut.
        device: where it runs.
    """

    def __init__(self, model: str = "google/embeddinggemma-300m", max_tokens: int = 128, device: str = "cpu") -> None:
        arguments.line("GemmaTextEncoder.model", model)
        arguments.whole("GemmaTextEncoder.max_tokens", max_tokens, 1, MOST_TEXT_TOKENS)
        arguments.line("GemmaTextEncoder.device", device)
        try:
            torch.device(device)
        except RuntimeError as error:
            arguments.refuse("GemmaTextEncoder.device", device, "a device of torch such as cpu or cuda", cause=error)
        self.model_name, self.max_tokens, self.device = model, max_tokens, device
        self._loaded: tuple[Any, Any] | None = None

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            from transformers import AutoModel, AutoTokenizer

            device = usable_device(self.device)
            try:
                tokenizer = AutoTokenizer.from_pretrained(self.model_name, trust_remote_code=False)
                # no code and no pickle from elsewhere: the name may come with somebody's config
                model = AutoModel.from_pretrained(
                    self.model_name, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
                )
            except (OSError, ValueError) as error:
                raise UserError(
                    f"the text encoder {self.model_name!r} could not be loaded ({error}); it needs one download, and "
                    "a Hugging Face account that has accepted Gemma's licence (`hf auth login`)"
                ) from error
            self._loaded = tokenizer, model.to(device).eval().requires_grad_(False)
        return self._loaded

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> Tensor:
        tokenizer, model = self._load()
        tokens = tokenizer(texts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt").to(
            self.device
        )
        hidden = model(**tokens).last_hidden_state  # (N, L, E)
        mask = tokens["attention_mask"][..., None].to(hidden.dtype)
        return ((hidden * mask).sum(1) / mask.sum(1)).float().cpu()
