"""The streaming agent: one frame in, one action out.

Place in the pipeline: in play (evaluation, servers) frames arrive one at a time. The agent resizes them as in
training, runs one backbone pass per frame over its :class:`~bczoo.model.memory.Memory`, and draws the action tokens
one after the other. Many games can share one agent: one forward steps all of them.

Shape legend: R games, r games of a call, A action tokens, n tokens and V choices of a group, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bczoo import sampling
from bczoo.actions import Decision, MouseDecoding
from bczoo.errors import UserError
from bczoo.frames import resize
from bczoo.model.memory import Memory
from bczoo.model.policy import BCPolicy

MOST_TEXTS = 256  # embedded instructions that an agent remembers


class Agent:
    """Plays ``games`` games with one policy. State lives here, never in the policy.

    Args:
        policy: the policy; put into evaluation mode.
        games: how many games it plays side by side.
        temperature: divides the logits before sampling.
        top_p: sample only from the most likely choices that together reach this mass.
        mouse: how a mouse bin becomes pixels.
        seed: of the draws.
        greedy: take the most likely id instead of sampling.
    """

    def __init__(
        self,
        policy: BCPolicy,
        games: int = 1,
        temperature: float = 1.0,
        top_p: float | None = None,
        mouse: MouseDecoding = "truncated_normal",
        seed: int = 0,
        greedy: bool = False,
    ) -> None:
        self.policy = policy.eval()
        self.games, self.temperature, self.top_p, self.mouse, self.greedy = (
            games,
            temperature,
            top_p,
            mouse,
            greedy,
        )
        self.rngs = [np.random.default_rng([seed, row]) for row in range(games)]
        self.space, self.layout = policy.action_space, policy.layout
        self.memory = Memory(policy.transformer, self.layout, policy.input_spec.window, games)
        self.device = self.memory.device
        # action tokens of the last step that the backbone has not seen yet
        self.pending_from = self.space.tokens - 1 if policy.decoder.in_backbone else 0
        self.now = torch.zeros(games, dtype=torch.long, device=self.device)
        self.last_ids = torch.zeros(games, self.space.tokens, dtype=torch.long, device=self.device)
        self.latent: Tensor | None = None
        self._texts: dict[str, Tensor] = {}

    def reset(self, row: int = 0, seed: int | None = None) -> None:
        """Start game ``row`` anew: nothing of what was seen is remembered; with a seed its draws start anew too."""
        self.now[row] = 0
        if seed is not None:
            self.rngs[row] = np.random.default_rng(seed)

    def step(self, frame: np.ndarray, text: str | Tensor | np.ndarray | None = None) -> Decision:
        """Act on one frame, uint8 (H, W, 3) or (3, H, W) of any size, under an instruction or its embedding."""
        return self.step_many([0], [frame], [text])[0]

    @torch.no_grad()
    def step_many(
        self,
        rows: Sequence[int],
        frames: Sequence[np.ndarray],
        texts: Sequence[str | Tensor | np.ndarray | None] | None = None,
    ) -> list[Decision]:
        """Act in several games with one forward.

        Args:
            rows: the games that step, ascending.
            frames: one frame per game that steps.
            texts: one instruction (or its embedding) per game that steps; None for none.
        """
        if list(rows) != sorted(set(rows)) or not rows or not 0 <= rows[0] <= rows[-1] < self.games:
            raise ValueError(f"rows must be ascending numbers of games in 0..{self.games - 1}, got {list(rows)}")
        if len(frames) != len(rows) or (texts is not None and len(texts) != len(rows)):
            raise ValueError(f"{len(rows)} games step, so as many frames (and texts) are needed; got {len(frames)}")
        index = torch.tensor(rows, device=self.device)
        latent = self._observe(index, self.pixels(frames), self._embed(texts or [None] * len(rows)))
        chosen = _Choice(self, rows)
        embedding = self.policy.action_embedding
        ids = self.policy.decoder.decode(
            latent,
            chosen,
            embedding.token,
            lambda i, token: self._advance(index, i, embedding.token(i, token)),
        )  # (r, A)
        self.latent = latent
        self.last_ids[index] = ids
        self.now[index] += 1
        return chosen.decisions(ids)

    def pixels(self, frames: Sequence[np.ndarray]) -> Tensor:
        """Frames of any size as the policy takes them: (r, 1, 3, H, W) uint8."""
        size = self.policy.input_spec.frame_size
        by = self.policy.input_spec.resize
        resized = np.stack([resize(_height_width_channels(f), size, by) for f in frames])
        return torch.from_numpy(resized).permute(0, 3, 1, 2)[:, None].to(self.device)

    def _embed(self, texts: Sequence[str | Tensor | np.ndarray | None]) -> Tensor | None:
        """Embeddings (r, 1, E) of instructions; all zero means none."""
        width = self.policy.input_spec.text_dim
        if not any(t is not None and len(t) for t in texts):
            return None
        if width is None:
            raise UserError("this policy takes no text (text_dim is null); leave the instruction out")
        return torch.stack([self._embedding(t, width) for t in texts])[:, None].to(self.device)

    def _embedding(self, text: str | Tensor | np.ndarray | None, width: int) -> Tensor:
        if text is None or len(text) == 0:
            return torch.zeros(width)
        if not isinstance(text, str):
            return torch.as_tensor(text).float().cpu()
        if text not in self._texts:
            if self.policy.text_encoder is None:
                raise UserError("this policy has no text_encoder; set one in its config (bczoo.GemmaTextEncoder)")
            if len(self._texts) >= MOST_TEXTS:
                self._texts.clear()
            self._texts[text] = self.policy.text_encoder([text])[0]
        return self._texts[text]

    def _observe(self, rows: Tensor, pixels: Tensor, text: Tensor | None) -> Tensor:
        """One backbone pass over last step's actions and this step's observation; the latent (r, D)."""
        policy, now = self.policy, self.now[rows]
        ids = self.last_ids[rows]
        actions = {name: ids[:, part] for name, part in self.space.slices.items()}
        taken = policy.tokens.actions(policy.action_embedding(actions))[:, self.pending_from :]  # (r, ., D)
        seen = policy.tokens.observation(policy.encode(pixels), text)[:, 0]  # (r, P + 1, D)
        before = torch.tensor([*self.layout.action_slots][self.pending_from :], device=self.device)
        slots = torch.cat([before, torch.arange(self.layout.action_out + 1, device=self.device)])
        offset = torch.cat([torch.full_like(before, -1), slots.new_zeros(self.layout.action_out + 1)])
        x = torch.cat([taken, seen], dim=1)
        steps = now[:, None] + offset
        return self.memory.run(x, rows, now, steps, slots.expand(len(rows), -1))[:, -1]

    def _advance(self, rows: Tensor, index: int, embedded: Tensor) -> Tensor:
        """Feed action token ``index`` of this step (r, D); the backbone's output there (r, D)."""
        x = self.policy.tokens.action(index, embedded)[:, None]
        now = self.now[rows]
        slot = torch.full_like(now, self.layout.action_slots[index])[:, None]
        return self.memory.run(x, rows, now, now[:, None], slot)[:, 0]


