"""BCPolicy in play: one step of several games at once, as three stages over tensors: encode, observe, decode.

Place in the pipeline: :meth:`bczoo.BCPolicy.open_session`; the agent (:mod:`bczoo.play.agent`) turns frames,
instructions and random numbers into tensors and ids into actions; in between, :class:`BCSession` runs the policy over
the :class:`~bczoo.models.bc.memory.Memory` of the games. One backbone pass a frame is enough: the action tokens of the
last step enter together with this step's observation.

On a GPU, :class:`GraphedBCSession` records each stage once as a CUDA graph over fixed tensors and replays it, so that a
step is three launches whatever the model's size, and takes the same time every time.

Shape legend: R games, r games of a call, A action tokens, V choices, I image tokens, E text width, D width.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bczoo.core.errors import UserError
from bczoo.models.bc.memory import Memory
from bczoo.models.session import Mark, Session
from bczoo.nn.sampling import Sampler

if TYPE_CHECKING:
    from bczoo.models.bc.policy import BCPolicy

WARM_UP = 3  # runs before a graph is recorded, in which libraries choose kernels and take their memory
MOST_GUESSED = 16  # games up to which all action tokens at once are faster than one after the other, on a CPU


class GraphError(UserError):
    """A policy's step cannot be recorded as a CUDA graph."""


