"""BC-CNN in play: the last frames' embeddings are kept, the transformer runs over them anew at every frame.

Place in the pipeline: :meth:`bczoo.CNNPolicy.open_session`. Positions are absolute, so when the window is full and its
oldest step drops out, every other step moves by one and nothing computed before holds any more. A step therefore costs
one frame through the CNN and one window through the transformer, always the same.

Shape legend: R games, r games of a call, T steps of a window, D width, A action tokens, n tokens and V choices of a group.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bczoo.models.session import Mark, Session
from bczoo.nn.sampling import Sampler

if TYPE_CHECKING:
    from bczoo.models.cnn.policy import CNNPolicy


class CNNSession(Session):
    """Embeddings of the last steps of R games, oldest first."""

    policy: CNNPolicy

    def __init__(self, policy: CNNPolicy, num_envs: int, sampler: Sampler) -> None:
        super().__init__(policy, num_envs, sampler)
        like = policy.transformer.positions
        self.past = like.new_zeros(num_envs, policy.input_spec.window, policy.transformer.width)  # (R, T, D)

    @property
    def memory_bytes(self) -> int:
        return self.past.numel() * self.past.element_size()

    def step(self, env_ids: list[int], frames: Tensor, text: Tensor, u: Tensor, mark: Mark) -> tuple[Tensor, Tensor]:
        window = self.past.shape[1]
        index = torch.tensor(env_ids, device=self.device)
        embedding = self.policy.encoder(frames.to(self.device))[:, 0]  # (r, D)
        if self.policy.past_actions:
            before = self.policy.previous_action(self.last_ids[index], self.steps[index] > 0)
            embedding = embedding + before
        mark("encode")
        past = self.past[index]  # (r, T, D)
        full = (self.steps[index] >= window)[:, None, None]
        past = torch.where(full, past.roll(-1, dims=1), past)
        at = self.steps[index].clamp(max=window - 1)
        past[torch.arange(len(env_ids), device=self.device), at] = embedding.to(past.dtype)
        self.past[index] = past
        outputs = self.policy.transformer(past[:, : int(at.max()) + 1])
        latent = outputs[torch.arange(len(env_ids), device=self.device), at]  # (r, D)
        mark("backbone")
        choose = self.sampler(u if self.device.type == "mps" else u.to(self.device))
        ids = choose.all(self.policy.heads(latent), self.space)
        mark("decode")
        self.acted(env_ids, ids)
        return ids, choose.p
