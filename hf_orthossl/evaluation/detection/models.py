"""The interface of detectors, and the stages of an encoder as their trunk."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...encoders import Encoder

HEADS = ("fpn", "c4", "detr")
BATCH_NORM = ("trained", "frozen")
# Minimum stride: a stage at the full resolution of the image costs much and contributes little.
_FINEST = 2
_WHOLE_STEPS = 64


class Detector(nn.Module):
    """Base class of detectors.

    Labels are 0 to `num_classes` − 1; boxes are corners x1, y1, x2, y2 in pixels of the input image.

    With batch norm "trained", the encoder's layers normalize by the batch and continue to learn, as in the full
    fine-tuning of self-supervised encoders since MoCo: the statistics of pretraining do not fit the images of
    detection, and an untrained encoder has none. With "frozen", their statistics, scales and shifts remain those of the
    encoder, as in torchvision and DETR for supervised encoders; this is for batches of one or two images. Normalization
    layers of a head are always trained.

    Args:
        num_classes (`int`): Number of classes C.
        settings (`dict`): Description of the detector, for results.

    Attributes:
        learning_rate (`float`): Default learning rate for AdamW.
    """

    learning_rate: float

    def __init__(self, num_classes: int, settings: dict[str, Any]):
        super().__init__()
        self.num_classes = num_classes
        self.settings = settings
        self._frozen: list[nn.Module] = []

    def losses(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return the losses of a batch by name, in train mode.

        Args:
            images (`list[Tensor]`): Images `(3, h, w)` of any sizes, uint8.
            targets (`list[dict]`): `boxes` `(N, 4)` and `labels` `(N,)` of each image.
        """
        raise TypeError("Detector is abstract: call build_detector")

    def detections(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Return the `boxes` `(N, 4)`, `scores` and `labels` `(N,)` of each image, best first, in eval mode."""
        raise TypeError("Detector is abstract: call build_detector")

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Return [`~Detector.losses`] in train mode, which needs `targets`, else [`~Detector.detections`]."""
        if not self.training:
            return self.detections(images)
        if targets is None:
            raise ValueError("targets is None: a detector in train mode needs the boxes and labels of each image")
        return self.losses(images, targets)

    def freeze_batch_norm(self, parts: Iterable[nn.Module]) -> None:
        """Freeze the batch norm of these parts: statistics, scales and shifts no longer change."""
        self._frozen = [
            module for part in parts for module in part.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)
        ]
        for module in self._frozen:
            module.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "Detector":
        """Set train or eval mode; frozen batch norm remains in eval mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self


@dataclass(frozen=True)
class Level:
    """A feature map: its index among timm's intermediates, its number of channels, and its stride in pixels."""

    index: int
    channels: int
    stride: int


class Trunk(nn.Module):
    """The stages of an encoder, which map normalized images `(B, 3, H, W)` to feature maps; the weights are a copy.

    Args:
        encoder ([`Encoder`]): An encoder with [`feature_levels`].
        levels (`list[Level]`): The maps to return.
    """

    def __init__(self, encoder: Encoder, levels: list[Level]):
        super().__init__()
        self.body = copy.deepcopy(encoder.backbone)
        self.indices = [level.index for level in levels]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return one map `(B, C, h, w)` per level."""
        body: Any = self.body  # forward_intermediates is timm's
        return body.forward_intermediates(
            images, indices=self.indices, stop_early=True, intermediates_only=True, output_fmt="NCHW"
        )


@torch.no_grad()
def feature_levels(encoder: Encoder) -> list[Level]:
    """Return the deepest feature map of each resolution, from stride 2 on, finest first.

    Raises:
        ValueError: If the encoder is not timm's, has fewer than two resolutions (as plain ViTs), or accepts only
            images of one size.
    """
    backbone: Any = encoder.backbone  # forward_intermediates is timm's
    if encoder.library != "timm" or not hasattr(backbone, "forward_intermediates"):
        raise ValueError(
            f"backbone {encoder.name!r} does not support timm's forward_intermediates: detection needs a convolutional "
            "backbone of timm, such as resnet18"
        )
    # A shape other than the encoder's, so that encoders that support no other shape fail. It is a multiple of the
    # largest stride, so that the strides are exact.
    height = -(-encoder.image_size // _WHOLE_STEPS) * _WHOLE_STEPS
    side = 2 * height
    weights = next(backbone.parameters())
    was_training = backbone.training
    backbone.eval()
    try:
        blank = torch.zeros(1, 3, height, side, dtype=weights.dtype, device=weights.device)
        maps = backbone.forward_intermediates(blank, intermediates_only=True, output_fmt="NCHW")
        shapes = [tuple(level.shape) for level in maps]
    except Exception as error:  # the error for an unsupported size depends on the architecture
        raise ValueError(
            f"backbone {encoder.name!r} accepts only images of {encoder.image_size}×{encoder.image_size}: detection "
            "needs a convolutional backbone, such as resnet18"
        ) from error
    finally:
        backbone.train(was_training)
    levels: dict[int, Level] = {}
    for index, (_, channels, _, width) in enumerate(shapes):
        stride = round(side / width)
        if stride >= _FINEST:
            levels[stride] = Level(index, channels, stride)
    if len(levels) < 2:
        raise ValueError(
            f"backbone {encoder.name!r} has feature maps of one resolution: detection needs a convolutional backbone, "
            "such as resnet18"
        )
    return [levels[stride] for stride in sorted(levels)]


def split_last_stage(trunk: Trunk, encoder: Encoder, before: Level, last: Level) -> nn.Sequential:
    """Move the modules between two levels from the trunk into a separate stage.

    Args:
        trunk ([`Trunk`]): The trunk, which loses these modules.
        encoder ([`Encoder`]): The encoder, named in errors.
        before (`Level`): The level before the stage.
        last (`Level`): The last level.

    Returns:
        `nn.Sequential`: The stage.

    Raises:
        ValueError: If these modules are not consecutive children of one module.
    """
    feature_info: Any = trunk.body.feature_info  # timm's
    modules = [stage["module"] for stage in feature_info]
    parents = [modules[level.index].rpartition(".") for level in (before, last)]
    if parents[0][0] != parents[1][0]:
        raise ValueError(f"backbone {encoder.name!r} has no separate last stage, which c4 needs: pass --detector fpn")
    parent = trunk.body.get_submodule(parents[0][0])
    children = list(parent._modules)
    start, stop = (children.index(name) for _, _, name in parents)
    moved = children[start + 1 : stop + 1]
    stage = nn.Sequential(*(parent.get_submodule(name) for name in moved))
    for name in moved:
        setattr(parent, name, nn.Identity())
    return stage
