"""The small convolutional encoder of BC-CNN (paper 2411.04434, section 3.2 and appendix A.1).

Place in the pipeline: one frame in, one embedding out, as an :class:`~bczoo.nn.encoders.Encoder`, so every family can
use it. The paper gives the size (0.6 M parameters), the input (128 x 128), the embedding (1,024 values) and the kind of
block (ConvNeXt); the layers are a choice, listed in :class:`ConvNeXtEncoder`.

Shape legend: N frames, c channels, D width.
"""

from __future__ import annotations

from torch import Tensor, nn

from bczoo.core import arguments
from bczoo.nn.encoders import MAX_FRAME, MIN_FRAME, Encoder

CHANNELS = (32, 64, 128)
BLOCKS = 2  # per resolution
EMBEDDING = 1024


class ConvNeXtBlock(nn.Module):
    """7 x 7 depthwise convolution, norm per channel, 1 x 1 to four times the channels, GELU, 1 x 1 back; residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.GroupNorm(channels, channels)
        self.expand = nn.Conv2d(channels, 4 * channels, 1)
        self.project = nn.Conv2d(4 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(nn.functional.gelu(self.expand(self.norm(self.depthwise(x)))))


class ConvNeXtEncoder(Encoder):
    """Three resolutions of two ConvNeXt blocks, averaged to one embedding, trained from scratch::

        norm, conv 8x8 stride 4, 3 -> 32     two blocks    norm, conv 3x3 stride 2, -> 64    two blocks
        norm, conv 3x3 stride 2, -> 128      two blocks    mean over the map                 linear 128 -> embedding

    and a linear map from the embedding to the width. Averaging over the map is a choice: flattening it would take
    8.4 M parameters.

    Args:
        width: D of the transformer (given by the policy).
        frame_size: height and width of the frames in pixels.
        channels: of the three resolutions.
        blocks: ConvNeXt blocks per resolution.
        embedding: values of the embedding.
    """

    tokens = 1

    def __init__(
        self,
        width: int,
        frame_size: int = 128,
        channels: list[int] | None = None,
        blocks: int = BLOCKS,
        embedding: int = EMBEDDING,
    ) -> None:
        super().__init__()
        channels = list(CHANNELS) if channels is None else channels
        arguments.whole("frame_size", frame_size, MIN_FRAME, MAX_FRAME)
        if not isinstance(channels, list | tuple) or len(channels) != 3:
            arguments.refuse("channels", channels, "three whole numbers from 1 on")
        for name, value in [("channels", c) for c in channels] + [("blocks", blocks), ("embedding", embedding)]:
            arguments.whole(name, value, 1)
        self.frame_size = frame_size
        layers: list[nn.Module] = []
        for before, after, (kernel, stride) in zip([3, *channels], channels, [(8, 4), (3, 2), (3, 2)], strict=False):
            layers += [
                nn.GroupNorm(before, before),
                nn.Conv2d(before, after, kernel, stride, padding=(kernel - 1) // 2),
            ]
            layers += [ConvNeXtBlock(after) for _ in range(blocks)]
        self.layers = nn.Sequential(*layers)
        self.embed = nn.Linear(channels[-1], embedding)
        self.project = nn.Linear(embedding, width)

    def forward(self, frames: Tensor) -> Tensor:
        """uint8 frames (N, 3, H, W) to embeddings (N, 1, D)."""
        self.check(frames)
        x = (frames.float() / 255).to(self.project.weight.dtype)
        features = self.layers(x).mean(dim=(-2, -1))  # (N, c)
        return self.project(self.embed(features))[:, None]


def count_without_projection(encoder: ConvNeXtEncoder) -> int:
    """Parameters as the paper counts them: up to the embedding, without the linear map to the width."""
    return sum(p.numel() for name, p in encoder.named_parameters() if not name.startswith("project."))
