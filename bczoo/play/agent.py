"""The streaming agent: one frame in, one action out.

Place in the pipeline: in play (evaluation, servers) frames arrive one at a time. The agent resizes them as in training,
has the policy's :class:`~bczoo.models.session.Session` decide, and turns the ids that were sampled into keys and
pixels. Many games can share one agent: one forward steps all of them.

Shape legend: R games, r games of a call, A action tokens, n tokens and V choices of a group, E text width.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from bczoo.core.actions import Decision, MouseDecoding, Values
from bczoo.core.errors import UserError
from bczoo.core.frames import resize
from bczoo.models.policy import NO_TEXT, Policy
from bczoo.nn.sampling import Sampler
from bczoo.play.latency import StageTimes

MOST_TEXTS = 256  # embedded instructions that an agent remembers
QUEUED = ("encode", "backbone", "decode")  # stages that a GPU works through on its own


class Agent:
    """Plays ``num_envs`` games with one policy. State is in a session, never in the policy; its memory is taken at
    once.

    Args:
        policy: the policy; put into evaluation mode.
        num_envs: how many games it plays side by side.
        temperature: divides the logits before sampling.
        top_p: sample only from the most likely choices that together reach this mass.
        mouse: how a mouse bin becomes pixels: ``truncated_normal``, ``mean`` or ``conservative``.
        seed: of the random numbers.
        greedy: take the most likely id instead of sampling.
        cuda_graphs: replay the step from CUDA graphs, recorded at the start. None: on a GPU, if this policy's step can
            be recorded.

    Attributes:
        session: state of the games.
        times: give it a :class:`~bczoo.play.latency.StageTimes` to measure every step's stages.

    Raises:
        ValueError: an option is out of its range.
    """

    def __init__(
        self,
        policy: Policy,
        num_envs: int = 1,
        temperature: float = 1.0,
        top_p: float | None = None,
        mouse: MouseDecoding = "truncated_normal",
        seed: int = 0,
        greedy: bool = False,
        cuda_graphs: bool | None = None,
    ) -> None:
        if num_envs < 1:
            raise UserError(f"num_envs must be at least 1, got {num_envs}")
        if mouse not in get_args(MouseDecoding):
            raise UserError(f"mouse is one of {', '.join(get_args(MouseDecoding))}, got {mouse!r}")
        self.policy = policy.eval()
        self.space, self.num_envs, self.mouse = policy.action_space, num_envs, mouse
        self.sampler = Sampler(max(g.choices for g in self.space.groups), temperature, top_p, greedy)
        self.rngs = [np.random.default_rng([seed, env_id]) for env_id in range(num_envs)]
        self.times: StageTimes | None = None
        self.session = policy.open_session(num_envs, self.sampler, cuda_graphs)
        self.device = self.session.device
        self._texts: dict[str, Tensor] = {}

    def reset(self, env_id: int = 0, seed: int | None = None) -> None:
        """Start a game anew: nothing of what was seen is remembered; with a seed its random numbers start anew too."""
        self._check([env_id])
        self.session.reset(env_id)
        if seed is not None:
            self.rngs[env_id] = np.random.default_rng(seed)

    def step(self, frame: np.ndarray, text: str | Tensor | np.ndarray | None = None) -> Decision:
        """Act on one frame, uint8 (H, W, 3) or (3, H, W) of any size, under an instruction or its embedding."""
        return self.step_many([0], [frame], [text])[0]

    @torch.no_grad()
    def step_many(
        self,
        env_ids: Sequence[int],
        frames: Sequence[np.ndarray],
        texts: Sequence[str | Tensor | np.ndarray | None] | None = None,
    ) -> list[Decision]:
        """Act in several games with one forward.

        Args:
            env_ids: the games that step, ascending.
            frames: one frame per game that steps.
            texts: one instruction (or its embedding) per game that steps; None for none.
        """
        env_ids = list(env_ids)
        self._check(env_ids)
        if len(frames) != len(env_ids) or (texts is not None and len(texts) != len(env_ids)):
            raise ValueError(f"{len(env_ids)} games step, so as many frames (and texts) are needed; got {len(frames)}")
        with self.session.on_device():
            return self._act(env_ids, frames, texts)

    def _check(self, env_ids: list[int]) -> None:
        if env_ids != sorted(set(env_ids)) or not env_ids or not 0 <= env_ids[0] <= env_ids[-1] < self.num_envs:
            raise ValueError(f"env_ids must be ascending numbers of games in 0..{self.num_envs - 1}, got {env_ids}")

    def _act(
        self,
        env_ids: list[int],
        frames: Sequence[np.ndarray],
        texts: Sequence[str | Tensor | np.ndarray | None] | None,
    ) -> list[Decision]:
        clock = _Clock(self.device) if self.times is not None else None
        pixels = self.pixels(frames)
        text = self.embed(texts or [None] * len(env_ids))
        u = torch.from_numpy(np.stack([self.rngs[env_id].random(self.space.tokens) for env_id in env_ids]))
        if clock:
            clock.mark("resize")
        ids, p = self.session.step(env_ids, pixels, text, u, clock.mark if clock else _ignore)
        chosen, probabilities = ids.tolist(), p.cpu().numpy()
        if clock:
            clock.sampled_in(self.sampler.sampling_s)
        decisions = [self._decision(env_id, chosen[i], probabilities[i]) for i, env_id in enumerate(env_ids)]
        if clock and self.times is not None:
            clock.mark("sample")
            clock.report(self.times)
        return decisions

    @torch.no_grad()
    def override_last_action(self, env_id: int, values: Values) -> None:
        """Put what was really done in the last step of a game in the place of what was decided.

        Somebody took over, say. The policy then remembers the step as it went, as in training.

        Args:
            env_id: the game.
            values: such as ``{"keys": ["w"], "mouse_dx": 3}``; a group that is missing was neutral, and names and
                groups that the policy's action space lacks are left out.
        """
        self._check([env_id])
        if not int(self.session.steps[env_id]):
            raise ValueError(f"game {env_id} has taken no step since it was reset")
        known = {name: value for name, value in values.items() if name in self.space.slices}
        ids = self.space.encode(ignore_unknown=True, **known)
        flat = torch.tensor([i for group in ids.values() for i in group], device=self.device)
        self.session.override_last_action(env_id, flat)

    def pixels(self, frames: Sequence[np.ndarray]) -> Tensor:
        """Frames of any size as the policy takes them: (r, 3, H, W) uint8."""
        size, by = self.policy.input_spec.frame_size, self.policy.input_spec.resize
        resized = np.stack([resize(_height_width_channels(f), size, by) for f in frames])
        return torch.from_numpy(resized).permute(0, 3, 1, 2)

    def embed(self, texts: Sequence[str | Tensor | np.ndarray | None]) -> Tensor:
        """Embeddings (r, E) of instructions, all zero for none; each is remembered, so it takes its time only once."""
        width = self.policy.input_spec.text_dim
        if width is None and any(t is not None and len(t) for t in texts):
            raise UserError(NO_TEXT)
        return torch.stack([self._embedding(t, width or 0) for t in texts])

    def _embedding(self, text: str | Tensor | np.ndarray | None, width: int) -> Tensor:
        if text is None or len(text) == 0:
            return torch.zeros(width)
        if not isinstance(text, str):
            embedding = torch.as_tensor(text).float().cpu()
            if embedding.shape != (width,):
                raise UserError(f"an embedded instruction is ({width},) for this policy, got {tuple(embedding.shape)}")
            return embedding
        if text not in self._texts:
            if len(self._texts) >= MOST_TEXTS:
                self._texts.clear()
            self._texts[text] = self.policy.embed(text)
        return self._texts[text]

    def _decision(self, env_id: int, chosen: list[int], p: np.ndarray) -> Decision:
        """Ids (A,) and probabilities (A, V) of one game as the action it takes."""
        ids = {name: chosen[part] for name, part in self.space.slices.items()}
        choices = {g.name: g.choices for g in self.space.groups}
        probabilities = {name: p[part, : choices[name]] for name, part in self.space.slices.items()}
        return Decision(self.space.decode(ids, mouse=self.mouse, rng=self.rngs[env_id]), ids, probabilities)


class _Clock:
    """Durations of the stages of one step; on a GPU, which works on its own, between events in its queue."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.queued: list[tuple[str, Any]] = []
        self.stages: dict[str, float] = {}
        self.last = time.perf_counter()

    def mark(self, stage: str) -> None:
        """The stage is over; on a GPU, all of it is in the queue."""
        now = time.perf_counter()
        if not self.on_gpu or stage not in QUEUED:
            self.stages[stage] = self.stages.get(stage, 0.0) + now - self.last
        if self.on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.queued.append((stage, event))
        self.last = now

    def sampled_in(self, seconds: float) -> None:
        """The results are here; on a CPU, sampling them has taken some of the time of decoding."""
        self.last = time.perf_counter()
        if not self.on_gpu:
            self.stages["decode"] -= seconds
            self.stages["sample"] = seconds

    def report(self, times: StageTimes) -> None:
        """Add all stages to the durations so far."""
        for (_, before), (stage, after) in zip(self.queued, self.queued[1:], strict=False):
            if stage in QUEUED:
                times.add(stage, before.elapsed_time(after) / 1e3)
        for stage, seconds in self.stages.items():
            times.add(stage, seconds)


