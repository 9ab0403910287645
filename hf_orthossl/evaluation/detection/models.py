"""What every detector here is: lists of images in, losses or boxes out, on top of an encoder's own weights."""

from collections.abc import Iterable
from typing import Any

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
