"""Image encoders: one frame in, a few image tokens out.

Place in the pipeline: the first part of the policy. uint8 frames of the batch go through a timm backbone up to one
feature map (EfficientNet-B0's stem and first five stages, as in the paper, 112 channels at 1/16), then one linear map
and one LayerNorm over all image tokens jointly (paper 2601.04575, section 3).

Shape legend: N frames, H = W frame size in pixels, C channels and h = w side of the feature map, I image tokens,
D width.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bczoo.core import arguments
from bczoo.core.errors import UserError
from bczoo.core.parts import Part

MIN_FRAME, MAX_FRAME = 32, 512  # pixels
MOST_STAGES = 100


class Encoder(Part):
    """Base class of image encoders: write ``forward`` and name the class in the YAML to use your own.

    Attributes:
        tokens: image tokens per frame.
        frame_size: height and width in pixels of the frames it takes.
    """

    template = True
    given = ("width",)
    tokens: int
    frame_size: int

    def forward(self, frames: Tensor) -> Tensor:
        """uint8 frames (N, 3, H, W) to image tokens (N, I, D)."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(frames)")

    def features_by(self) -> nn.Module | None:
        """The module that makes :meth:`features`; they can be kept on disk where it is frozen and in evaluation mode.

        None, the default, for an encoder that does not come in the two parts ``from_features(features(frames))``.
        """
        return None

    def features(self, frames: Tensor) -> Tensor:
        """The first part of :meth:`forward`: uint8 frames (N, 3, H, W) to (N, F), by :meth:`features_by` alone."""
        raise NotImplementedError(f"{type(self).__name__} must define features(frames)")

    def from_features(self, features: Tensor) -> Tensor:
        """The second part of :meth:`forward`: features (N, F) to image tokens (N, I, D)."""
        raise NotImplementedError(f"{type(self).__name__} must define from_features(features)")

    def check(self, frames: Tensor) -> None:
        """Raise if the frames are not what this encoder takes."""
        size = self.frame_size
        if frames.dtype != torch.uint8 or frames.shape[-3:] != (3, size, size):
            raise UserError(
                f"frames must be uint8 (..., 3, {size}, {size}), got {frames.dtype} {tuple(frames.shape)}; resize them "
                "with bczoo.core.frames.resize, or set the encoder's frame_size"
            )


