"""An encoder's convolutional stages as the trunk of a detector, weights included."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...encoders import Encoder

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
