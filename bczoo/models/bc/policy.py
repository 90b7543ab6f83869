"""BCPolicy: encoder, step tokens, transformer and decoder joined into one family (paper 2601.04575).

Place in the pipeline::

    frames (B,T,3,H,W) --encoder--> image tokens --.
    text (B,T,E) ----------------------------------+--StepTokens--> (B,T*S,D) --PolicyTransformer--> outputs
    actions (B,T,n) --ActionEmbedding--> (B,T,A,D) -'                                                   |
                             '------------------------> decoder <--- output at action_out --------------'
                                                           '--> logits per group (B,T,n,V) --> bc_loss

In training all of a window is seen at once; in play a session (:mod:`bczoo.models.bc.session`) feeds one step at a
time.

Shape legend: B batch, T steps, H = W frame size, E text width, A action tokens, S tokens of a step, D width, I image
tokens, n tokens and V choices of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from bczoo.core import arguments
from bczoo.core.actions import ActionSpace
from bczoo.core.parts import build_part
from bczoo.core.spec import Batch, InputSpec
from bczoo.models.bc.counterfactual import counterfactual_latents
from bczoo.models.bc.decoder import ActionDecoder, Decoder
from bczoo.models.bc.layout import StepLayout
from bczoo.models.bc.memory import check_size
from bczoo.models.bc.session import BCSession, open_bc_session
from bczoo.models.bc.tokens import StepTokens
from bczoo.models.bc.transformer import PolicyTransformer
from bczoo.models.model import count_parameters, reference_optimizer
from bczoo.models.policy import Policy
from bczoo.nn.actions import ActionEmbedding, Logits
from bczoo.nn.encoders import Encoder, ImageEncoder
from bczoo.nn.sampling import Sampler
from bczoo.nn.text import TextEncoder


class BCPolicy(Policy):
    """A behaviour cloning policy of the reference architecture (paper 2601.04575).

    Args:
        transformer: the backbone; its width is the width of everything.
        encoder: makes the image encoder, given the width.
        decoder: makes the action decoder, given the width and the action space.
        action_space: ``keyboard_mouse``, ``gamepad``, or a space as plain data (``ActionSpace.to_dict``).
        text_dim: values of a text embedding; null for a policy without text.
        text_encoder: embeds live instructions in play; no part of the weights.
        thinking_tokens: learned tokens per step between the image and the decision.
        past_actions: whether later steps see the actions of earlier ones, as in the reference.
        window: steps of a training window and of the memory in play.
        fps: steps per second.
        resize: filter that brings frames of another size to the encoder's, in training and in play; or ``letterbox``,
            which keeps their proportions, for recordings that were made so.
        z_loss: weight of the z-loss.
        optimizer: makes the optimiser, given the parameters.
        lr_scheduler: makes the learning rate schedule, given the optimiser and the number of steps of the run, such
            as bczoo.WarmupCosine; null for a constant rate as in the reference.
    """

    reference = "[Scaling Behavior Cloning Improves Causal Reasoning](https://arxiv.org/abs/2601.04575)"
    text_entries = ("tokens.text_projection.weight", "tokens.text_position", "tokens.no_text")

    def __init__(
        self,
        transformer: PolicyTransformer,
        encoder: Callable[[int], Encoder] = ImageEncoder,
        decoder: Callable[[int, ActionSpace], Decoder] = ActionDecoder,
        action_space: str | dict[str, Any] = "keyboard_mouse",
        text_dim: int | None = 768,
        text_encoder: TextEncoder | None = None,
        thinking_tokens: int = 1,
        past_actions: bool = True,
        window: int = 200,
        fps: float = 20.0,
        resize: str = "hamming",
        z_loss: float = 1e-4,
        optimizer: Callable[[Iterable], Optimizer] = reference_optimizer,
        lr_scheduler: Callable[[Optimizer, int], LRScheduler] | None = None,
    ) -> None:
        arguments.whole("thinking_tokens", thinking_tokens, 0)
        arguments.flag("past_actions", past_actions)
        space = ActionSpace.of(action_space)
        backbone = build_part("transformer", transformer, PolicyTransformer)
        width = backbone.width
        images = build_part("encoder", encoder, Encoder, width)
        actions = build_part("decoder", decoder, Decoder, width, space)
        spec = InputSpec(space, images.frame_size, fps, window, text_dim, resize)
        super().__init__(spec, text_encoder, z_loss, optimizer, lr_scheduler)
        self.transformer, self.encoder, self.decoder = backbone, images, actions
        self.past_actions, self.independent_tokens = past_actions, actions.independent_tokens
        self.layout = StepLayout(
            text=int(text_dim is not None),
            image=images.tokens,
            thinking=thinking_tokens,
            actions=space.tokens,
            causal_actions=actions.in_backbone,
            past_actions=past_actions,
        )
        self.tokens_per_step = self.layout.length
        self.tokens = StepTokens(width, self.layout, space, text_dim)
        self.action_embedding = ActionEmbedding(width, space)
        check_size(self.transformer, self.layout, window)

    @property
    def config(self) -> dict[str, Any]:
        return {
            "transformer": self.transformer.spec,
            "encoder": self.encoder.spec,
            "decoder": self.decoder.spec,
            "action_space": self.action_space.to_dict(),
            "text_dim": self.input_spec.text_dim,
            "text_encoder": self.text_encoder.spec if self.text_encoder else None,
            "thinking_tokens": self.layout.thinking,
            "window": self.input_spec.window,
            "fps": self.input_spec.fps,
            "resize": self.input_spec.resize,
            "z_loss": self.z_loss,
            # left out at its default: policies that were saved before there was this choice stay what they are
            **({} if self.past_actions else {"past_actions": False}),
        }

    def parts(self) -> dict[str, list[nn.Module]]:
        return {
            "encoder": [self.encoder],
            "transformer": [self.transformer],
            "decoder": [self.decoder],
            "embeddings": [self.tokens, self.action_embedding],
        }

    def parameter_counts(self) -> dict[str, int]:
        """Parameters in total and of the parts, as the paper counts them: the decoder without its heads."""
        return {
            "total": count_parameters(self),
            "backbone": count_parameters(self.transformer),
            "decoder": count_parameters(self.decoder) - count_parameters(self.decoder.heads),
            "image": count_parameters(self.encoder),
        }

    # ------------------------------------------------------------------ forward

    def forward(self, frames: Tensor, actions: Mapping[str, Tensor], text: Tensor | None = None) -> Logits:
        """Logits of every action token of a window, each predicted before that token is seen.

        Args:
            frames: (B, T, 3, H, W) uint8, RGB.
            actions: per group ids (B, T, n), the action taken after seeing the frame.
            text: (B, T, E) embeddings, all zero where there is no instruction; None for none at all.

        Returns:
            per group logits (B, T, n, V).
        """
        images = self.encode(frames)
        self._check(images.shape, actions, text)
        return self.window_logits(images, actions, text)

    def logits(self, batch: Batch) -> Logits:
        images = self.encoded(batch)
        self._check(images.shape, batch["actions"], self.instructions(batch))
        return self.logits_from(images, batch)

    def encode(self, frames: Tensor) -> Tensor:
        """Image tokens (B, T, I, D) of frames (B, T, 3, H, W)."""
        if frames.ndim != 5:
            raise ValueError(f"frames must be (B, T, 3, H, W), got {tuple(frames.shape)}")
        return self.encoder(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])

    def feature_encoder(self) -> Encoder:
        return self.encoder

    def encode_features(self, features: Tensor) -> Tensor:
        return self.encoder.from_features(features.flatten(0, 1)).unflatten(0, features.shape[:2])

    def logits_from(self, encoded: Tensor, batch: Batch) -> Logits:
        """:meth:`logits` from image tokens (B, T, I, D) instead of frames."""
        return self.window_logits(encoded, batch["actions"], self.instructions(batch), batch.get("labels"))

    def window_logits(
        self,
        images: Tensor,
        actions: Mapping[str, Tensor],
        text: Tensor | None = None,
        labels: Mapping[str, Tensor] | None = None,
    ) -> Logits:
        """:meth:`forward` from image tokens (B, T, I, D) instead of frames; ``labels`` as in :class:`Batch`."""
        embedded = self.action_embedding(actions)  # (B, T, A, D)
        return self.decoder(self.latents(images, embedded, text), self._chain(embedded, labels))

    def _chain(self, embedded: Tensor, labels: Mapping[str, Tensor] | None) -> Tensor:
        """The embedded actions (B, T, A, D) within whose step the decoder predicts token by token: what it is to learn.

        The backbone sees what was done, ``embedded``.
        """
        return embedded if labels is None or self.decoder.in_backbone else self.action_embedding(labels)

    def learned_steps(self, batch: Batch) -> Tensor:
        """As of every policy; of a decoder in the backbone without steps that an expert labelled otherwise.

        Its chain is what the backbone sees, what was done: from there on it is not known what the expert would do.
        """
        mask, labels = super().learned_steps(batch), batch.get("labels")
        if labels is None or not self.decoder.in_backbone:
            return mask
        same = [(labels[name] == ids).all(-1) for name, ids in batch["actions"].items()]
        return mask & torch.stack(same).all(0)

    def latents(self, images: Tensor, embedded: Tensor, text: Tensor | None = None) -> Tensor:
        """What the decoder reads of a window, (B, T, latents, D): one pass of the backbone.

        Args:
            images: image tokens (B, T, I, D), from :meth:`encode`.
            embedded: embedded actions (B, T, A, D).
            text: (B, T, E), or None.
        """
        x = torch.cat([self.tokens.observation(images, text), self.tokens.actions(embedded)], dim=2)
        y = self.transformer(x.flatten(1, 2), self.layout).unflatten(1, x.shape[1:3])  # (B, T, S, D)
        first = self.layout.action_out
        return y[:, :, first : first + self.decoder.latents]

    def _check(self, shape: Sequence[int], actions: Mapping[str, Tensor], text: Tensor | None) -> None:
        """Raise unless actions and text belong to image tokens of a shape."""
        lead = tuple(shape[:2])
        for group in self.action_space.groups:
            ids = actions.get(group.name)
            if ids is None or tuple(ids.shape) != (*lead, group.tokens):
                raise ValueError(
                    f"actions[{group.name!r}] must be ids of shape {(*lead, group.tokens)}, got "
                    f"{None if ids is None else tuple(ids.shape)}"
                )
        expected = (*lead, self.input_spec.text_dim)
        if text is not None and tuple(text.shape) != expected:
            raise ValueError(f"text must be {expected} (text_dim of this policy), got {tuple(text.shape)}")

    # ------------------------------------------------------------------ all counterfactual decisions in one pass

    @torch.no_grad()
    def counterfactual_logits(
        self, encoded: Tensor, replacements: Tensor, batch: Batch, replaced: int = 1
    ) -> tuple[Logits, Logits]:
        text, embedded = self.instructions(batch), self.action_embedding(batch["actions"])
        taken = self.tokens.actions(embedded)
        recorded, other = (
            torch.cat([self.tokens.observation(images, text), taken], dim=2) for images in (encoded, replacements)
        )  # (B, T, S, D)
        plain, changed = counterfactual_latents(self, recorded, other, replaced)
        chain = self._chain(embedded, batch.get("labels"))
        return self.decoder(plain, chain), self.decoder(changed, chain)

    @torch.no_grad()
    def other_past_logits(self, encoded: Tensor, batch: Batch, actions: Mapping[str, Tensor]) -> Logits:
        text = self.instructions(batch)
        embedded, others = self.action_embedding(batch["actions"]), self.action_embedding(actions)
        if self.decoder.in_backbone:  # it reads the step's own actions too, and these are the recorded ones
            seen = self.tokens.observation(encoded, text)  # (B, T, P + 1, D)
            swapped, recorded = (torch.cat([seen, self.tokens.actions(a)], dim=2) for a in (others, embedded))
            _, latents = counterfactual_latents(self, swapped, recorded)
        else:
            latents = self.latents(encoded, others, text)
        return self.decoder(latents, self._chain(embedded, batch.get("labels")))

    # ------------------------------------------------------------------ play

    def open_session(self, num_envs: int, sampler: Sampler, cuda_graphs: bool | None = None) -> BCSession:
        return open_bc_session(self, num_envs, sampler, cuda_graphs)

    def for_play(self) -> BCPolicy:
        """This policy as it plays fastest: on a CPU a twin whose large linear layers are packed.

        The twin plays only: it cannot be trained, moved, copied or saved, and does not follow when the original is
        trained on. It has a copy of the matrices and shares the rest, so ``policy = policy.for_play()`` takes no more
        memory in the end. Where nothing is gained (a GPU, a small policy, another kind of processor) it is the policy
        itself.
        """
        from bczoo.nn.packed import PackedLinear, can_pack, with_packed_linears

        weight = next(self.transformer.parameters())
        if weight.device.type != "cpu" or not can_pack(weight.dtype):
            return self
        twin = with_packed_linears(self.eval())
        return twin if any(isinstance(m, PackedLinear) for m in twin.modules()) else self
