"""BC-Token in play: each frame and each action is fed once, the tokens of an action are sampled one by one.

Place in the pipeline: :meth:`bczoo.TokenPolicy.open_session`. A step feeds the action of the step before, as it was
done, and the frame; then every action token but the last is drafted to get the next. The past is a
:class:`~bczoo.models.token.memory.TokenMemory`: a decision equals a forward pass over the last half of the window's
steps to all of them, and costs the same at every step.

Shape legend: r games of a call, z tokens of a picture, A action tokens, V choices of a token, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bczoo.models.session import Mark, Session
from bczoo.models.token.memory import TokenMemory
from bczoo.nn.sampling import Sampler

if TYPE_CHECKING:
    from bczoo.models.token.policy import TokenPolicy


class TokenSession(Session):
    """The past of R games."""

    policy: TokenPolicy

    def __init__(self, policy: TokenPolicy, num_envs: int, sampler: Sampler) -> None:
        super().__init__(policy, num_envs, sampler)
        self.memory = TokenMemory(policy.transformer, num_envs, policy.input_spec.window)

    @property
    def memory_bytes(self) -> int:
        return self.memory.memory_bytes

    def reset(self, env_id: int | None = None) -> None:
        super().reset(env_id)
        self.memory.reset(env_id)

    def step(self, env_ids: list[int], frames: Tensor, text: Tensor, u: Tensor, mark: Mark) -> tuple[Tensor, Tensor]:
        layout, transformer = self.policy.layout, self.policy.transformer
        pictures = self.policy.encode(frames.to(self.device)[:, None])[:, 0]  # (r, z)
        mark("encode")
        if acted := [one for one in env_ids if self.memory.fed[one]]:
            self.memory.feed(acted, layout.action_tokens(self.last_ids[acted]))
        output = self.memory.feed(env_ids, pictures)[:, -1]  # (r, D)
        mark("backbone")
        choose = self.sampler(self.for_sampling(u))
        chosen: list[Tensor] = []  # (r, 1) each
        for i in range(self.space.tokens):
            if i:
                token = chosen[-1] + layout.offsets[i - 1]
                output = self.memory.draft(env_ids, token, ahead=i - 1)[:, -1]
            logits = transformer.choices(output, layout.pictures + i)[:, None]  # (r, 1, V)
            chosen.append(choose(slice(i, i + 1), logits))
        ids = torch.cat(chosen, dim=-1)
        mark("decode")
        self.acted(env_ids, ids)
        return ids, choose.p
