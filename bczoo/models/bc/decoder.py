"""Action decoders: from the backbone's decision to a distribution over every action token.

Place in the pipeline: the last part of the policy. The reference :class:`ActionDecoder` expands one latent
(the output at action_out) into the action, token by token (paper 2601.04575, section 3). Two ablations swap in
by YAML: :class:`BackboneHeads` (no decoder: the backbone predicts the tokens itself) and :class:`IndependentHeads`
(one forward, no chain between tokens).

Every decoder works in two ways: ``forward`` over recorded actions (training), and ``decode`` token by token
with ids chosen on the way (play).

Shape legend: B batch, T steps, A action tokens, n tokens and V choices of a group, D width, R rows in play.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from bczoo.core import arguments
from bczoo.core.actions import ActionSpace, choice_meanings, token_meanings
from bczoo.core.parts import Part
from bczoo.models.bc.transformer import MOST_LAYERS
from bczoo.nn.actions import ActionEmbedding, ActionRows, Logits
from bczoo.nn.attention import Sinks, prepend_sinks, sdpa
from bczoo.nn.blocks import Block, Rotation
from bczoo.nn.groups import GroupModules

DECODER_POSITION_STD = 3.0


class Chooser(Protocol):
    """Picks ids of action tokens; the same ids for the same logits, however often it is asked in a step."""

    def __call__(self, tokens: slice, logits: Tensor) -> Tensor:
        """Logits (R, n, V) of action tokens of one group to ids (R, n)."""


Advance = Callable[[int, Tensor], Tensor]  # (index, ids (R,)) -> (R, D), the backbone's output at that action token


class Decoder(Part):
    """Base class: heads over the groups of the action space.

    Attributes:
        in_backbone: the backbone predicts the action tokens itself, so its action tokens see only earlier ones.
        independent_tokens: an action token is predicted without looking at those before it.
        latents: outputs of the backbone it reads per step: action_out alone, or all A positions of a chain.
    """

    template = True
    given = ("width", "space")
    in_backbone = False
    independent_tokens = False

    def __init__(self, width: int, space: ActionSpace) -> None:
        super().__init__()
        self.space = space
        self.token_groups = [g.name for g in space.token_groups]
        self.heads = GroupModules({g.name: nn.Linear(width, g.choices) for g in space.groups})

    def action_rows(self) -> ActionRows:
        return {f"heads.{g.name}.": choice_meanings(g) for g in self.space.groups}

    @property
    def latents(self) -> int:
        return 1

    def forward(self, latents: Tensor, embedded: Tensor) -> Logits:
        """Backbone outputs (B, T, latents, D) and embedded true actions (B, T, A, D) to logits (B, T, n, V)."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(latents, embedded)")

    def decode(self, latent: Tensor, choose: Chooser, embedding: ActionEmbedding, advance: Advance) -> Tensor:
        """Choose an action: latent (R, D) of action_out to ids (R, A).

        Args:
            latent: (R, D).
            choose: picks the ids.
            embedding: of the action tokens, without positions.
            advance: runs the backbone on, for decoders that live in it.
        """
        raise NotImplementedError(f"{type(self).__name__} must define decode(latent, choose, embedding, advance)")

    def decode_speculatively(
        self, latent: Tensor, choose: Chooser, embedding: ActionEmbedding, guess: Tensor
    ) -> Tensor | None:
        """The ids of :meth:`decode` from a guess (R, A), by Jacobi decoding; None if a decoder has no such way."""
        return None

    def choose_token(self, index: int, output: Tensor, choose: Chooser) -> Tensor:
        """Ids (R,) of action token ``index`` from its output (R, D)."""
        logits = self.heads[self.token_groups[index]](output)
        return choose(slice(index, index + 1), logits[:, None])[:, 0]

    def choose_tokens(self, outputs: Tensor, choose: Chooser) -> Tensor:
        """Ids (R, A) of all action tokens from their outputs (R, A, D)."""
        logits = self.group_logits(outputs)
        return torch.cat([choose(part, logits[name]) for name, part in self.space.slices.items()], dim=-1)

    def group_logits(self, outputs: Tensor) -> Logits:
        """Outputs (..., A, D), one per action token, through the head of each token's group."""
        return {name: self.heads[name](outputs[..., part, :]) for name, part in self.space.slices.items()}


