"""BC-CNN: a small CNN, one embedding a frame, a GPT over a window of them (paper 2411.04434, section 3.2).

Place in the pipeline::

    frames (B,T,3,H,W) --encoder--> embeddings (B,T,D) --GPT--> outputs (B,T,D) --ActionHeads--> logits (B,T,n,V)
    actions of the step before --sum of embeddings--'  (with past_actions only)

Everything is trained together from a random start. Every action token is predicted from the same output, independently
of the others, and no past action enters: what the policy knows of the past, it saw.

Shape legend: B batch, T steps, H = W frame size, D width, A action tokens, n tokens and V choices of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from bczoo.core import arguments
from bczoo.core.actions import ActionSpace
from bczoo.core.parts import build_part
from bczoo.core.spec import Batch, InputSpec
from bczoo.models.cnn.encoder import ConvNeXtEncoder
from bczoo.models.cnn.session import CNNSession
from bczoo.models.policy import Policy
from bczoo.nn.actions import ActionEmbedding, ActionHeads, Logits
from bczoo.nn.encoders import Encoder
from bczoo.nn.gpt import GPT
from bczoo.nn.sampling import Sampler


def gpt_optimizer(parameters: Iterable) -> Optimizer:
    """AdamW with nanoGPT's settings; the paper tunes the learning rate per size."""
    return torch.optim.AdamW(parameters, lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1)


class CNNPolicy(Policy):
    """BC-CNN.

    Args:
        encoder: makes the image encoder, given the width; one token a frame.
        width: D of the transformer.
        layers: its blocks.
        heads: attention heads per block.
        dropout: in the transformer, in training; the paper's data never repeat, so it has none.
        action_space: ``keyboard_mouse``, ``gamepad``, or a space as plain data (``ActionSpace.to_dict``).
        past_actions: add the embeddings of the previous step's action to the frame's. The paper feeds none.
        window: steps of a training window and of the memory in play. The paper's is not known.
        fps: steps per second; 10 in the paper.
        resize: filter that brings frames of another size to the encoder's, in training and in play; or ``letterbox``,
            which keeps their proportions, for recordings that were made so.
        checkpointing: recompute the blocks in the backward pass to save memory.
        optimizer: makes the optimiser, given the parameters: matrices, and apart from them biases, norms and
            embeddings, which are not decayed.
        lr_scheduler: makes the learning rate schedule, given the optimiser and the number of steps of the run.
    """

    reference = "[Scaling Laws for Pre-training Agents and World Models](https://arxiv.org/abs/2411.04434)"
    independent_tokens = True

    def __init__(
        self,
        encoder: Callable[[int], Encoder] = ConvNeXtEncoder,
        width: int = 512,
        layers: int = 8,
        heads: int = 8,
        dropout: float = 0.0,
        action_space: str | dict[str, Any] = "keyboard_mouse",
        past_actions: bool = False,
        window: int = 100,
        fps: float = 20.0,
        resize: str = "hamming",
        checkpointing: bool = False,
        optimizer: Callable[[Iterable], Optimizer] = gpt_optimizer,
        lr_scheduler: Callable[[Optimizer, int], LRScheduler] | None = None,
    ) -> None:
        space = ActionSpace.of(action_space)
        arguments.flag("past_actions", past_actions)
        made = build_part("encoder", encoder, Encoder, width)
        spec = InputSpec(space, made.frame_size, fps, window, text_dim=None, resize=resize)
        super().__init__(spec, z_loss=0.0, optimizer=optimizer, lr_scheduler=lr_scheduler)
        self.encoder = made
        self.transformer = GPT(width, layers, heads, window, dropout, checkpointing)
        self.heads = ActionHeads(width, space)
        self.past_actions = past_actions
        if past_actions:
            self.action_embedding = ActionEmbedding(width, space)

    def encode(self, frames: Tensor) -> Tensor:
        """Frames (B, T, 3, H, W) to embeddings (B, T, D)."""
        return self.encoder(frames.flatten(0, 1)).mean(dim=1).unflatten(0, frames.shape[:2])

    def feature_encoder(self) -> Encoder:
        return self.encoder

    def encode_features(self, features: Tensor) -> Tensor:
        return self.encoder.from_features(features.flatten(0, 1)).mean(dim=1).unflatten(0, features.shape[:2])

    def logits_from(self, encoded: Tensor, batch: Batch) -> Logits:
        ids = torch.cat([batch["actions"][g.name] for g in self.action_space.groups], dim=-1)  # (B, T, A)
        return self.heads(self.outputs(encoded, F.pad(ids, (0, 0, 1, -1))))

    def outputs(self, embeddings: Tensor, before: Tensor) -> Tensor:
        """Outputs of the transformer (B, T, D) over a window.

        Args:
            embeddings: (B, T, D), from :meth:`encode`.
            before: ids (B, T, A) of the action of the step before each; that before the first step is not known.
        """
        if self.past_actions:
            known = torch.arange(before.shape[1], device=before.device) > 0
            embeddings = embeddings + self.action_embedding.of(before).sum(-2) * known[:, None]
        return self.transformer(embeddings)

    @property
    def loss_scales(self) -> dict[str, float]:
        """The loss is the mean over all action tokens, in nats (paper 2411.04434)."""
        return {g.name: self.action_space.tokens / g.tokens for g in self.action_space.groups}

    def open_session(self, num_envs: int, sampler: Sampler, cuda_graphs: bool | None = None) -> CNNSession:
        if cuda_graphs:
            super().open_session(num_envs, sampler, cuda_graphs)  # says that there are none
        return CNNSession(self, num_envs, sampler)

    def parameter_groups(self) -> list[dict[str, Any]]:
        learned = [p for p in self.parameters() if p.requires_grad]
        embeddings = {id(self.transformer.positions)}
        if self.past_actions:
            embeddings |= {id(p) for p in self.action_embedding.parameters()}
        decayed = [p for p in learned if p.ndim > 1 and id(p) not in embeddings]
        others = [p for p in learned if p.ndim <= 1 or id(p) in embeddings]
        return [{"params": decayed, "name": "matrices"}, {"params": others, "weight_decay": 0.0, "name": "others"}]
