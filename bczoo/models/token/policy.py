"""BC-Token: acts by predicting the action tokens of a sequence of picture and action tokens (paper 2411.04434).

Place in the pipeline::

    tokens (B,T,S) --TokenTransformer--> outputs (B,T,S,D) --those before action tokens--> logits (B,T,n,V) per group

Each action token is predicted from all that was seen and done, and from the tokens of its own step before it. Targets
are the action tokens alone; :class:`bczoo.WorldModel` is the same with the pictures' tokens.

Shape legend: B batch, T steps, A action tokens, S = z + A tokens of a step, D width, n tokens and V choices of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from bczoo.core.spec import Batch, loss_mask, step_weights, targets
from bczoo.models.policy import Policy
from bczoo.models.token.sequences import TokenSequences, token_optimizer
from bczoo.models.token.session import TokenSession
from bczoo.nn.actions import Logits
from bczoo.nn.sampling import Sampler
from bczoo.train.loss import Loss


class TokenPolicy(TokenSequences, Policy):
    """BC-Token.

    Args:
        tokenizer: a trained image tokenizer: an exported folder, a run such as runs/tokenizer, or org/name on the Hub.
            It is kept as it is, and becomes a part of this model.
        width: D of the transformer.
        layers: its blocks.
        heads: attention heads per block.
        dropout: in the transformer, in training; the paper's data never repeat.
        action_space: ``keyboard_mouse``, ``gamepad``, or a space as plain data (``ActionSpace.to_dict``).
        window: steps of a training window, at least 2. In play a decision sees the last half of them to all of them.
        fps: steps per second; 10 in the paper.
        inputs: what training reads: frames, which it tokenises at every step, or the tokens that bczoo tokenize has
            written, of this very tokenizer.
        checkpointing: recompute the blocks in the backward pass to save memory.
        optimizer: makes the optimiser, given the parameters: matrices, and apart from them biases, norms and
            positions, which are not decayed.
        lr_scheduler: makes the learning rate schedule, given the optimiser and the number of steps of the run.
    """

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
        checkpointing: bool = False,
        optimizer: Callable[[Iterable], Optimizer] = token_optimizer,
        lr_scheduler: Callable[[Optimizer, int], LRScheduler] | None = None,
    ) -> None:
        sizes = (width, layers, heads, dropout, action_space, window, fps, inputs, checkpointing)
        super().__init__(tokenizer, *sizes, optimizer, lr_scheduler, z_loss=0.0)

    def logits_from(self, encoded: Tensor, batch: Batch) -> Logits:
        """Logits per group (B, T, n, V), each token's over its own range, from ids of pictures (B, T, z)."""
        return self._choices(self.transformer(self.sequence(encoded, batch)))

    def _choices(self, outputs: Tensor) -> Logits:
        """Logits per group of outputs (B, T, S, D)."""
        before, first = self.transformer.before_actions(outputs), self.layout.pictures
        return {
            name: torch.stack(
                [self.transformer.choices(before[:, :, i], first + i) for i in range(part.start, part.stop)], -2
            )
            for name, part in self.action_space.slices.items()
        }

    def loss(self, batch: Batch) -> Loss:
        """Mean over the action tokens that count, in nats, over the whole vocabulary; apart per group.

        Where an expert labelled a step that went otherwise, the tokens behind the first that differs do not count:
        the sequence holds what was done, and what the expert would have done next is not known from there.
        """
        done, wanted = self.joined(batch["actions"]), self.joined(targets(batch))
        outputs = self.transformer(self.sequence(self.encoded(batch), batch))
        nats = self.transformer.cross_entropy(
            self.transformer.before_actions(outputs), self.layout.action_tokens(wanted)
        )
        weights = step_weights(batch, loss_mask(batch, self.supervision))[..., None]
        differs = done != wanted
        counted = weights * (differs.cumsum(-1) - differs.long() == 0)  # (B, T, A)
        sums = {"": counted, **{name: counted[..., part] for name, part in self.action_space.slices.items()}}
        totals = self.mean_over_processes(torch.stack([one.sum() for one in sums.values()]))
        totals = torch.where(totals > 0, totals, 1)
        weighed = nats * counted
        parts = {
            f"{name}_ce": weighed[..., part].sum() / total
            for (name, part), total in zip(self.action_space.slices.items(), totals[1:], strict=True)
        }
        return Loss(weighed.sum() / totals[0], parts)

    @property
    def loss_scales(self) -> dict[str, float]:
        """The loss of validation is the mean over all action tokens, in nats."""
        return {g.name: self.action_space.tokens / g.tokens for g in self.action_space.groups}

    def open_session(self, num_envs: int, sampler: Sampler, cuda_graphs: bool | None = None) -> TokenSession:
        if cuda_graphs:
            super().open_session(num_envs, sampler, cuda_graphs)  # says that there are none
        return TokenSession(self, num_envs, sampler)
