"""Tiny policies and batches for tests: the real parts, under a million parameters, 64-pixel frames.

Also what several test files share: variants of the architecture, and a text encoder.
"""

from __future__ import annotations

import zlib
from functools import partial

import torch
import torch.nn.functional as F

from bczoo import (
    VQVAE,
    ActionDecoder,
    ActionSpace,
    BackboneHeads,
    BCPolicy,
    CNNPolicy,
    ConvNeXtEncoder,
    ImageEncoder,
    IndependentHeads,
    InputSpec,
    PolicyTransformer,
    TextEncoder,
    TokenPolicy,
    WorldModel,
)
from bczoo.models.tokenizer.tokenizer import Tokenizer

SIZE = 64
QUIET = {  # arguments of a trainer that writes and shows nothing
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}
VARIANTS = {  # arguments of tiny_policy
    "reference": {},
    "backbone heads": {"decoder": BackboneHeads},
    "independent heads": {"decoder": IndependentHeads},
    "many tokens": {"encoder": {"tokens": 3}, "thinking_tokens": 2},
    "no text": {"text_dim": None},
    "no text, many tokens": {"text_dim": None, "encoder": {"tokens": 3}, "thinking_tokens": 2},
    "no text, no thinking": {"text_dim": None, "thinking_tokens": 0},
    "grouped queries, sinks": {"transformer": {"kv_heads": 2, "sinks": 2}},
    "histories": {"transformer": {"history": [1, 3]}},
    "sinks, histories": {"transformer": {"sinks": 2, "history": [3, 1]}},
    "sinks, histories, grouped queries": {"transformer": {"sinks": 2, "history": [3, 1], "kv_heads": 2}},
    "no past actions": {"past_actions": False},
    "no past actions, backbone heads": {"past_actions": False, "decoder": BackboneHeads},
    "gamepad": {"action_space": "gamepad"},
    "everything": {
        "encoder": {"tokens": 4},
        "thinking_tokens": 2,
        "transformer": {"layers": 3, "kv_heads": 2, "sinks": 3, "history": [1, 4, None]},
    },
}


class Words(TextEncoder):
    """Embeddings by formula instead of a language model."""

    def __init__(self, width: int = 16) -> None:
        self.width = width

    def __call__(self, texts):
        seeds = [torch.Generator().manual_seed(zlib.crc32(text.encode())) for text in texts]
        return torch.stack([torch.randn(self.width, generator=seed) for seed in seeds])


def tiny_cnn(**arguments) -> CNNPolicy:
    encoder = partial(ConvNeXtEncoder, frame_size=SIZE, channels=[4, 8, 8], blocks=1, embedding=16)
    return CNNPolicy(**{"encoder": encoder, "width": 32, "layers": 2, "heads": 4, "window": 5} | arguments)


def tiny_vqvae(seed=0, **arguments) -> VQVAE:
    """A tokenizer of 32-pixel frames, 16 tokens, that has learned nothing but its codes."""
    torch.manual_seed(seed)
    sizes = {"frame_size": 32, "tokens": 16, "codebook_size": 32, "channels": 8, "code_width": 4, "learning": "ema"}
    return filled(VQVAE(**sizes | arguments))


def filled(tokenizer):
    """A tokenizer in evaluation mode whose codes and BatchNorm have seen noise, so that pictures have several ids."""
    frames = torch.randint(0, 256, (8, 3, *tokenizer.input_spec.shape), dtype=torch.uint8)
    frames[::2] = frames[::2, :, :1, :1]  # half of them of one colour
    tokenizer.train()
    with torch.no_grad():
        for _ in range(30):
            tokenizer.reconstruct(frames, torch.ones(8, dtype=torch.bool))
    return tokenizer.eval()


def tiny_policy(seed=0, encoder=None, transformer=None, decoder=ActionDecoder, **arguments) -> BCPolicy:
    torch.manual_seed(seed)
    encoder = {"backbone": "test_efficientnet", "frame_size": SIZE, "pretrained": False, "drop_path": 0.0} | (
        encoder or {}
    )
    transformer = {"width": 32, "layers": 2, "heads": 4, "dropout": 0.0} | (transformer or {})
    arguments = {"window": 5, "text_dim": 16} | arguments
    return BCPolicy(PolicyTransformer(**transformer), partial(ImageEncoder, **encoder), decoder, **arguments)


def random_actions(space: ActionSpace, batch: int, steps: int) -> dict[str, torch.Tensor]:
    return {g.name: torch.randint(0, g.choices, (batch, steps, g.tokens)) for g in space.groups}


def tiny_batch(policy: BCPolicy, batch=2, steps=5, seed=0) -> dict:
    torch.manual_seed(seed)
    text = torch.randn(batch, steps, policy.input_spec.text_dim or 1)
    text[:, ::2] = 0
    return {
        "frames": torch.randint(0, 256, (batch, steps, 3, SIZE, SIZE), dtype=torch.uint8),
        "actions": random_actions(policy.action_space, batch, steps),
        **({"text": text} if policy.input_spec.text_dim else {}),
        "user": torch.ones(batch, steps, dtype=torch.bool),
        "system": torch.zeros(batch, steps, dtype=torch.bool),
        "valid": torch.ones(batch, steps, dtype=torch.bool),
        "recording": torch.arange(batch),
        "start": torch.zeros(batch, dtype=torch.long),
    }


class Brightness(Tokenizer):
    """A tokenizer that learns nothing: the mean brightness of each patch, in levels.

    Args:
        frame_size: height and width of the frames in pixels.
        rows: of patches.
        columns: of patches.
        levels: V.
    """

    def __init__(self, frame_size: int = SIZE, rows: int = 2, columns: int = 2, levels: int = 16) -> None:
        super().__init__(InputSpec(None, frame_size, window=1, text_dim=None))
        self.grid, self.codebook_size, self.size = (rows, columns), levels, frame_size
        self.levels = torch.nn.Parameter(torch.linspace(0, 255, levels))  # weights, so that it can be saved

    def encode(self, frames):
        patches = F.adaptive_avg_pool2d(frames.float().mean(1, keepdim=True), self.grid).flatten(1)  # (N, z)
        return (patches[..., None] - self.levels).abs().argmin(-1)

    def decode(self, ids):
        grey = self.levels[ids].unflatten(-1, self.grid)[:, None]
        return F.interpolate(grey, size=(self.size, self.size)).round().to(torch.uint8).expand(-1, 3, -1, -1)


TOKENS = {"tokenizer": {"class_path": "tiny.Brightness", "init_args": {}}, "width": 32, "layers": 2, "heads": 4}


def tiny_token_policy(**arguments) -> TokenPolicy:
    return TokenPolicy(**{**TOKENS, "window": 6} | arguments)


def tiny_world(**arguments) -> WorldModel:
    return WorldModel(**{**TOKENS, "window": 6} | arguments)