def _ignore(stage: str) -> None:
    """Nobody measures."""


class PolicyPlayer:
    """A policy as a player of the closed loop (``bczoo.games.players.Player``).

    Args:
        policy: the policy.
        text: an instruction for all games; None for none.
        **options: of the :class:`Agent`.
    """

    def __init__(self, policy: Policy, text: str | None = None, **options: Any) -> None:
        self.policy, self.text, self.options = policy, text, options
        self.action_space = policy.action_space
        self.agent: Agent | None = None

    @property
    def times(self) -> StageTimes | None:
        """What the agent's steps are measured into, from the start of the games on."""
        return self._playing.times

    @times.setter
    def times(self, times: StageTimes | None) -> None:
        self._playing.times = times

    def start(self, num_envs: int, seed: int) -> None:
        self.agent = None  # gives its memory back before the next one takes as much
        self.agent = self.policy.agent(num_envs, **{"seed": seed, **self.options})

    def reset(self, env_id: int, seed: int) -> None:
        self._playing.reset(env_id, seed)

    def act(self, env_ids: list[int], frames: list[np.ndarray], infos: list[dict[str, Any]]) -> list[Decision]:
        return self._playing.step_many(env_ids, frames, [self.text] * len(env_ids))

    @property
    def _playing(self) -> Agent:
        if self.agent is None:
            raise RuntimeError("PolicyPlayer.start(num_envs, seed) must be called before the games")
        return self.agent


def _height_width_channels(frame: np.ndarray) -> np.ndarray:
    if frame.dtype != np.uint8 or frame.ndim != 3 or 3 not in (frame.shape[0], frame.shape[-1]):
        raise ValueError(f"a frame must be uint8 (H, W, 3) or (3, H, W), got {frame.dtype} {frame.shape}")
    return frame if frame.shape[-1] == 3 else np.ascontiguousarray(frame.transpose(1, 2, 0))
