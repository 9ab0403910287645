"""The DETR family of transformers on an encoder, whose weights go into its timm backbone."""

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
# As many detections as COCO's metric looks at.
_MOST_DETECTIONS = 100


class DETR(Detector):
    """[`Detector`] around a DETR of transformers; images are resized to a square, as RT-DETR has it.

    Args:
        network (`PreTrainedModel`): Any model that gives `logits` and `pred_boxes` and takes `labels`.
        mean, std (`tuple[float, ...]`): Of the encoder's images, on the [0, 1] scale.
        side (`int`): Of the square, in pixels.
        num_classes, settings: See [`Detector`].
    """

    learning_rate = 2e-4

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

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """The matching loss, or boxes; see [`Detector`]."""
        pixels = torch.stack([self._square(image) for image in images])
        sizes = torch.tensor([image.shape[:0:-1] for image in images], device=pixels.device).repeat(1, 2)
        if self.training:
            labels = [
                {
                    "class_labels": target["labels"],
                    "boxes": box_convert(target["boxes"], "xyxy", "cxcywh") / size,
                }
                for target, size in zip(targets, sizes, strict=True)
            ]
            return {"loss": self.network(pixels, labels=labels).loss}
        outputs = self.network(pixels)
        boxes = box_convert(outputs.pred_boxes.float(), "cxcywh", "xyxy") * sizes[:, None]
        return [self._best(*image, size) for *image, size in zip(boxes, outputs.logits.float(), sizes, strict=True)]

    def _square(self, image: Tensor) -> Tensor:
        normalized = (image - self.mean) / self.std
        if image.shape[-2:] == (self.side, self.side):
            return normalized
        size = (self.side, self.side)
        return F.interpolate(normalized[None], size, mode="bilinear", antialias=True, align_corners=False)[0]

    def _best(self, boxes: Tensor, logits: Tensor, size: Tensor) -> dict[str, Tensor]:
        """The likeliest pairs of query and class: only the first DETR has a class for "nothing" to weigh against."""
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
    """RT-DETR v2 on the last three resolutions of an encoder; all but the encoder starts untrained.

    Source: Lv et al. (2024), arXiv 2407.17140. The network is plain transformers: `detector.network.save_pretrained`.

    Args:
        encoder, num_classes, freeze_batch_norm: See [`build_detector`].
        image_size (`int`): Side of the square, rounded up to whole steps of the coarsest feature map.
        config: Further entries of `RTDetrV2Config`, as in `decoder_layers=3`.

    Raises:
        ValueError: as in [`load_into_backbone`], or the encoder has fewer than three resolutions.
    """
    levels = feature_levels(encoder)[-_LEVELS:]
    if len(levels) < _LEVELS:
        raise ValueError(f"backbone {encoder.name!r} has {len(levels)} resolutions: detr needs {_LEVELS}, fpn two")
    indices, channels, strides = (list(parts) for parts in zip(*levels, strict=True))
    side = -(-image_size // strides[-1]) * strides[-1]
    # Queries start from places on the maps, of which small images have few.
    places = sum((side // stride) ** 2 for stride in strides)
    network = RTDetrV2ForObjectDetection(
        RTDetrV2Config(
            backbone_config=timm_backbone_config(encoder, indices),
            # transformers' own freezing drops the activations that timm keeps within batch norm: see Detector.
            freeze_backbone_batch_norms=False,
            encoder_in_channels=channels,
            feat_strides=strides,
            num_labels=num_classes,
            **{"num_queries": min(_QUERIES, places), **config},
        )
    )
    body = load_into_backbone(network, encoder)
    settings = {"detector": "detr", "batch_norm": "frozen" if freeze_batch_norm else "trained"}
    detector = DETR(network, num_classes, settings, mean=encoder.mean, std=encoder.std, side=side)
    if freeze_batch_norm:
        detector.freeze_batch_norm([body])
    return detector


def timm_backbone_config(encoder: Encoder, indices: list[int]) -> TimmBackboneConfig:
    """The configuration of a transformers backbone of the encoder's architecture.

    Args:
        encoder ([`Encoder`]): A convolutional encoder of timm.
        indices (`list[int]`): Feature maps to return, as timm counts them.
    """
    return TimmBackboneConfig(backbone=encoder.backbone.pretrained_cfg["architecture"], out_indices=indices)


@torch.no_grad()
def load_into_backbone(network: nn.Module, encoder: Encoder) -> nn.Module:
    """Copies an encoder's weights into the timm backbone of a transformers model, which never loads them itself.

    Args:
        network (`nn.Module`): A model with one timm backbone of the encoder's architecture: DETR, Conditional or
            Deformable DETR, RT-DETR, D-FINE …
        encoder ([`Encoder`]): The encoder.

    Returns:
        the backbone's timm module, all of whose parameters and statistics are now the encoder's.

    Raises:
        ValueError: there is no such backbone, or its weights are not those of the encoder's architecture.
    """
    # Some families unwrap the TimmBackbone, but what timm made always carries its FeatureInfo.
    bodies = [module for module in network.modules() if isinstance(getattr(module, "feature_info", None), FeatureInfo)]
    if len(bodies) != 1:
        raise ValueError(f"network has {len(bodies)} timm backbones: it must have one, by TimmBackboneConfig")
    (body,) = bodies
    # timm's wrapper for features joins the names of nested modules where it takes them out of their parent.
    given = {name.replace(".", "_"): tensor for name, tensor in encoder.backbone.state_dict().items()}
    for name, tensor in body.state_dict(keep_vars=True).items():
        source = given.get(name.removeprefix("model.").replace(".", "_"))
        if source is None or source.shape != tensor.shape:
            raise ValueError(
                f"backbone {encoder.name!r} does not fit transformers' {type(network).__name__}: weight {name} is not "
                "as the architecture alone makes it; pass --detector fpn"
            )
        tensor.copy_(source)
    return body
