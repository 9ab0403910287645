"""DETR models of transformers on an encoder, whose weights are loaded into their timm backbone."""

from typing import Any

import torch
from timm.models import FeatureInfo
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_convert
from transformers import PreTrainedModel, RTDetrV2Config, RTDetrV2ForObjectDetection, TimmBackboneConfig

from ...encoders import Encoder
from .models import Detector, feature_levels

_LEVELS = 3
_QUERIES = 300
# The number of detections that COCO's metric considers.
_MOST_DETECTIONS = 100


class DETR(Detector):
    """A [`Detector`] around a DETR of transformers; images are resized to a square, as in RT-DETR.

    Args:
        network (`PreTrainedModel`): A model that returns `logits` and `pred_boxes` and accepts `labels`.
        num_classes (`int`): See [`Detector`].
        settings (`dict`): See [`Detector`].
        mean (`tuple[float, ...]`): Mean of the encoder's images, on the [0, 1] scale.
        std (`tuple[float, ...]`): Standard deviation of the encoder's images, on the [0, 1] scale.
        side (`int`): Side of the square, in pixels.
    """

    learning_rate = 2e-4
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: PreTrainedModel,
        num_classes: int,
        settings: dict[str, Any],
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        side: int,
    ):
        super().__init__(num_classes, settings)
        self.network = network
        self.side = side
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1) * 255, persistent=False)

    def losses(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return the matching loss of a batch."""
        pixels, sizes = self._squares(images)
        labels = [
            {"class_labels": target["labels"], "boxes": box_convert(target["boxes"], "xyxy", "cxcywh") / size}
            for target, size in zip(targets, sizes, strict=True)
        ]
        return {"loss": self.network(pixels, labels=labels).loss}

    def detections(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Return the boxes, scores and labels of each image."""
        pixels, sizes = self._squares(images)
        outputs = self.network(pixels)
        boxes = box_convert(outputs.pred_boxes.float(), "cxcywh", "xyxy") * sizes[:, None]
        return [
            self._best(image_boxes, logits, size)
            for image_boxes, logits, size in zip(boxes, outputs.logits.float(), sizes, strict=True)
        ]

    def _squares(self, images: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the images as one batch of squares, and their sizes `(B, 4)` as width, height, width, height."""
        pixels = torch.stack([self._square(image) for image in images])
        sizes = torch.tensor([image.shape[:0:-1] for image in images], device=pixels.device).repeat(1, 2)
        return pixels, sizes

    def _square(self, image: Tensor) -> Tensor:
        normalized = (image - self.mean) / self.std
        if image.shape[-2:] == (self.side, self.side):
            return normalized
        size = (self.side, self.side)
        return F.interpolate(normalized[None], size, mode="bilinear", antialias=True, align_corners=False)[0]

    def _best(self, boxes: Tensor, logits: Tensor, size: Tensor) -> dict[str, Tensor]:
        """Return the pairs of query and class with the highest scores."""
        # Of these models, only the original DETR has a class for "no object".
        scores = logits.softmax(-1)[:, :-1] if self.network.config.model_type == "detr" else logits.sigmoid()
        count = min(_MOST_DETECTIONS, scores.numel())
        scores, places = scores.flatten().topk(count)
        chosen = boxes[places // self.num_classes]
        return {
            "boxes": chosen.clamp(min=0).minimum(size),
            "scores": scores,
            "labels": places % self.num_classes,
        }


def detr_detector(
    encoder: Encoder, num_classes: int, *, image_size: int, freeze_batch_norm: bool, **config: Any
) -> DETR:
    """Build RT-DETR v2 on the last three resolutions of an encoder; only the encoder is pretrained.

    The network is a plain model of transformers: save it by `detector.network.save_pretrained`.

    Source: Lv et al. (2024), arXiv 2407.17140.

    Args:
        encoder ([`Encoder`]): See [`build_detector`].
        num_classes (`int`): See [`build_detector`].
        image_size (`int`): Side of the square, rounded up to a multiple of the largest stride.
        freeze_batch_norm (`bool`): Whether the encoder's batch norm is frozen.
        config: Further entries of `RTDetrV2Config`, such as `decoder_layers=3`.

    Raises:
        ValueError: If the encoder has fewer than three resolutions, or [`load_into_backbone`] fails.
    """
    levels = feature_levels(encoder)[-_LEVELS:]
    if len(levels) < _LEVELS:
        raise ValueError(f"backbone {encoder.name!r} has {len(levels)} resolutions: detr needs {_LEVELS}, fpn two")
    strides = [level.stride for level in levels]
    side = -(-image_size // strides[-1]) * strides[-1]
    # Queries start at positions on the maps, of which small images have few.
    places = sum((side // stride) ** 2 for stride in strides)
    network = RTDetrV2ForObjectDetection(
        RTDetrV2Config(
            backbone_config=timm_backbone_config(encoder, [level.index for level in levels]),
            # transformers' freezing loses the activations of timm's batch norm layers; Detector freezes them instead.
            freeze_backbone_batch_norms=False,
            encoder_in_channels=[level.channels for level in levels],
            feat_strides=strides,
            **{"num_labels": num_classes, "num_queries": min(_QUERIES, places), **config},
        )
    )
    body = load_into_backbone(network, encoder)
    settings = {"detector": "detr", "batch_norm": "frozen" if freeze_batch_norm else "trained"}
    detector = DETR(network, num_classes, settings, mean=encoder.mean, std=encoder.std, side=side)
    if freeze_batch_norm:
        detector.freeze_batch_norm([body])
    return detector


def timm_backbone_config(encoder: Encoder, indices: list[int]) -> TimmBackboneConfig:
    """Return the configuration of a transformers backbone with the encoder's architecture.

    Args:
        encoder ([`Encoder`]): A convolutional encoder of timm.
        indices (`list[int]`): Indices of the feature maps to return, as in timm.
    """
    pretrained_cfg: Any = encoder.backbone.pretrained_cfg  # timm's
    # The signature of `TimmBackboneConfig` does not name the setter `out_indices`.
    settings: dict[str, Any] = {"backbone": pretrained_cfg["architecture"], "out_indices": indices}
    return TimmBackboneConfig(**settings)


@torch.no_grad()
def load_into_backbone(network: nn.Module, encoder: Encoder) -> nn.Module:
    """Copy an encoder's weights into the timm backbone of a transformers model, and return the backbone.

    Args:
        network (`nn.Module`): A model with one timm backbone of the encoder's architecture: DETR, Conditional or
            Deformable DETR, RT-DETR, D-FINE and others.
        encoder ([`Encoder`]): The encoder.

    Returns:
        `nn.Module`: The timm module of the backbone, with the parameters and statistics of the encoder.

    Raises:
        ValueError: If there is no such backbone, or its weights do not fit the encoder's architecture.
    """
    # Some models unwrap the TimmBackbone, but every feature extractor of timm has a FeatureInfo.
    bodies = [module for module in network.modules() if isinstance(getattr(module, "feature_info", None), FeatureInfo)]
    if len(bodies) != 1:
        raise ValueError(f"network has {len(bodies)} timm backbones: it must have one, from a TimmBackboneConfig")
    (body,) = bodies
    # timm's feature wrapper flattens nested modules and joins their names.
    weights = {name.replace(".", "_"): tensor for name, tensor in encoder.backbone.state_dict().items()}
    for name, tensor in body.state_dict(keep_vars=True).items():
        source = weights.get(name.removeprefix("model.").replace(".", "_"))
        if source is None or source.shape != tensor.shape:
            raise ValueError(
                f"backbone {encoder.name!r} does not fit transformers' {type(network).__name__}: weight {name} is "
                "missing or has another shape: pass --detector fpn"
            )
        tensor.copy_(source)
    return body
