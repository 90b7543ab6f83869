"""Inference sessions: the state of several games that play with one policy, and their steps.

Place in the pipeline: an :class:`~bczoo.play.agent.Agent` turns frames, instructions and random numbers into tensors
and ids into keys; in between it drives a session that the policy has opened. A family of its own overrides
:meth:`Session.logits` and :meth:`Session.reset`; one that predicts an action token by token, or in stages that are to
be timed, overrides :meth:`Session.step`. :class:`WindowSession` plays any policy that can compute the logits of a
window, slowly.

Shape legend: R games, r games of a call, A action tokens, n tokens and V choices of a group, E text width, T steps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bczoo.core.spec import window_batch
from bczoo.nn.sampling import Choice, Sampler

if TYPE_CHECKING:
    from bczoo.models.policy import Policy
    from bczoo.nn.actions import Logits

Mark = Callable[[str], None]  # called at the end of every stage (encode, backbone, decode) with its name


class Session:
    """State of R games. Base class of all families' sessions.

    Args:
        policy: in evaluation mode; never changed.
        num_envs: R.
        sampler: samples the ids.

    Attributes:
        steps: (R,) steps that each game has taken since it was reset.
        last_ids: (R, A) ids of each game's last action; 0 before the first.
    """

    def __init__(self, policy: Policy, num_envs: int, sampler: Sampler) -> None:
        self.policy, self.num_envs, self.sampler = policy, num_envs, sampler
        self.space = policy.action_space
        self.device = next(policy.parameters()).device
        self.steps = torch.zeros(num_envs, dtype=torch.long, device=self.device)
        self.last_ids = torch.zeros(num_envs, self.space.tokens, dtype=torch.long, device=self.device)

    @property
    def memory_bytes(self) -> int:
        """Bytes that the past of all games takes."""
        return 0

    def on_device(self) -> contextlib.AbstractContextManager[Any]:
        """Makes a GPU the current one, whose queue is the one that is recorded and timed."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext()

    def for_sampling(self, u: Tensor) -> Tensor:
        """Random numbers where the sampler takes them: on the device, or on the CPU if it has no float64."""
        return u if self.device.type == "mps" else u.to(self.device)

    def reset(self, env_id: int | None = None) -> None:
        """Forget the past of a game, or of all of them. Families with a memory extend this."""
        which = slice(None) if env_id is None else env_id
        self.steps[which] = 0
        self.last_ids[which] = 0

    def override_last_action(self, env_id: int, ids: Tensor) -> None:
        """Put ids (A,) in the place of those chosen in a game's last step, because somebody else acted.

        Families that keep more of an action than :attr:`last_ids` extend this.
        """
        self.last_ids[env_id] = ids

    def step(self, env_ids: list[int], frames: Tensor, text: Tensor, u: Tensor, mark: Mark) -> tuple[Tensor, Tensor]:
        """One step of some games.

        Args:
            env_ids: which games, ascending.
            frames: (r, 3, H, W) uint8 of the policy's size, on the CPU.
            text: (r, E) embedded instructions, all zero for none, on the CPU.
            u: (r, A) float64 random numbers in 0..1, on the CPU.
            mark: is called when a stage is over.

        Returns:
            ids (r, A) and the probabilities they were sampled from (r, A, V).
        """
        logits = self.logits(env_ids, frames.to(self.device), text.to(self.device))
        mark("backbone")
        choose = self.sampler(self.for_sampling(u))
        ids = choose.all(logits, self.space)
        mark("decode")
        self.acted(env_ids, ids)
        return ids, choose.p

    def logits(self, env_ids: list[int], frames: Tensor, text: Tensor) -> Logits:
        """Decide in some games, and remember what was seen.

        Args:
            env_ids: which games, ascending.
            frames: (r, 3, H, W) uint8 on the session's device.
            text: (r, E).

        Returns:
            per group (r, n, V), every token independent of the others.
        """
        raise NotImplementedError(f"{type(self).__name__} must define logits(env_ids, frames, text) or step(...)")

    def acted(self, env_ids: list[int], ids: Tensor) -> None:
        """Remember the ids (r, A) that were chosen, and go on to the next step."""
        self.last_ids[env_ids] = ids
        self.steps[env_ids] += 1


class WindowSession(Session):
    """Plays any policy by running it over the last steps anew at every frame, as in training.

    Exact and slow: a step costs as much as a window, times the number of action tokens where a token depends on those
    before it (:attr:`bczoo.Policy.independent_tokens`). What families with a session of their own are tested against.
    """

    def __init__(self, policy: Policy, num_envs: int, sampler: Sampler) -> None:
        super().__init__(policy, num_envs, sampler)
        spec = policy.input_spec
        window = spec.window
        self.frames = torch.zeros(num_envs, window, 3, *spec.shape, dtype=torch.uint8, device=self.device)
        self.text = torch.zeros(num_envs, window, spec.text_dim or 0, device=self.device)
        self.actions = torch.zeros(num_envs, window, self.space.tokens, dtype=torch.long, device=self.device)

    @property
    def memory_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.frames, self.text, self.actions))

    def override_last_action(self, env_id: int, ids: Tensor) -> None:
        super().override_last_action(env_id, ids)
        self.actions[env_id, min(int(self.steps[env_id]), self.policy.input_spec.window) - 1] = ids

    def step(self, env_ids: list[int], frames: Tensor, text: Tensor, u: Tensor, mark: Mark) -> tuple[Tensor, Tensor]:
        u = self.for_sampling(u)
        seen = [(env_id, frames[i].to(self.device), text[i].to(self.device)) for i, env_id in enumerate(env_ids)]
        chosen = [self._step_one(*one, self.sampler(u[i : i + 1])) for i, one in enumerate(seen)]
        mark("backbone")
        ids, p = (torch.cat(parts) for parts in zip(*chosen, strict=True))
        mark("decode")
        self.acted(env_ids, ids)
        return ids, p

    def _step_one(self, env_id: int, frame: Tensor, text: Tensor, choose: Choice) -> tuple[Tensor, Tensor]:
        """Ids (1, A) and probabilities (1, A, V) of one game."""
        window = self.policy.input_spec.window
        if int(self.steps[env_id]) >= window:
            for past in (self.frames, self.text, self.actions):
                past[env_id, :-1] = past[env_id, 1:].clone()
        at = min(int(self.steps[env_id]), window - 1)
        self.frames[env_id, at], self.text[env_id, at] = frame, text
        ids = self.actions[env_id, at]  # filled on the way, so that a token sees those before it
        ids.zero_()
        if self.policy.independent_tokens:
            logits = self._window_logits(env_id, at)
            ids.copy_(choose.all({name: group[None] for name, group in logits.items()}, self.space)[0])
        else:
            for index, group in enumerate(self.space.token_groups):
                token = index - self.space.slices[group.name].start
                logits = self._window_logits(env_id, at)
                ids[index] = choose(slice(index, index + 1), logits[group.name][None, token : token + 1])[0, 0]
        return ids[None].clone(), choose.p

    def _window_logits(self, env_id: int, at: int) -> Logits:
        """Logits (n, V) of step ``at`` of a game's window."""
        seen = slice(0, at + 1)
        actions = self.actions[env_id : env_id + 1, seen]
        text = self.text[env_id : env_id + 1, seen] if self.policy.input_spec.text_dim else None
        ids = {name: actions[..., part] for name, part in self.space.slices.items()}
        batch = window_batch(self.frames[env_id : env_id + 1, seen], ids, text)
        return {name: group[0, at] for name, group in self.policy.logits(batch).items()}
