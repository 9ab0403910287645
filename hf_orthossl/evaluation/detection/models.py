"""The interface of detectors, the encoder's stages as their trunk, and how they are built."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...encoders import Encoder
from ...messages import suggest

HEADS = ("fpn", "c4", "detr")
BATCH_NORM = ("trained", "frozen")


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


def build_detector(
    encoder: Encoder,
    num_classes: int,
    head: str = "fpn",
    *,
    image_size: int = 800,
    batch_norm: str = "trained",
    roi_samples: int = 64,
    fpn_channels: int = 128,
) -> Detector:
    """Build a detector on a copy of a convolutional timm encoder and its weights.

    Args:
        encoder ([`Encoder`]): From [`~hf_orthossl.encoders.load_encoder`]; it does not change.
        num_classes (`int`): Number of classes of the data.
        head (`str`, defaults to "fpn"): "fpn" or "c4" for Faster R-CNN (see [`fpn_detector`], [`c4_detector`]), or
            "detr" for RT-DETR v2 (see [`detr_detector`]).
        image_size (`int`, defaults to 800): Length of the shorter side that images are resized to, in pixels; for
            "detr", both sides.
        batch_norm (`str`, defaults to "trained"): Batch norm of the encoder, "trained" or "frozen", see [`Detector`].
        roi_samples (`int`, defaults to 64): Number of proposals per image that train the second stage of Faster R-CNN;
            512 in Detectron's recipes, which are made for large GPUs.
        fpn_channels (`int`, defaults to 128): Width of "fpn", whose hidden layers are four times as wide; 256 in
            Detectron's recipes.

    Raises:
        ValueError: If a name is unknown, a number is below 1, or the encoder has no feature maps.
    """
    for name, value, known in (("head", head, HEADS), ("batch_norm", batch_norm, BATCH_NORM)):
        if value not in known:
            raise ValueError(f"{name} {value!r} is unknown: {suggest(value, known)}")
    numbers = {"num_classes": num_classes, "image_size": image_size, "roi_samples": roi_samples}
    for name, number in {**numbers, "fpn_channels": fpn_channels}.items():
        if not isinstance(number, int) or number < 1:
            raise ValueError(f"{name} is {number!r}: it must be an integer of 1 or more")
    frozen = batch_norm == "frozen"
    # Imported when needed: transformers' DETR and torchvision's detectors take seconds to import.
    if head == "detr":
        from .detr import detr_detector

        return detr_detector(encoder, num_classes, image_size=image_size, freeze_batch_norm=frozen)
    from .rcnn import c4_detector, fpn_detector

    if head == "c4":
        return c4_detector(
            encoder, num_classes, image_size=image_size, freeze_batch_norm=frozen, roi_samples=roi_samples
        )
    return fpn_detector(
        encoder,
        num_classes,
        image_size=image_size,
        freeze_batch_norm=frozen,
        roi_samples=roi_samples,
        channels=fpn_channels,
    )


# Minimum stride: a stage at the full resolution of the image costs much and contributes little.
_FINEST = 2
_WHOLE_STEPS = 64


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
        ValueError: If the encoder is not timm's, has fewer than two resolutions (as plain ViTs), or takes images of one
            size only.
    """
    backbone: Any = encoder.backbone  # forward_intermediates is timm's
    if encoder.library != "timm" or not hasattr(backbone, "forward_intermediates"):
        raise ValueError(
            f"backbone {encoder.name!r} does not give feature maps by timm's forward_intermediates: detection takes "
            "timm's convolutional backbones, such as resnet18"
        )
    # The shape differs from the encoder's own, so that encoders that support no other shape fail. As a multiple of the
    # largest stride it gives exact strides.
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
            f"backbone {encoder.name!r} takes images of {encoder.image_size}×{encoder.image_size} only: detection "
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
    """Move the modules after one level, up to the last level, from the trunk into a stage.

    Args:
        trunk ([`Trunk`]): The trunk, which loses these modules.
        encoder ([`Encoder`]): Its encoder, for its name.
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
