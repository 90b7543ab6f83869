"""Inverse dynamics: frames before and after a step in, the action that was taken in it out.

Place in the pipeline: trained on recordings with known actions, it labels recordings without them (``bczoo data
label``) for a policy to learn from (``pseudo: true`` of :class:`bczoo.RecordingDataModule`)::

    frames (B,T,3,H,W) --encoder--> embeddings (B,T,D) --transformer, full attention--> (B,T,D) --heads--> (B,T,n,V)

No action enters, or the model would copy the last one. Frame i is paired with the action taken after seeing it, whose
effect first shows in frame i + 1; so nobody can tell the action of a window's last frame, which does not count::

    frames     f0    f1    f2    f3     of a window, T = 4
    actions       a0    a1    a2    -   a1 is read off f0 .. f3; nothing is shown after a3

After VPT (2206.11795): full attention, independent heads, a convolution over time first. Sizes are this package's.

Shape legend: B batch, T steps, H = W frame size, D width, n tokens and V choices of a group.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from bczoo.core import arguments
from bczoo.core.actions import ActionSpace
from bczoo.core.parts import build_part
from bczoo.core.spec import FILL, Batch, InputSpec, loss_mask, step_weights
from bczoo.models.idm.encoder import MotionEncoder
from bczoo.models.idm.metrics import InverseDynamicsMetrics, confidence
from bczoo.models.model import Model
from bczoo.nn.actions import ActionHeads, Logits
from bczoo.nn.encoders import Encoder
from bczoo.nn.gpt import GPT
from bczoo.train.loss import BCLoss, bc_loss
from bczoo.train.metrics import ActionMetrics

SHORTEST = 4  # steps of a window; of a shorter one there is no centre to keep
LOGGED = {"loss", "accuracy", "repeat_accuracy"}  # of ActionMetrics


def idm_optimizer(parameters: Iterable) -> Optimizer:
    """AdamW with this package's settings; those of VPT were not published with its code."""
    return torch.optim.AdamW(parameters, lr=3e-4, weight_decay=0.01)


