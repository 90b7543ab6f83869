"""WM-Token: predicts the tokens of the next picture from pictures and actions (paper 2411.04434, section 3.1).

Place in the pipeline::

    tokens (B,T,S) --TokenTransformer--> outputs (B,T,S,D) --those before tokens of pictures--> the loss
    a few real steps, then an action a step --Dream--> pictures, one after the other (dream.py)

Targets are the pictures' tokens alone; :class:`bczoo.TokenPolicy` is the same with the action tokens. The first picture
of a window has no past and does not count.

A few starts go with the world: the first steps of windows that it was trained on, as ids, in its weights. From these
it is played as a game (``--env dream:WORLD``).

Shape legend: B batch, T steps, z tokens of a picture, A action tokens, S = z + A tokens of a step, K starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from bczoo.core import arguments
from bczoo.core.errors import UserError
from bczoo.core.spec import Batch
from bczoo.models.token.sequences import TokenSequences, token_optimizer
from bczoo.train.loss import Loss


class WorldModel(TokenSequences):
    """WM-Token.

    It learns from what was done, whoever did it: a picture counts if the action before it is known.

    Args:
        tokenizer: a trained image tokenizer: an exported folder, a run such as runs/tokenizer, or org/name on the Hub.
            It is kept as it is, and becomes a part of this model.
        width: D of the transformer.
        layers: its blocks.
        heads: attention heads per block.
        dropout: in the transformer, in training; the paper's data never repeat.
        action_space: ``keyboard_mouse``, ``gamepad``, or a space as plain data (``ActionSpace.to_dict``).
        window: steps of a training window, at least 2. A picture is generated from the last half of them to all.
        fps: steps per second; 10 in the paper.
        inputs: what training reads: frames, which it tokenises at every step, or the tokens that bczoo tokenize has
            written, of this very tokenizer.
        starts: beginnings of training windows that go with the world, each half a window long.
        checkpointing: recompute the blocks in the backward pass to save memory.
        optimizer: makes the optimiser, given the parameters: matrices, and apart from them biases, norms and
            positions, which are not decayed.
        lr_scheduler: makes the learning rate schedule, given the optimiser and the number of steps of the run.
    """

    kind = "world model"
    title = "A world model, for the Python package `bczoo`: pictures and actions in, the next pictures out."
    starts: Tensor  # (K, T // 2, S) int32, -1 where there is none yet
    supervision = "any"

    def __init__(
        self,
        tokenizer: str | dict[str, Any],
        width: int = 512,
        layers: int = 8,
        heads: int = 8,
        dropout: float = 0.0,
        action_space: str | dict[str, Any] = "keyboard_mouse",
        window: int = 10,
        fps: float = 20.0,
        inputs: Literal["frames", "tokens"] = "frames",
        starts: int = 16,
        checkpointing: bool = False,
        optimizer: Callable[[Iterable], Optimizer] = token_optimizer,
        lr_scheduler: Callable[[Optimizer, int], LRScheduler] | None = None,
    ) -> None:
        arguments.whole("starts", starts, 1)
        sizes = (width, layers, heads, dropout, action_space, window, fps, inputs, checkpointing)
        super().__init__(tokenizer, *sizes, optimizer, lr_scheduler)
        self._full = False  # whether all starts are known to be there
        self.register_buffer("starts", torch.full((starts, window // 2, self.layout.length), -1, dtype=torch.int32))

    def loss(self, batch: Batch) -> Loss:
        """Mean over the tokens of pictures that count, in nats; apart for the first token of a picture and the rest."""
        return self.loss_of(self.sequence(self.encoded(batch), batch), batch)

    def loss_of(self, tokens: Tensor, batch: Batch) -> Loss:
        """:meth:`loss` of the batch's sequence (B, T, S)."""
        outputs = self.transformer.before_pictures(self.transformer(tokens))
        nats = self.transformer.cross_entropy(outputs, tokens[:, 1:, : self.layout.pictures])  # (B, T - 1, z)
        counted = self.counted(batch)
        pictures = self.mean_over_processes(counted.sum())
        pictures = torch.where(pictures > 0, pictures, 1)
        by_token = (nats * counted[..., None]).sum((0, 1)) / pictures  # (z,)
        parts = {"first_token_ce": by_token[0], "later_tokens_ce": by_token[1:].mean()} if len(by_token) > 1 else {}
        return Loss(by_token.mean(), parts)

    def counted(self, batch: Batch) -> Tensor:
        """How much each picture behind the first counts, (B, T - 1): by the action before it, which has to be known."""
        known = (batch["user"] | batch["system"]) & batch["valid"]
        weights = known * batch["weight"] if "weight" in batch else known.float()
        return weights[:, :-1] * batch["valid"][:, 1:]

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """As of every model; the first batches also give the starts."""
        if not self._full:
            self._keep_starts(self.sequence(self.encoded(batch), batch), self.counted(batch))
        return super().training_step(batch, batch_index)

    def _keep_starts(self, tokens: Tensor, counted: Tensor) -> None:
        """Fill free starts with the windows (B, T, S) all of whose first pictures count."""
        steps = self.starts.shape[1]
        free = int((self.starts[:, 0, 0] < 0).sum())  # the host waits for the device, until all are there
        self._full = free == 0
        whole = tokens[(counted[:, : max(steps - 1, 1)] > 0).all(1), :steps][:free].to(torch.int32)
        first = len(self.starts) - free
        self.starts[first : first + len(whole)] = whole

    def card_example(self) -> str:
        """Python of the model card."""
        return (
            "pictures, actions = model.layout.apart(model.start(0)[None])  # ids of real steps that go with the model\n"
            "dream = bczoo.Dream(model)\n"
            "dream.see(pictures, actions[:, :-1])\n"
            "frame = dream.pixels(dream.step(actions[:, -1]).ids)[0]\n"
        )

    def start(self, number: int) -> Tensor:
        """Tokens (T, S) of a start; any number will do.

        Raises:
            UserError: the world has not been trained, so there are none.
        """
        known = self.starts[self.starts[:, 0, 0] >= 0]
        if not len(known):
            raise UserError("this world model has no starts yet: they are taken from the first steps of its training")
        return known[number % len(known)].long()