class BCSession(Session):
    """State of R games and their steps.

    Attributes:
        memory: keys and values of their last steps.
        latent: (r, D), what the decoder was given last.
    """

    policy: BCPolicy

    def __init__(self, policy: BCPolicy, num_envs: int, sampler: Sampler) -> None:
        super().__init__(policy, num_envs, sampler)
        self.layout = policy.layout
        self.memory = Memory(policy.transformer, self.layout, policy.input_spec.window, num_envs)
        self.latent: Tensor | None = None
        # the last step's action tokens that the backbone has not seen yet, then this step's observation
        self.pending = slice(self.space.tokens - 1 if policy.decoder.in_backbone else 0, None)
        before = [*self.layout.action_slots][self.pending]
        self.slots = torch.tensor([*before, *range(self.layout.action_out + 1)], device=self.device)
        self.offsets = torch.tensor([-1] * len(before) + [0] * (self.layout.action_out + 1), device=self.device)
        self.action_slots = torch.tensor([*self.layout.action_slots], device=self.device)

    @property
    def memory_bytes(self) -> int:
        return self.memory.bytes

    def reset(self, env_id: int | None = None) -> None:
        super().reset(env_id)
        self.memory.reset(env_id)

    def override_last_action(self, env_id: int, ids: Tensor) -> None:
        super().override_last_action(env_id, ids)
        if not self.pending.start:
            return  # the backbone has seen none of them yet
        embedded = self.policy.tokens.actions(self.policy.action_embedding.of(ids[None]))[:, : self.pending.start]
        rows = torch.tensor([env_id], device=self.device)
        last, slots = self.steps[rows] - 1, self.action_slots[: self.pending.start]
        self.memory.run(embedded, rows, last, last[:, None].expand(-1, len(slots)), slots)

    def step(self, env_ids: list[int], frames: Tensor, text: Tensor, u: Tensor, mark: Mark) -> tuple[Tensor, Tensor]:
        index = None if len(env_ids) == self.num_envs else torch.tensor(env_ids, device=self.device)
        images = self.encode(frames.to(self.device))
        mark("encode")
        latent = self.observe(images, text.to(self.device), index)
        mark("backbone")
        ids, p = self.decode(latent, self.for_sampling(u), index)
        mark("decode")
        self.latent = latent
        return ids, p

    def encode(self, frames: Tensor) -> Tensor:
        """Frames (r, 3, H, W) to image tokens (r, I, D)."""
        return self.policy.encoder(frames)

    def observe(self, images: Tensor, text: Tensor, rows: Tensor | None = None) -> Tensor:
        """The backbone over the last step's actions and this step's observation; its output at action_out, (r, D)."""
        tokens, embedding = self.policy.tokens, self.policy.action_embedding
        now, last = (self.steps, self.last_ids) if rows is None else (self.steps[rows], self.last_ids[rows])
        taken = tokens.actions(embedding.of(last))[:, self.pending]
        seen = tokens.observation(images[:, None], text[:, None] if tokens.text_dim else None)[:, 0]
        x = torch.cat([taken, seen], dim=1)
        return self.memory.run(x, rows, now, now[:, None] + self.offsets, self.slots)[:, -1]

    def decode(
        self, latent: Tensor, u: Tensor, rows: Tensor | None = None, active: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Choose the action, (r, A), and go on to the next step; also the probabilities (r, A, V).

        Args:
            latent: (r, D).
            u: (r, A) random numbers.
            rows: (r,) which games; None for all of them.
            active: (R,) bool, where all games are computed: which of them really take the step; None for all.
        """
        choose, decoder, embedding = self.sampler(u), self.policy.decoder, self.policy.action_embedding
        ids = None
        if self.device.type == "cpu" and active is None and len(latent) <= MOST_GUESSED:
            guess = self.last_ids if rows is None else self.last_ids[rows]
            ids = decoder.decode_speculatively(latent, choose, embedding, guess)
        if ids is None:
            ids = decoder.decode(latent, choose, embedding, lambda i, token: self._advance(rows, i, token))
        if rows is not None:
            self.last_ids[rows] = ids
            self.steps[rows] += 1
        elif active is None:
            self.last_ids.copy_(ids)
            self.steps += 1
        else:
            self.last_ids.copy_(torch.where(active[:, None], ids, self.last_ids))
            self.steps += active
        return ids, choose.p

    def _advance(self, rows: Tensor | None, index: int, ids: Tensor) -> Tensor:
        """Feed action token ``index`` of this step, ids (r,); the backbone's output there, (r, D)."""
        embedded = self.policy.action_embedding.token(index, ids)
        x = self.policy.tokens.action(index, embedded)[:, None]
        now = self.steps if rows is None else self.steps[rows]
        return self.memory.run(x, rows, now, now[:, None], self.action_slots[index : index + 1])[:, 0]


class GraphedBCSession(BCSession):
    """The same in CUDA graphs. All games are computed in every step; those that pause stay where they are.

    A paused game loses nothing: what is written for it lies where its next step writes anyway.
    """

    def __init__(self, policy: BCPolicy, num_envs: int, sampler: Sampler) -> None:
        super().__init__(policy, num_envs, sampler)
        spec = policy.input_spec
        width = spec.text_dim or 0
        self.frames = torch.zeros(num_envs, 3, *spec.shape, dtype=torch.uint8, device=self.device)
        self.text = torch.zeros(num_envs, width, device=self.device)
        self.u = torch.zeros(num_envs, self.space.tokens, dtype=torch.float64, device=self.device)
        self.active = torch.ones(num_envs, dtype=torch.bool, device=self.device)
        with torch.no_grad(), self.on_device():
            self._encode = CudaGraph(self.encode, self.frames)
            self._observe = CudaGraph(self.observe, self._encode.output, self.text)
            self._decode = CudaGraph(
                lambda latent: self.decode(latent, self.u, None, self.active), self._observe.output
            )
        self.reset()

    def step(self, env_ids: list[int], frames: Tensor, text: Tensor, u: Tensor, mark: Mark) -> tuple[Tensor, Tensor]:
        index = torch.tensor(env_ids, device=self.device)
        self.frames[index], self.text[index] = frames.to(self.device), text.to(self.device, self.text.dtype)
        self.u[index] = u.to(self.device)
        self.active.zero_()
        self.active[index] = True
        self._encode.replay()
        mark("encode")
        self._observe.replay()
        mark("backbone")
        self._decode.replay()
        mark("decode")
        ids, p = self._decode.output
        self.latent = self._observe.output[index]
        return ids[index], p[index]


class CudaGraph:
    """A function of fixed tensors, recorded once; :meth:`replay` runs it again on what the tensors hold then.

    Attributes:
        output: what the function returned; filled anew by every replay.
    """

    def __init__(self, function: Callable[..., Any], *inputs: Tensor) -> None:
        try:
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(WARM_UP):
                    function(*inputs)
            torch.cuda.current_stream().wait_stream(aside)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):  # loaders may work beside this
                self.output = function(*inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise GraphError(f"this policy's step cannot be recorded as a CUDA graph ({error})") from error

    def replay(self) -> None:
        self.graph.replay()


def open_bc_session(policy: BCPolicy, num_envs: int, sampler: Sampler, cuda_graphs: bool | None) -> BCSession:
    """A session; on a GPU with CUDA graphs, unless they are switched off or this policy's step cannot be recorded."""
    on_gpu = next(policy.parameters()).is_cuda
    if cuda_graphs and not on_gpu:
        raise UserError("cuda_graphs=True needs a policy on a GPU; move it there with policy.cuda()")
    if not on_gpu or cuda_graphs is False:
        return BCSession(policy, num_envs, sampler)
    try:
        return GraphedBCSession(policy, num_envs, sampler)
    except GraphError as error:
        if cuda_graphs:
            raise
        warnings.warn(f"{error}; playing without, which is slower", stacklevel=3)
        return BCSession(policy, num_envs, sampler)