class InverseDynamics(Model):
    """Reads actions off video.

    It learns from what was done, whoever did it, for that is what a video shows: from a person's actions, and from a
    policy's own even where an expert says what would have been better.

    Args:
        encoder: makes the encoder, given the width: :class:`bczoo.MotionEncoder`, or any other, such as a policy's,
            which sees each frame alone and leaves all comparing of frames to the transformer.
        width: D of the transformer.
        layers: its blocks.
        heads: attention heads per block.
        dropout: in the transformer, in training.
        causal: see no frame after a step. Such a twin is no use by itself: it tells what the future is worth.
        action_space: ``keyboard_mouse``, ``gamepad``, or a space as plain data (``ActionSpace.to_dict``).
        window: frames of a window.
        fps: steps per second.
        resize: filter that brings frames of another size to the encoder's, in training and in labelling, or
            ``letterbox``.
        checkpointing: recompute the blocks in the backward pass to save memory.
        optimizer: makes the optimiser, given the parameters.
        lr_scheduler: makes the learning rate schedule, given the optimiser and the number of steps of the run.
    """

    reference = "[Video PreTraining (VPT)](https://arxiv.org/abs/2206.11795), with sizes and layers of its own"
    supervision = "any"

    def __init__(
        self,
        encoder: Callable[[int], Encoder] = MotionEncoder,
        width: int = 512,
        layers: int = 4,
        heads: int = 8,
        dropout: float = 0.0,
        causal: bool = False,
        action_space: str | dict[str, Any] = "keyboard_mouse",
        window: int = 64,
        fps: float = 20.0,
        resize: str = "hamming",
        checkpointing: bool = False,
        optimizer: Callable[[Iterable], Optimizer] = idm_optimizer,
        lr_scheduler: Callable[[Optimizer, int], LRScheduler] | None = None,
    ) -> None:
        space = ActionSpace.of(action_space)
        arguments.flag("causal", causal)
        arguments.whole("window", window, SHORTEST)
        made = build_part("encoder", encoder, Encoder, width)
        spec = InputSpec(space, made.frame_size, fps, window, text_dim=None, resize=resize)
        super().__init__(spec, optimizer, lr_scheduler)
        self.action_space, self.causal = space, causal
        self.encoder = made
        self.transformer = GPT(width, layers, heads, window, dropout, checkpointing, causal)
        self.heads = ActionHeads(width, space)
        with torch.device("cpu"):  # a loaded model is built without memory, and no file holds what these begin with
            stages = ("val", "test")
            self.metrics = nn.ModuleDict({s: ActionMetrics(space, 0.0, self.loss_scales) for s in stages})
            self.scores = nn.ModuleDict({s: InverseDynamicsMetrics(space) for s in stages})
        self._warned = False

    def logits(self, frames: Tensor, shown: Tensor) -> Logits:
        """Logits (B, T, n, V) of the action of every step.

        Args:
            frames: (B, T, 3, H, W) uint8.
            shown: (B, T) bool, False on padding at the end, which changes nothing.
        """
        shown = shown | (torch.arange(shown.shape[1], device=shown.device) == 0)  # attention over nothing is no number
        if isinstance(self.encoder, MotionEncoder):
            embeddings = self.encoder.clips(frames, shown, self.causal)
        else:
            embeddings = self.encoder(frames.flatten(0, 1)).mean(dim=1).unflatten(0, frames.shape[:2])
        return self.heads(self.transformer(embeddings, shown))

    @property
    def loss_scales(self) -> dict[str, float]:
        """Per action group what its cross-entropy is divided by in the loss: ln(choices)."""
        return {g.name: math.log(g.choices) for g in self.action_space.groups}

    def counted(self, batch: Batch) -> Tensor:
        """Steps (B, T) of a batch that count: with a known action, and with a frame after it."""
        return loss_mask(batch, self.supervision) & pad(batch["valid"][:, 1:], (0, 1))

    def loss(self, batch: Batch) -> BCLoss:
        """The behaviour cloning loss of the steps that count, without a z-loss."""
        mask = self.counted(batch)
        weights = step_weights(batch, mask)
        steps = self.mean_over_processes(weights.sum())
        logits = self.logits(batch["frames"], batch["valid"])
        return bc_loss(logits, batch["actions"], mask, 0.0, steps, self.loss_scales, batch.get("weight"))

    def evaluate(self, batch: Batch, stage: str) -> dict[str, Any]:
        """Add a batch to the metrics; the logits are for callbacks, so that they need no pass."""
        logits, mask = self.logits(batch["frames"], batch["valid"]), self.counted(batch)
        self.metrics[stage].update(logits, batch["actions"], mask, batch["recording"] != FILL)  # type: ignore[operator]
        guesses = {name: group.argmax(-1) for name, group in logits.items()}
        self.scores[stage].update(guesses, batch["actions"], mask, confidence(logits))  # type: ignore[operator]
        return {"logits": logits}

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def _log_metrics(self, stage: str) -> None:
        metrics, scores = self.metrics[stage], self.scores[stage]
        usual = {k: v for k, v in metrics.compute().items() if k.partition("/")[0] in LOGGED}  # type: ignore[operator]
        values = usual | scores.compute()  # type: ignore[operator]  # of all ranks, so the same on all of them
        wrong = scores.misaligned()  # type: ignore[operator]
        for one in (metrics, scores):
            one.reset()  # type: ignore[operator]
        for name, value in values.items():
            self.log(f"{stage}/{name}", value, prog_bar=name == "loss", sync_dist=True)
        if wrong and not self._warned and not self.trainer.sanity_checking:
            self._warned = True
            if self.trainer.is_global_zero:
                warnings.warn(wrong, stacklevel=2)