class ActionDecoder(Decoder):
    """The reference decoder: a small causal transformer over [latent, action embeddings].

    Args:
        width: D (given by the policy).
        space: the action space (given by the policy).
        layers: number of blocks.
        heads: attention heads per block.
        sinks: learned key/value sinks per layer.
        dropout: on the output projection of the attention, in training.
    """

    def __init__(
        self,
        width: int,
        space: ActionSpace,
        layers: int = 3,
        heads: int = 8,
        sinks: int = 1,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(width, space)
        arguments.whole("ActionDecoder.layers", layers, 1, MOST_LAYERS)
        arguments.whole("ActionDecoder.heads", heads, 1)
        arguments.whole("ActionDecoder.sinks", sinks, 0)
        arguments.share("ActionDecoder.dropout", dropout)
        self.project = nn.Linear(width, width)
        # one more position than is used: the reference decoder also feeds the last action token
        self.positions = nn.Parameter(torch.randn(space.tokens + 1, width) * DECODER_POSITION_STD)
        self.blocks = nn.ModuleList(Block(width, heads, sinks=sinks, dropout=dropout) for _ in range(layers))

    def action_rows(self) -> ActionRows:
        tokens = [meaning for g in self.space.groups for meaning in token_meanings(g)]
        return super().action_rows() | {"positions": [("latent",), *tokens]}

    @property
    def head_dim(self) -> int:
        return self.blocks[0].attention.head_dim  # type: ignore[union-attr, return-value]

    def forward(self, latents: Tensor, embedded: Tensor) -> Logits:
        return self.group_logits(self.outputs(latents, embedded))

    def outputs(self, latents: Tensor, embedded: Tensor) -> Tensor:
        """Decoder outputs (B, T, A, D); output i, which predicts token i, has seen the true tokens before it."""
        lead = latents.shape[:2]
        x = torch.cat([self.project(latents), embedded[..., :-1, :].type_as(latents)], dim=-2)  # (B, T, A, D)
        x = (x + self.positions[: x.shape[-2]]).flatten(0, 1)  # (B * T, A, D)
        rotate = Rotation.at(torch.arange(x.shape[1], device=x.device), self.head_dim)
        for block in self.blocks:
            x = block(x, rotate, _causal)
        return x.unflatten(0, lead)

    def decode(self, latent: Tensor, choose: Chooser, embedding: ActionEmbedding, advance: Advance) -> Tensor:
        # token by token, each seeing those before it: as many small passes as there are tokens
        caches = [_GrowingCache() for _ in self.blocks]
        x = self.project(latent)
        ids = []
        for index in range(self.space.tokens):
            x = (x + self.positions[index])[:, None]  # (R, 1, D)
            rotate = Rotation.at(torch.arange(index, index + 1, device=x.device), self.head_dim)
            for block, cache in zip(self.blocks, caches, strict=True):
                x = block(x, rotate, cache)
            ids.append(self.choose_token(index, x[:, 0], choose))
            x = embedding.token(index, ids[-1])
        return torch.stack(ids, dim=-1)

    def decode_speculatively(
        self, latent: Tensor, choose: Chooser, embedding: ActionEmbedding, guess: Tensor
    ) -> Tensor | None:
        """The ids of :meth:`decode` in fewer passes: all tokens at once behind a guess, until the guess holds.

        The first token of every pass is right, then those up to the first that was guessed wrong; what was chosen
        is the next guess. A pass over all tokens reads the weights once, as does a pass over one, and that is what
        takes the time for a few games on a CPU.
        """
        for _ in range(self.space.tokens):
            embedded = embedding.of(guess)[:, None]  # (R, 1, A, D)
            ids = self.choose_tokens(self.outputs(latent[:, None, None], embedded)[:, 0], choose)
            if torch.equal(ids[:, :-1], guess[:, :-1]):
                break
            guess = ids
        return ids


class BackboneHeads(Decoder):
    """Ablation without a decoder: action_out's output predicts the first token, each action token the next one.

    The mask makes the action tokens of a step causal; in play the backbone runs once more for every token.
    A step that an expert labelled otherwise than it went (noise, DAgger) does not count: the chain holds what was done.
    """

    in_backbone = True

    @property
    def latents(self) -> int:
        return self.space.tokens

    def forward(self, latents: Tensor, embedded: Tensor) -> Logits:
        return self.group_logits(latents)

    def decode(self, latent: Tensor, choose: Chooser, embedding: ActionEmbedding, advance: Advance) -> Tensor:
        ids = []
        for index in range(self.space.tokens):
            ids.append(self.choose_token(index, latent, choose))
            if index + 1 < self.space.tokens:
                latent = advance(index, ids[-1])
        return torch.stack(ids, dim=-1)


class IndependentHeads(Decoder):
    """Ablation without a chain: every action token is predicted from the latent alone, independently.

    A learned vector per token and one hidden layer let the heads of a group, which are shared between its tokens,
    tell the tokens apart.
    """

    independent_tokens = True

    def __init__(self, width: int, space: ActionSpace) -> None:
        super().__init__(width, space)
        self.positions = nn.Parameter(torch.randn(space.tokens, width))
        self.hidden = nn.Linear(width, width)

    def action_rows(self) -> ActionRows:
        return super().action_rows() | {
            "positions": [meaning for g in self.space.groups for meaning in token_meanings(g)]
        }

    def forward(self, latents: Tensor, embedded: Tensor) -> Logits:
        return self.group_logits(self.outputs(latents))

    def outputs(self, latents: Tensor) -> Tensor:
        """Latents (..., 1, D) to one output per action token (..., A, D)."""
        return nn.functional.gelu(self.hidden(latents + self.positions))

    def decode(self, latent: Tensor, choose: Chooser, embedding: ActionEmbedding, advance: Advance) -> Tensor:
        return self.choose_tokens(self.outputs(latent[:, None]), choose)


def _causal(q: Tensor, k: Tensor, v: Tensor, sinks: Sinks) -> Tensor:
    """Causal attention of a short sequence, sinks visible to all."""
    length = q.shape[2]
    k, v = prepend_sinks(k, v, sinks)
    mask = torch.ones(length, k.shape[2], dtype=torch.bool, device=q.device).tril(k.shape[2] - length)
    return sdpa(q, k, v, mask)


class _GrowingCache:
    """Keys and values of the action tokens decoded so far; an :data:`~bczoo.nn.attention.Attend`."""

    def __init__(self) -> None:
        self.k: Tensor | None = None
        self.v: Tensor | None = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, sinks: Sinks) -> Tensor:
        if self.k is None or self.v is None:
            self.k, self.v = prepend_sinks(k, v, sinks)
        else:
            self.k, self.v = torch.cat([self.k, k], dim=2), torch.cat([self.v, v], dim=2)
        return nn.functional.scaled_dot_product_attention(q, self.k, self.v)
