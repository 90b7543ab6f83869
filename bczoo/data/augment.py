"""Augmentations of training clips, constant over a clip.

Place in the pipeline: the data module applies them to training batches on the batch's device. A transform is
sampled once for all frames of a clip: two identical frames stay identical, so motion stays what the actions say
it is. In YAML every transform is usable by its ``class_path``, and the set of the paper's system as
``bczoo.ReferenceAugmentations``.

Shape legend: B clips, T frames of a clip, H = W frame size in pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2


class ReferenceAugmentations(v2.Compose):
    """The set that the policies of paper 2601.04575 were trained with.

    Args:
        erasing: also erase a random rectangle.
        resized_crop: also crop up to a tenth of the area away and resize back.
    """

    def __init__(self, erasing: bool = False, resized_crop: bool = False) -> None:
        transforms: list[v2.Transform] = [
            v2.RandomRotation(3, interpolation=v2.InterpolationMode.BILINEAR),
            v2.RandomApply([v2.ColorJitter(0.2, 0.2, 0.2, 0.0)], p=0.25),
            v2.RandomApply([ColorTemperature()], p=0.25),
            v2.RandomApply([IsoNoise()], p=0.1),
            v2.RandomApply([HorizontalShift(0.03)], p=0.25),
            v2.RandomApply([v2.RandomChoice([v2.GaussianBlur(3, (0.1, 1.0)), MotionBlur(5)])], p=0.2),
            v2.RandomAdjustSharpness(1.5, p=0.15),
        ]
        if erasing:
            transforms.append(v2.RandomErasing(p=0.1, scale=(0.01, 0.05)))
        if resized_crop:
            transforms.append(v2.RandomApply([Zoom(0.9)], p=0.25))
        super().__init__(transforms)


PublishedAugmentations = ReferenceAugmentations  # its name in configurations from before


class ClipAugment(nn.Module):
    """Applies transforms to every clip of a batch, with random numbers that depend on the clip's key alone.

    Args:
        transforms: applied in order to clips (T, 3, H, W) uint8; they must sample once per call, and from the CPU's
            generator, as torchvision's do.
    """

    def __init__(self, transforms: Sequence[nn.Module]) -> None:
        super().__init__()
        self.transforms = nn.ModuleList(transforms)

    def forward(self, frames: Tensor, keys: Sequence[Any]) -> Tensor:
        """Augmented copy of ``frames`` (B, T, 3, H, W) uint8; ``keys`` has one key (of plain values) per
        clip.

        The generators that training samples from are left as they were.
        """
        if frames.dtype != torch.uint8 or frames.ndim != 5 or len(keys) != len(frames):
            raise ValueError(
                f"augmentations take uint8 clips (B, T, 3, H, W) and B keys, "
                f"got {frames.dtype} {tuple(frames.shape)} and {len(keys)} keys"
            )
        clips = []
        # torch.manual_seed would also seed every accelerator, from which dropout samples.
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            for clip, key in zip(frames, keys, strict=True):
                digest = hashlib.blake2b(repr(key).encode(), digest_size=7).digest()
                torch.default_generator.manual_seed(int.from_bytes(digest, "little"))
                for transform in self.transforms:
                    clip = transform(clip)
                clips.append(clip)
        return torch.stack(clips)


class HorizontalShift(v2.Transform):
    """Shift clips sideways, repeating the border column.

    Args:
        fraction: largest shift as a share of the width.
    """

    def __init__(self, fraction: float = 0.03) -> None:
        super().__init__()
        self.fraction = fraction

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        most = int(self.fraction * flat_inputs[0].shape[-1])
        return {"pixels": int(torch.randint(-most, most + 1, ()))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        width = inpt.shape[-1]
        columns = torch.arange(width, device=inpt.device) - params["pixels"]
        return inpt[..., columns.clamp(0, width - 1)]


class Zoom(v2.RandomResizedCrop):
    """Crop clips at a random place and resize them back.

    Args:
        least: smallest part of the area that is kept.
    """

    def __init__(self, least: float = 0.9) -> None:
        super().__init__(1, scale=(least, 1.0), ratio=(1.0, 1.0))  # the size is the clip's

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return v2.functional.resized_crop(inpt, **params, size=list(inpt.shape[-2:]), antialias=True)


class ColorTemperature(v2.Transform):
    """Make clips warmer (more red, less blue) or cooler.

    Args:
        strength: largest change of red and blue as a share of their value.
    """

    def __init__(self, strength: float = 0.1) -> None:
        super().__init__()
        self.strength = strength

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {"warmth": float(torch.empty(()).uniform_(-self.strength, self.strength))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        warmth = params["warmth"]
        gain = torch.tensor([1 + warmth, 1.0, 1 - warmth], device=inpt.device)[:, None, None]
        return _as_uint8(inpt * gain)


class IsoNoise(v2.Transform):
    """Sensor noise, the same on every frame of a clip: brighter pixels and less light make more of it.

    Args:
        strength: range of the noise's deviation as a share of full white.
        color: share of the noise that differs between the colours.
    """

    def __init__(self, strength: tuple[float, float] = (0.01, 0.04), color: float = 0.5) -> None:
        super().__init__()
        self.strength = strength
        self.color = color

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        clip = flat_inputs[0]
        deviation = 255 * float(torch.empty(()).uniform_(*self.strength))
        height, width = clip.shape[-2:]
        # Drawn on the CPU, so that a clip looks the same on every device.
        grey, colored = torch.randn(1, height, width), torch.randn(3, height, width)
        noise = (1 - self.color) * grey + self.color * colored
        return {"noise": (deviation * noise).to(clip.device)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        shot = 0.5 + inpt.float().mean(-3, keepdim=True) / 255  # photon noise grows with the light
        return _as_uint8(inpt + params["noise"] * shot.sqrt())


class MotionBlur(v2.Transform):
    """Blur clips along a line of random direction.

    Args:
        length: longest line in pixels.
    """

    def __init__(self, length: int = 5) -> None:
        super().__init__()
        self.length = length

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        angle = float(torch.empty(()).uniform_(0, torch.pi))
        reach = float(torch.empty(()).uniform_(0.5, self.length / 2))
        side = 2 * (self.length // 2) + 1
        center = (side - 1) / 2
        kernel = torch.zeros(side, side)
        direction = torch.tensor([torch.tensor(angle).sin(), torch.tensor(angle).cos()])
        for step in torch.linspace(-reach, reach, 4 * side):
            row, column = (center + step * direction).round().clamp(0, side - 1).long().tolist()
            kernel[row, column] += 1
        return {"kernel": kernel / kernel.sum()}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        kernel = params["kernel"].to(inpt.device)
        side = kernel.shape[-1]
        padded = F.pad(inpt.float(), [side // 2] * 4, mode="replicate")
        return _as_uint8(F.conv2d(padded, kernel.expand(3, 1, side, side), groups=3))


def _as_uint8(clip: Tensor) -> Tensor:
    return clip.round().clamp(0, 255).to(torch.uint8)