class _Choice:
    """Chooses the ids of one step and remembers the probabilities they were drawn from."""

    def __init__(self, agent: Agent, rows: Sequence[int]) -> None:
        self.agent, self.rows = agent, rows
        draws = np.stack([agent.rngs[row].random(agent.space.tokens) for row in rows])
        self.u = torch.from_numpy(draws)  # (r, A), float64, stays on the CPU
        self.logits: list[Tensor] = []
        self.p: list[Tensor] = []

    def __call__(self, index: int, logits: Tensor) -> Tensor:
        agent = self.agent
        p = sampling.probabilities(logits, agent.temperature, agent.top_p)
        self.logits.append(logits)
        self.p.append(p)
        return logits.argmax(dim=-1) if agent.greedy else sampling.draw(p, self.u[:, index])

    def decisions(self, ids: Tensor) -> list[Decision]:
        agent = self.agent
        chosen = ids.tolist()
        p = [t.cpu().numpy() for t in self.p]
        out = []
        for i, row in enumerate(self.rows):
            row_ids = {name: chosen[i][part] for name, part in agent.space.slices.items()}
            row_p = {name: np.stack([t[i] for t in p[part]]) for name, part in agent.space.slices.items()}
            values = agent.space.decode(row_ids, mouse=agent.mouse, rng=agent.rngs[row])
            out.append(Decision(values, row_ids, row_p))
        return out


class PolicyPlayer:
    """A policy as a player of the closed loop (``bczoo.games.players.Player``).

    Args:
        policy: the policy.
        text: an instruction for all games; None for none.
        **options: of the :class:`Agent`.
    """

    def __init__(self, policy: BCPolicy, text: str | None = None, **options: Any) -> None:
        self.policy, self.text, self.options = policy, text, options
        self.agent: Agent | None = None

    def start(self, games: int, seed: int) -> None:
        self.agent = self.policy.agent(games, **{"seed": seed, **self.options})

    def reset(self, row: int, seed: int) -> None:
        self._playing.reset(row, seed)

    def act(self, rows: list[int], frames: list[np.ndarray], infos: list[dict[str, Any]]) -> list[Decision]:
        return self._playing.step_many(rows, frames, [self.text] * len(rows))

    @property
    def _playing(self) -> Agent:
        if self.agent is None:
            raise RuntimeError("PolicyPlayer.start(games, seed) must be called before the games")
        return self.agent


def _height_width_channels(frame: np.ndarray) -> np.ndarray:
    if frame.dtype != np.uint8 or frame.ndim != 3 or 3 not in (frame.shape[0], frame.shape[-1]):
        raise ValueError(f"a frame must be uint8 (H, W, 3) or (3, H, W), got {frame.dtype} {frame.shape}")
    return frame if frame.shape[-1] == 3 else np.ascontiguousarray(frame.transpose(1, 2, 0))
