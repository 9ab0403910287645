"""What detectors have in common: their interface, the encoder's stages as their trunk, and how they are built."""

import copy
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...encoders import Encoder

HEADS = ("fpn", "c4", "detr")
BATCH_NORM = ("trained", "frozen")


class Detector(nn.Module):
    """A detector; labels are 0 to `num_classes` − 1, boxes are corners x1, y1, x2, y2 in pixels of the image given.

    Batch norm: with "trained", the encoder's layers normalize by the batch and go on learning, as in the full
    fine-tuning of self-supervised encoders (MoCo and after: statistics of pretraining do not fit detection's images,
    and an untrained encoder has none). With "frozen", their statistics, scales and shifts stay the encoder's, as
    torchvision and DETR have it for supervised ones; it is for batches of one or two images. Normalization layers that
    belong to a head are always trained.

    Args:
        num_classes (`int`): C.
        settings (`dict`): What the detector is, for results.

    Attributes:
        learning_rate (`float`): To begin with, for AdamW.
    """

    learning_rate: float

    def __init__(self, num_classes: int, settings: dict[str, Any]):
        super().__init__()
        self.num_classes = num_classes
        self.settings = settings
        self._frozen: list[nn.Module] = []

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """In training mode, losses by name; else per image `boxes` `(N, 4)`, `scores` and `labels` `(N,)`, best first.

        Args:
            images (`list[Tensor]`): uint8 `(3, h, w)`, of any sizes.
            targets (`list[dict]`, *optional*): Per image `boxes` and `labels`; needed in training mode.
        """
        raise TypeError("Detector is abstract: call build_detector")

    def freeze_batch_norm(self, parts: Iterable[nn.Module]) -> None:
        """Keeps the batch norm of these parts as it is from now on."""
        self._frozen = [
            module for part in parts for module in part.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)
        ]
        for module in self._frozen:
            module.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "Detector":
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
    """A detector on a copy of a convolutional timm encoder, weights included.

    Args:
        encoder ([`Encoder`]): From [`~hf_orthossl.encoders.load_encoder`]; left as it is.
        num_classes (`int`): Classes of the data.
        head (`str`, defaults to "fpn"): "fpn" or "c4" for Faster R-CNN (see [`fpn_detector`], [`c4_detector`]), or
            "detr" for RT-DETR v2 (see [`detr_detector`]).
        image_size (`int`, defaults to 800): Length of the shorter side that images are resized to, in pixels; for
            "detr", both sides.
        batch_norm (`str`, defaults to "trained"): Of the encoder's layers: "trained" or "frozen", see [`Detector`].
        roi_samples (`int`, defaults to 64): Proposals per image that Faster R-CNN's second stage learns from; 512 in
            Detectron's recipes, made for large GPUs.
        fpn_channels (`int`, defaults to 128): Width of "fpn", whose hidden layers are four times as wide; 256 in
            Detectron's recipes.

    Raises:
        ValueError: an unknown name, no classes, or an encoder without feature maps.
    """
    for name, value, known in (("head", head, HEADS), ("batch_norm", batch_norm, BATCH_NORM)):
        if value not in known:
            raise ValueError(f"{name} is {value!r}: choose from {', '.join(known)}")
    numbers = {"num_classes": num_classes, "image_size": image_size, "roi_samples": roi_samples}
    for name, value in {**numbers, "fpn_channels": fpn_channels}.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}: it must be a whole number of 1 or more")
    settings = {"image_size": image_size, "freeze_batch_norm": batch_norm == "frozen"}
    # Imported here: transformers' DETR and torchvision's detectors cost seconds that only one of them is worth.
    if head == "detr":
        from .detr import detr_detector

        return detr_detector(encoder, num_classes, **settings)
    from .rcnn import c4_detector, fpn_detector

    if head == "c4":
        return c4_detector(encoder, num_classes, roi_samples=roi_samples, **settings)
    return fpn_detector(encoder, num_classes, roi_samples=roi_samples, channels=fpn_channels, **settings)


# A stage at the full resolution of the image costs more than it tells.
_FINEST = 2
_WHOLE_STEPS = 64


class Level(NamedTuple):
    """A feature map: its index among timm's intermediates, its channels, and the pixels that one of its steps spans."""

    index: int
    channels: int
    stride: int


class Trunk(nn.Module):
    """Images `(B, 3, H, W)`, normalized, to the feature maps of chosen stages; its weights are a copy of the encoder's.

    Args:
        encoder ([`Encoder`]): One of [`feature_levels`].
        levels (`list[Level]`): Which maps to return.
    """

    def __init__(self, encoder: Encoder, levels: list[Level]):
        super().__init__()
        self.body = copy.deepcopy(encoder.backbone)
        self.indices = [level.index for level in levels]

    def forward(self, images: Tensor) -> list[Tensor]:
        """One map `(B, C, h, w)` per level."""
        return self.body.forward_intermediates(
            images, indices=self.indices, stop_early=True, intermediates_only=True, output_fmt="NCHW"
        )


@torch.no_grad()
def feature_levels(encoder: Encoder) -> list[Level]:
    """The deepest feature map of each resolution, from stride 2 on, finest first.

    Raises:
        ValueError: the encoder is not timm's, or has not at least two resolutions (plain ViTs), or takes images of one
            size only.
    """
    backbone = encoder.backbone
    if encoder.library != "timm" or not hasattr(backbone, "forward_intermediates"):
        raise ValueError(
            f"backbone {encoder.name!r} does not give feature maps by timm's forward_intermediates: detection takes "
            "timm's convolutional backbones, such as resnet18"
        )
    # Of another shape than the encoder's own, which finds those that take no other; whole steps of every stage give
    # strides exactly.
    height = -(-encoder.image_size // _WHOLE_STEPS) * _WHOLE_STEPS
    side = 2 * height
    weights = next(backbone.parameters())
    was_training = backbone.training
    backbone.eval()
    try:
        blank = torch.zeros(1, 3, height, side, dtype=weights.dtype, device=weights.device)
        maps = backbone.forward_intermediates(blank, intermediates_only=True, output_fmt="NCHW")
        shapes = [tuple(level.shape) for level in maps]
    except Exception as error:  # every architecture has words of its own for a size it does not take
        raise ValueError(
            f"backbone {encoder.name!r} takes images of {encoder.image_size}×{encoder.image_size} only: detection "
            "needs a convolutional backbone, such as resnet18"
        ) from error
    finally:
        backbone.train(was_training)
    levels = {}
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
    """Takes the modules after one level, up to the last, out of the trunk.

    Raises:
        ValueError: these modules do not follow each other in one parent.
    """
    modules = [stage["module"] for stage in trunk.body.feature_info]
    parents = [modules[level.index].rpartition(".") for level in (before, last)]
    if parents[0][0] != parents[1][0]:
        raise ValueError(f"backbone {encoder.name!r} has no last stage that stands alone: pass --detector fpn")
    parent = trunk.body.get_submodule(parents[0][0])
    children = list(parent._modules)
    start, stop = (children.index(name) for _, _, name in parents)
    taken = children[start + 1 : stop + 1]
    stage = nn.Sequential(*(parent._modules[name] for name in taken))
    for name in taken:
        setattr(parent, name, nn.Identity())
    return stage