class ImageEncoder(Encoder):
    """A timm backbone up to one feature map, projected to image tokens.

    Args:
        width: D of the policy transformer (given by the policy).
        backbone: any timm model with feature maps.
        stage: which of its feature maps (timm's ``out_indices``); 3 is EfficientNet's 112 channels at 1/16.
        tokens: image tokens per frame, 1 to 4 in the paper.
        frame_size: height and width of the frames in pixels.
        frozen: keep the backbone as it is: no gradient, no graph, BatchNorm on its stored statistics. The projection
            is trained in any case.
        pretrained: start the backbone from timm's ImageNet weights (downloaded once).
        drop_path: stochastic depth of the whole backbone's last block, in training (0.2 there gives 0.125 at most
            in the part that is used).
        channels_last: memory order of the feature maps. Much faster for depthwise convolutions; on a CPU, BatchNorm
            in training then sums its statistics less exactly (errors of 1e-4 instead of 1e-5 in the features).
    """

    def __init__(
        self,
        width: int,
        backbone: str = "efficientnet_b0",
        stage: int = 3,
        tokens: int = 1,
        frame_size: int = 192,
        frozen: bool = False,
        pretrained: bool = True,
        drop_path: float = 0.2,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        arguments.line("ImageEncoder.backbone", backbone)
        arguments.whole("ImageEncoder.stage", stage, -MOST_STAGES, MOST_STAGES)
        arguments.whole("ImageEncoder.tokens", tokens, 1)
        arguments.whole("ImageEncoder.frame_size", frame_size, MIN_FRAME, MAX_FRAME)
        arguments.share("ImageEncoder.drop_path", drop_path)
        for name, value in (("frozen", frozen), ("pretrained", pretrained), ("channels_last", channels_last)):
            arguments.flag(f"ImageEncoder.{name}", value)
        if ":" in backbone or "/" in backbone:  # timm would go and fetch hf-hub:org/name while it builds
            raise UserError(f"backbone is the name of one of timm's architectures, got {backbone!r}")
        self.tokens, self.frame_size, self.frozen = tokens, frame_size, frozen
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.backbone = _create_backbone(backbone, stage, pretrained, drop_path).to(memory_format=self.memory_format)
        features = _feature_size(self.backbone, backbone, frame_size)
        self.project = nn.Linear(features, tokens * width)
        self.norm = nn.LayerNorm(tokens * width)
        if frozen:
            self.backbone.requires_grad_(False)
            self.backbone.eval()
        self.register_load_state_dict_post_hook(_restore_memory_format)

    def train(self, mode: bool = True) -> ImageEncoder:
        """Training mode; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, frames: Tensor) -> Tensor:
        return self.from_features(self.features(frames))

    def features_by(self) -> nn.Module:
        return self.backbone

    def features(self, frames: Tensor) -> Tensor:
        """The feature map (N, C * h * w) of uint8 frames (N, 3, H, W), in channel, row, column order."""
        self.check(frames)
        return self._feature_map((frames.float() / 255).to(self.norm.weight.dtype))

    def from_features(self, features: Tensor) -> Tensor:
        return self.norm(self.project(features)).unflatten(-1, (self.tokens, -1))

    def encode(self, pixels: Tensor) -> Tensor:
        """Image tokens (N, I, D) of pixels (N, 3, H, W) scaled to 0..1; no mean or deviation is taken off."""
        return self.from_features(self._feature_map(pixels))

    def _feature_map(self, pixels: Tensor) -> Tensor:
        pixels = pixels.contiguous(memory_format=self.memory_format)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.backbone(pixels)[0].flatten(1)

    def load_torchvision(self, weights: Mapping[str, Tensor]) -> None:
        """Load the backbone from a state dict in torchvision's EfficientNet naming (``features.0.0.weight``).

        Raises:
            ValueError: names what is missing or misshaped; nothing is loaded then.
        """
        own = self.backbone.state_dict()
        theirs = {k.removeprefix("features."): v for k, v in weights.items()}
        renamed = {name: theirs.get(source) for name, source in torchvision_names(own).items()}
        missing = [n for n, v in renamed.items() if v is None or v.shape != own[n].shape]
        if missing:
            raise UserError(f"torchvision weights do not fit the backbone; missing or misshaped: {missing[:5]}")
        self.backbone.load_state_dict(renamed)


def _restore_memory_format(encoder: ImageEncoder, _: object) -> None:
    """Weights that were assigned from a file lie in memory as the file had them."""
    encoder.backbone.to(memory_format=encoder.memory_format)


def _create_backbone(name: str, stage: int, pretrained: bool, drop_path: float) -> nn.Module:
    """timm's model cut off behind feature map ``stage``."""
    import timm

    options: dict[str, Any] = {"feature_cls": "getter", "out_indices": (stage,), "pretrained": pretrained}
    if drop_path:
        options["drop_path_rate"] = drop_path
    try:
        return timm.create_model(name, features_only=True, **options)
    except TypeError as error:
        if "drop_path_rate" not in str(error):
            raise UserError(f"timm's {name} cannot give feature map {stage} ({error}); choose another") from error
        return _create_backbone(name, stage, pretrained, drop_path=0.0)  # has no stochastic depth
    except (IndexError, AssertionError) as error:
        raise UserError(f"timm's {name} cannot give feature map {stage} ({error}); choose another stage") from error
    except RuntimeError as error:
        if "Unknown model" not in str(error):
            raise UserError(f"timm cannot build {name} ({error}); choose another backbone") from error
        close = difflib.get_close_matches(name, timm.list_models(), n=5)
        raise UserError(f"timm has no model {name!r}; similar: {close}") from error
    except (OSError, ValueError) as error:
        if not pretrained:
            raise
        raise UserError(
            f"the ImageNet weights of {name} could not be loaded ({error}); go online once so that they are cached, "
            "or train from scratch with pretrained: false"
        ) from error


def _feature_size(backbone: nn.Module, name: str, frame_size: int) -> int:
    """Values of the backbone's feature map for one frame, without running numbers through the network."""
    shapes = {n: t.to("meta") for n, t in (*backbone.named_parameters(), *backbone.named_buffers())}
    frame, training = torch.empty(1, 3, frame_size, frame_size, device="meta"), backbone.training
    try:
        return torch.func.functional_call(backbone.eval(), shapes, frame)[0].numel()
    except (AssertionError, RuntimeError) as error:
        raise UserError(f"timm's {name} does not take frames of {frame_size} pixels: {error}") from error
    finally:
        backbone.train(training)


def torchvision_names(timm_names: Mapping[str, object]) -> dict[str, str]:
    """timm's EfficientNet parameter names to torchvision's (without the leading ``features.``)."""
    return {name: _torchvision_name(name.removeprefix("model.")) for name in timm_names}


def _torchvision_name(name: str) -> str:
    head, _, rest = name.partition(".")
    if head == "conv_stem":
        return f"0.0.{rest}"
    if head == "bn1":
        return f"0.1.{rest}"
    stage, block, layer, *tail = rest.split(".")
    # torchvision numbers the layers of a block in order; stage 0 has no expansion, all others do
    order = ["dw", "se", "project"] if stage == "0" else ["expand", "dw", "se", "project"]
    if stage == "0":
        roles = {"conv_dw": ("dw", 0), "bn1": ("dw", 1), "conv_pw": ("project", 0), "bn2": ("project", 1)}
    else:
        roles = {
            "conv_pw": ("expand", 0), "bn1": ("expand", 1), "conv_dw": ("dw", 0), "bn2": ("dw", 1),
            "conv_pwl": ("project", 0), "bn3": ("project", 1),
        }  # fmt: skip
    prefix = f"{int(stage) + 1}.{block}.block"
    if layer == "se":
        conv = {"conv_reduce": "fc1", "conv_expand": "fc2"}[tail[0]]
        return ".".join([prefix, str(order.index("se")), conv, *tail[1:]])
    role, index = roles[layer]
    return ".".join([prefix, str(order.index(role)), str(index), *tail])
