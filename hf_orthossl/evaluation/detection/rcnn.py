"""torchvision's Faster R-CNN on an encoder: C4, which the paper uses, and FPN."""

from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from ...encoders import Encoder
from .data import LONGEST
from .models import Detector, Trunk, feature_levels, split_last_stage

_RATIOS = (0.5, 1.0, 2.0)
_FPN_LEVELS = 4
# Every proposal passes through C4's whole last stage, so use the 300 of Ren et al. (2015) instead of 1,000.
_C4_PROPOSALS = 300


class RCNN(Detector):
    """A [`Detector`] around torchvision's `FasterRCNN`, in which label 0 is the background."""

    learning_rate = 5e-4

    def __init__(self, network: FasterRCNN, num_classes: int, settings: dict[str, Any]):
        super().__init__(num_classes, settings)
        self.network = network

    def losses(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return the losses of proposals and boxes."""
        targets = [{"boxes": target["boxes"], "labels": target["labels"] + 1} for target in targets]
        return self.network([image.float() / 255 for image in images], targets)

    def detections(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Return the boxes, scores and labels of each image."""
        outputs = self.network([image.float() / 255 for image in images])
        return [{**output, "labels": output["labels"] - 1} for output in outputs]


class _C4Trunk(nn.Module):
    def __init__(self, trunk: Trunk, out_channels: int):
        super().__init__()
        self.trunk = trunk
        self.out_channels = out_channels

    def forward(self, images: Tensor) -> Tensor:
        return self.trunk(images)[0]


class _C4Head(nn.Module):
    def __init__(self, stage: nn.Module):
        super().__init__()
        self.stage = stage

    def forward(self, regions: Tensor) -> Tensor:
        return self.stage(regions).mean((2, 3))


class _FPNTrunk(nn.Module):
    def __init__(self, trunk: Trunk, in_channels: list[int], out_channels: int):
        super().__init__()
        self.trunk = trunk
        self.out_channels = out_channels
        self.pyramid = FeaturePyramidNetwork(in_channels, out_channels, LastLevelMaxPool())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.pyramid({str(level): features for level, features in enumerate(self.trunk(images))})


def c4_detector(
    encoder: Encoder, num_classes: int, *, image_size: int, freeze_batch_norm: bool, roi_samples: int
) -> RCNN:
    """Build Faster R-CNN C4: anchors on the last stage but one (res4); its 14×14 regions pass through the last (res5).

    Class and box are predicted from the mean of each region. The only difference from Detectron2 is torchvision's
    region pooling, which is not shifted by half a pixel.

    Source: Ren et al. (2015), in the form of Detectron's R50-C4, which the NeurIPS 2024 paper and MoCo fine-tune.

    Args:
        encoder ([`Encoder`]): See [`build_detector`].
        num_classes (`int`): See [`build_detector`].
        image_size (`int`): See [`build_detector`].
        freeze_batch_norm (`bool`): Whether the encoder's batch norm is frozen.
        roi_samples (`int`): See [`build_detector`].
    """
    before, last = feature_levels(encoder)[-2:]
    trunk = Trunk(encoder, [before])
    stage = split_last_stage(trunk, encoder, before, last)
    sizes = tuple(before.stride * factor for factor in (2, 4, 8, 16, 32))  # 32 to 512 pixels at stride 16
    network = FasterRCNN(
        _C4Trunk(trunk, before.channels),
        rpn_anchor_generator=AnchorGenerator((sizes,), (_RATIOS,)),
        box_roi_pool=MultiScaleRoIAlign(["0"], output_size=14, sampling_ratio=2),
        box_head=_C4Head(stage),
        box_predictor=FastRCNNPredictor(last.channels, num_classes + 1),
        rpn_post_nms_top_n_test=_C4_PROPOSALS,
        **_shared(encoder, image_size, roi_samples),
    )
    settings = {"detector": "c4", "roi_samples": roi_samples, "proposals": _C4_PROPOSALS}
    return _finished(network, num_classes, settings, freeze_batch_norm, trunk, stage)


def fpn_detector(
    encoder: Encoder, num_classes: int, *, image_size: int, freeze_batch_norm: bool, roi_samples: int, channels: int
) -> RCNN:
    """Build Faster R-CNN with a feature pyramid over the last four resolutions and one pooled from the last.

    Anchors are eight strides wide.

    Source: Lin et al. (2017), in torchvision's form.

    Args:
        encoder ([`Encoder`]): See [`build_detector`].
        num_classes (`int`): See [`build_detector`].
        image_size (`int`): See [`build_detector`].
        freeze_batch_norm (`bool`): Whether the encoder's batch norm is frozen.
        roi_samples (`int`): See [`build_detector`].
        channels (`int`): Width of the pyramid; the hidden layers after it are four times as wide.
    """
    levels = feature_levels(encoder)[-_FPN_LEVELS:]
    trunk = Trunk(encoder, levels)
    strides = [*(level.stride for level in levels), 2 * levels[-1].stride]
    pool = MultiScaleRoIAlign([str(level) for level in range(len(levels))], output_size=7, sampling_ratio=2)
    network = FasterRCNN(
        _FPNTrunk(trunk, [level.channels for level in levels], channels),
        rpn_anchor_generator=AnchorGenerator(tuple((8 * stride,) for stride in strides), (_RATIOS,) * len(strides)),
        box_roi_pool=pool,
        box_head=TwoMLPHead(channels * 7**2, 4 * channels),
        box_predictor=FastRCNNPredictor(4 * channels, num_classes + 1),
        **_shared(encoder, image_size, roi_samples),
    )
    settings = {"detector": "fpn", "roi_samples": roi_samples, "fpn_channels": channels}
    return _finished(network, num_classes, settings, freeze_batch_norm, trunk)


def _shared(encoder: Encoder, image_size: int, roi_samples: int) -> dict[str, Any]:
    return {
        "image_mean": list(encoder.mean),
        "image_std": list(encoder.std),
        "min_size": image_size,
        "max_size": round(image_size * LONGEST),
        "box_batch_size_per_image": roi_samples,
    }


def _finished(
    network: FasterRCNN, num_classes: int, settings: dict[str, Any], freeze: bool, *encoder_parts: nn.Module
) -> RCNN:
    detector = RCNN(network, num_classes, {**settings, "batch_norm": "frozen" if freeze else "trained"})
    if freeze:
        detector.freeze_batch_norm(encoder_parts)
    return detector
