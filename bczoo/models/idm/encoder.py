"""The encoder of inverse dynamics: what moves, and not only what is there.

Place in the pipeline: a clip comes in, one embedding a frame goes out, each made of five frames. A frame-wise
:class:`~bczoo.nn.encoders.Encoder` averages away motion of a pixel before the transformer could compare two frames;
here frames are compared before anything is pooled.

VPT puts a convolution of 5 x 1 x 1 over the pixels in front of its frame encoder (2206.11795), whose own first layer is
a convolution too. With nothing between them both are one linear map, so one convolution of 5 x 8 x 8 takes their place
and no feature map of the frames' full resolution is ever made.

Shape legend: B clips, T frames of each, H = W frame size, c channels, D width.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bczoo.core import arguments
from bczoo.models.cnn.encoder import BLOCKS, CHANNELS, ConvNeXtBlock
from bczoo.nn.encoders import MAX_FRAME, MIN_FRAME, Encoder

FRAMES = 5  # that an embedding is made of
KERNEL, STRIDE = 8, 4  # of the first layer, in pixels, as in ConvNeXtEncoder


class MotionEncoder(Encoder):
    """A convolution over time and space, then ConvNeXt blocks per frame, averaged to one embedding::

        conv 5x8x8 stride 1x4x4, 3 -> 32     two blocks    norm, conv 3x3 stride 2, -> 64    two blocks
        norm, conv 3x3 stride 2, -> 128      two blocks    mean over the map                 linear 128 -> D

    :meth:`clips` is what inverse dynamics calls. As an :class:`Encoder` of single frames it sees no motion.

    Args:
        width: D of the transformer (given by the model).
        frame_size: height and width of the frames in pixels.
        channels: of the resolutions, each half of the one before.
        blocks: ConvNeXt blocks per resolution.
    """

    tokens = 1

    def __init__(
        self, width: int, frame_size: int = 128, channels: list[int] | None = None, blocks: int = BLOCKS
    ) -> None:
        super().__init__()
        channels = list(CHANNELS) if channels is None else channels
        arguments.whole("frame_size", frame_size, MIN_FRAME, MAX_FRAME)
        if not isinstance(channels, list | tuple) or not channels:
            arguments.refuse("channels", channels, "a list of whole numbers from 1 on")
        for name, value in [("channels", c) for c in channels] + [("blocks", blocks)]:
            arguments.whole(name, value, 1)
        self.frame_size = frame_size
        self.motion = nn.Conv3d(3, channels[0], (FRAMES, KERNEL, KERNEL), (1, STRIDE, STRIDE), (0, 3, 3))
        layers: list[nn.Module] = [ConvNeXtBlock(channels[0]) for _ in range(blocks)]
        for before, after in pairwise(channels):
            layers += [nn.GroupNorm(before, before), nn.Conv2d(before, after, 3, 2, padding=1)]
            layers += [ConvNeXtBlock(after) for _ in range(blocks)]
        self.layers = nn.Sequential(*layers)
        self.project = nn.Linear(channels[-1], width)

    def forward(self, frames: Tensor) -> Tensor:
        """uint8 frames (N, 3, H, W), each a clip of its own, to embeddings (N, 1, D)."""
        return self.clips(frames[:, None], torch.ones(len(frames), 1, dtype=torch.bool, device=frames.device))

    def clips(self, frames: Tensor, shown: Tensor, causal: bool = False) -> Tensor:
        """Clips (B, T, 3, H, W) uint8 to embeddings (B, T, D).

        Args:
            frames: the clips.
            shown: (B, T) bool, False on padding, which is grey then, as is what lies before and after a clip.
            causal: compare a frame with the four before it, instead of two on each side.
        """
        self.check(frames)
        pixels = (frames.float() / 255 - 0.5).to(self.project.weight.dtype) * shown[..., None, None, None]
        around = (FRAMES - 1, 0) if causal else (FRAMES // 2, FRAMES // 2)
        moved = self.motion(F.pad(pixels.transpose(1, 2), (0, 0, 0, 0, *around)))  # (B, c, T, h, w)
        features = self.layers(moved.transpose(1, 2).flatten(0, 1)).mean(dim=(-2, -1))
        return self.project(features).unflatten(0, frames.shape[:2])
