"""BC-CNN in play: the last frames' embeddings are kept, the transformer runs over them anew at every frame.

Place in the pipeline: :meth:`bczoo.CNNPolicy.open_session`. Positions are absolute, so when the window is full and its
oldest step drops out, every other step moves by one and nothing computed before holds any more. A step therefore costs
one frame through the CNN and one window through the transformer, and decides exactly as in training.

Shape legend: R games, r games of a call, T steps of a window, D width, A action tokens.
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
    """The last steps of R games, oldest first."""

    policy: CNNPolicy

    def __init__(self, policy: CNNPolicy, num_envs: int, sampler: Sampler) -> None:
        super().__init__(policy, num_envs, sampler)
        like, window = policy.transformer.positions, policy.input_spec.window
        self.embeddings = like.new_zeros(num_envs, window, policy.transformer.width)  # (R, T, D)
        self.before = self.last_ids.new_zeros(num_envs, window, self.space.tokens)  # (R, T, A), the action before each

    @property
    def memory_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.embeddings, self.before))

    def step(self, env_ids: list[int], frames: Tensor, text: Tensor, u: Tensor, mark: Mark) -> tuple[Tensor, Tensor]:
        index = torch.tensor(env_ids, device=self.device)
        embedding = self.policy.encode(frames.to(self.device)[:, None])[:, 0]  # (r, D)
        mark("encode")
        at = self.steps[index].clamp(max=self.embeddings.shape[1] - 1)
        x, before = (
            self._append(self.embeddings, index, at, embedding),
            self._append(self.before, index, at, self.last_ids[index]),
        )
        length = int(at.max()) + 1
        outputs = self.policy.outputs(x[:, :length], before[:, :length])
        latent = outputs[torch.arange(len(env_ids), device=self.device), at]  # (r, D)
        mark("backbone")
        choose = self.sampler(self.for_sampling(u))
        ids = choose.all(self.policy.heads(latent), self.space)
        mark("decode")
        self.acted(env_ids, ids)
        return ids, choose.p

    def _append(self, past: Tensor, index: Tensor, at: Tensor, value: Tensor) -> Tensor:
        """The window (r, T, ...) of some games with this step's value; where it is full the oldest step drops out."""
        window = past[index]
        full = (self.steps[index] >= past.shape[1])[:, None, None]
        window = torch.where(full, window.roll(-1, dims=1), window)
        window[torch.arange(len(index), device=self.device), at] = value.to(past.dtype)
        past[index] = window
        return window
