"""What flows between recordings, models and games: the shape of a batch, and what a model asks of its input.

Place in the pipeline: a model holds an :class:`InputSpec`; the data module brings recordings into that form and hands
out a :class:`Batch`, games are brought into it in play. :func:`loss_mask` says which steps of a batch count.

Shape legend: B batch, T time steps, H, W height and width of frames in pixels, n tokens of a group, D text width, z
image tokens of a frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NotRequired, TypedDict

import torch
from torch import Tensor

from bczoo.core import arguments
from bczoo.core.actions import ActionSpace
from bczoo.core.errors import UserError
from bczoo.core.frames import RESIZES, height_width

SLOWEST, FASTEST = 0.1, 1000  # steps per second
SUPERVISION = ("user", "any", "none")  # whose actions are learned from
FIELDS = ("frames",)  # what a model asks for unless it says otherwise
ASKED = ("frames", "tokens")  # what is read for a batch only if the model asks for it


@dataclass(frozen=True)
class InputSpec:
    """What a model needs its input to be; recordings and games are brought into this form.

    Args:
        action_space: what can be pressed and moved; None for a model that takes and predicts no actions.
        frame_size: height and width of a frame in pixels: one number for a square, or both.
        fps: steps per second, 0.1 to 1000.
        window: steps of a training window, and of the memory in play.
        text_dim: values of a text embedding; None if the model takes no text.
        resize: filter that brings frames of another size to ``frame_size``, in training and in play, and squashes them
            into that shape; or ``letterbox``, which keeps their proportions between black bars.
    """

    action_space: ActionSpace | None
    frame_size: int | tuple[int, int] = 192
    fps: float = 20.0
    window: int = 200
    text_dim: int | None = 768
    resize: str = "hamming"

    def __post_init__(self) -> None:
        if isinstance(self.frame_size, list | tuple):
            if len(self.frame_size) != 2:
                arguments.refuse("frame_size", self.frame_size, "a whole number, or a height and a width")
            for side in self.frame_size:
                arguments.whole("frame_size", side, 1)
            height, width = self.frame_size
            object.__setattr__(self, "frame_size", height if height == width else (height, width))
        else:
            arguments.whole("frame_size", self.frame_size, 1)
        arguments.number("fps", self.fps, SLOWEST, FASTEST)
        arguments.whole("window", self.window, 1)
        if self.text_dim is not None:
            arguments.whole("text_dim", self.text_dim, 1)
        arguments.one_of("resize", self.resize, RESIZES)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of a frame in pixels."""
        return height_width(self.frame_size)

    @property
    def actions(self) -> ActionSpace:
        """The action space, for what needs one; a UserError where the model has none."""
        if self.action_space is None:
            raise UserError("this model takes and predicts no actions (its action_space is None), so it cannot act")
        return self.action_space


FILL = -1  # recording number of a window that only fills up a batch


class Batch(TypedDict):
    """A batch of windows; :func:`loss_mask` says which steps count."""

    frames: NotRequired[Tensor]  # (B, T, 3, H, W) uint8, RGB; not there if the model asks for none
    features: NotRequired[Tensor]  # (B, T, F) of the frames, in their place (data.feature_cache)
    tokens: NotRequired[Tensor]  # (B, T, z) int64 ids of the frames, in their place, if the model asks for them
    actions: dict[str, Tensor]  # per group (B, T, n) int64, the action taken after seeing the frame; {} without a space
    labels: NotRequired[dict[str, Tensor]]  # the same, what is learned: an expert's actions where others were done
    text: NotRequired[Tensor]  # (B, T, D) float32, all zero where there is no instruction
    weight: NotRequired[Tensor]  # (B, T) float32, of the step in the loss; 1 where it is left out
    user: Tensor  # (B, T) bool, the label is a person's or an expert's, or a model's guess that is to be learned
    system: Tensor  # (B, T) bool, the action is the policy's own; with user: an expert has labelled it
    valid: Tensor  # (B, T) bool, False on padding and on frames that could not be read
    recording: Tensor  # (B,) int64, index of the recording, -1 for a window that only fills up the batch
    start: Tensor  # (B,) int64, first frame of the window


def window_batch(frames: Tensor, actions: dict[str, Tensor], text: Tensor | None = None) -> Batch:
    """A batch of windows that come from no recording; every step counts.

    Args:
        frames: (B, T, 3, H, W) uint8.
        actions: per group (B, T, n).
        text: (B, T, D), or None.
    """
    known = torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device)
    none = torch.zeros(len(frames), dtype=torch.long, device=frames.device)
    batch: Batch = {
        "frames": frames,
        "actions": actions,
        "user": known,
        "system": ~known,
        "valid": known,
        "recording": none,
        "start": none,
    }
    return batch if text is None else {**batch, "text": text}


def pictures(batch: Batch) -> Tensor:
    """The frames (B, T, 3, H, W) of a batch, for what looks at the pixels themselves.

    Raises:
        UserError: the batch holds features or ids in their place.
    """
    if "frames" not in batch and "tokens" in batch:
        raise UserError(
            "what a callback or perturbation does here needs the pictures themselves, and this model reads ids of "
            "a tokenizer in their place: leave it out"
        )
    if "frames" not in batch:
        raise UserError(
            "what a callback or perturbation does here needs the pictures themselves, and with data.feature_cache, or "
            "for a model that reads tokens, no video is read: leave it out, or train on pictures "
            "(--data.feature_cache null, --model.inputs frames)"
        )
    return batch["frames"]


def targets(batch: Batch) -> dict[str, Tensor]:
    """What a batch teaches, per group (B, T, n): the actions that were done, or an expert's in their place (DAgger)."""
    return batch.get("labels", batch["actions"])


def step_weights(batch: Batch, mask: Tensor) -> Tensor:
    """How much each step (B, T) counts in the loss, float32: nothing outside the mask; the sum is what divides it."""
    return mask * batch["weight"] if "weight" in batch else mask.float()


def loss_mask(batch: Batch, supervision: str = "user") -> Tensor:
    """Steps (B, T) that count in loss and metrics: with a frame that could be read, and with the action asked for.

    Args:
        batch: the windows.
        supervision: ``user`` counts steps with a person's action, ``any`` those with a policy's own too, ``none`` all.
    """
    if supervision == "none":
        return batch["valid"]
    acted = batch["user"] | batch["system"] if supervision == "any" else batch["user"]
    return acted & batch["valid"]
