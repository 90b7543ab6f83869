"""What BC-Token and WM-Token share: the frozen tokenizer, the transformer, and how a batch becomes a sequence.

Place in the pipeline::

    frames (B,T,3,H,W) --tokenizer, frozen--> ids (B,T,z) --.
    tokens (B,T,z), ids that are on disk -------------------+--layout--> tokens (B,T,S) --transformer--> outputs
    actions (B,T,A) ----------------------------------------'

The tokenizer is a part of the model: checkpoints and exported folders hold its weights, so that a model plays and
shows pictures wherever it is loaded. It is not trained, and not counted among the learned parameters.

Shape legend: B batch, T steps, z tokens of a picture, A action tokens, S = z + A, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from bczoo.core import arguments
from bczoo.core.actions import ActionSpace
from bczoo.core.errors import UserError
from bczoo.core.parts import build_part
from bczoo.core.spec import Batch, InputSpec
from bczoo.models.model import Model
from bczoo.models.token.layout import TokenLayout
from bczoo.models.token.transformer import TokenTransformer
from bczoo.models.tokenizer.tokenizer import Tokenizer

INPUTS = ("frames", "tokens")  # of training
REFERENCE = "[Scaling Laws for Pre-training Agents and World Models](https://arxiv.org/abs/2411.04434)"


def token_optimizer(parameters: Iterable) -> Optimizer:
    """AdamW with nanoGPT's settings; the paper tunes the learning rate per size."""
    return torch.optim.AdamW(parameters, lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1)


def frozen_tokenizer(tokenizer: Tokenizer | str | Path | Mapping[str, Any]) -> Tokenizer:
    """A tokenizer in evaluation mode that learns nothing: an exported folder, a run, ``org/name``, or a spec."""
    if isinstance(tokenizer, str | Path):
        from bczoo.hub.source import locate  # knows all families

        try:
            tokenizer = locate(tokenizer).load(Tokenizer)
        except UserError as error:
            raise UserError(
                f"model.tokenizer {tokenizer}: {error}; it names a trained image tokenizer, such as that of "
                "bczoo fit --config vqvae_small"
            ) from error
    made = build_part("tokenizer", tokenizer, Tokenizer)
    return made.eval().requires_grad_(False)


class TokenSequences(Model):
    """Base class of the two families; arguments as of :class:`bczoo.TokenPolicy`.

    Attributes:
        layout: order and vocabulary of the tokens.
    """

    template = True
    reference = REFERENCE
    fields: tuple[str, ...]  # type: ignore[misc]  # of each model

    def __init__(
        self,
        tokenizer: Tokenizer | str | Mapping[str, Any],
        width: int,
        layers: int,
        heads: int,
        dropout: float,
        action_space: str | Mapping[str, Any],
        window: int,
        fps: float,
        inputs: str,
        checkpointing: bool,
        optimizer: Callable[[Iterable], Optimizer],
        lr_scheduler: Callable[[Optimizer, int], LRScheduler] | None,
        **options: Any,
    ) -> None:
        arguments.whole("window", window, 2)
        arguments.one_of("inputs", inputs, INPUTS)
        space, made = ActionSpace.of(action_space), frozen_tokenizer(tokenizer)
        seen = made.input_spec
        spec = InputSpec(space, seen.frame_size, fps, window, text_dim=None, resize=seen.resize)
        super().__init__(spec, optimizer=optimizer, lr_scheduler=lr_scheduler, **options)
        self.action_space = space
        self.fields = (inputs,)
        self.layout = TokenLayout(space, made.tokens, made.codebook_size)
        self.tokens_per_step = self.layout.length
        self.tokenizer = made
        self.transformer = TokenTransformer(self.layout, width, layers, heads, window, dropout, checkpointing)

    @property
    def config(self) -> dict[str, Any]:
        """As of every model; the tokenizer by its class and arguments, wherever it was loaded from."""
        return {**super().config, "tokenizer": self.tokenizer.spec}

    def card_facts(self) -> list[str]:
        """Lines of the model card."""
        rows, columns = self.tokenizer.grid
        tokens = f"{self.layout.length} tokens a step, of them {rows} x {columns} of the picture"
        return [*super().card_facts(), f"{tokens}; the tokenizer, frozen, is in the weights"]

    def _plain(self, name: str, value: Any) -> Any:
        return None if name == "tokenizer" else super()._plain(name, value)  # see config

    def train(self, mode: bool = True) -> TokenSequences:
        """Training mode for what learns; a tokenizer whose norms followed the batch would give other ids."""
        super().train(mode)
        self.tokenizer.eval()
        return self

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Frames (B, T, 3, H, W) to ids (B, T, z)."""
        return self.tokenizer.encode(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])

    def encoded(self, batch: Batch) -> Tensor:
        """Ids (B, T, z) of a batch: those that it holds, or the tokenizer's of its frames."""
        return batch["tokens"] if "tokens" in batch else self.encode(batch["frames"])

    def sequence(self, pictures: Tensor, batch: Batch) -> Tensor:
        """Tokens (B, T, S) of ids of pictures (B, T, z) and what was done in the batch."""
        return self.layout.steps(pictures, self.joined(batch["actions"]))

    def joined(self, actions: Mapping[str, Tensor]) -> Tensor:
        """Ids (B, T, A) of all groups (B, T, n)."""
        return torch.cat([actions[g.name] for g in self.action_space.groups], dim=-1)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Matrices, which are decayed, and what is not: biases, norms and positions (as in nanoGPT)."""
        learned = [p for p in self.parameters() if p.requires_grad]
        positions = self.transformer.gpt.positions
        decayed = [p for p in learned if p.ndim > 1 and p is not positions]
        others = [p for p in learned if p.ndim <= 1 or p is positions]
        return [{"params": decayed, "name": "matrices"}, {"params": others, "weight_decay": 0.0, "name": "others"}]
