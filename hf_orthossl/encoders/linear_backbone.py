"""The linear encoder of the theory, registered with timm as `linear`: one matrix from pixels to representation."""

from typing import Any

import torch
from timm.layers import to_2tuple
from timm.models import build_model_with_cfg, generate_default_cfgs, is_model, register_model
from torch import Tensor, nn

default_cfgs = generate_default_cfgs(
    {
        "linear": {
            "num_classes": 10,
            "input_size": (3, 32, 32),
            "fixed_input_size": True,
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "first_conv": "projection",
            "classifier": "fc",
        }
    }
)


class LinearNet(nn.Module):
    """The network f(x) = W·flatten(x), from images `(B, in_chans, H, W)` to representations `(B, num_features)`.

    The landscape theory describes this network exactly.

    Args:
        img_size (`int` or pair of `int`, defaults to 32): The height and width of the images, in pixels.
        num_features (`int`, defaults to 16): The width D of the representation.
        bias (`bool`, defaults to `False`): Add a learnable constant to the representation.
        num_classes (`int`, defaults to 10): The number of outputs of a classifier on top; 0 leaves it out.
        in_chans (`int`, defaults to 3): The number of channels of the images.
        device (`torch.device`, *optional*): The device of the weights.
        dtype (`torch.dtype`, *optional*): The type of the weights.

    Source:
        Ziyin, Lubana, Ueda & Tanaka, ICLR 2023, arXiv 2210.00638.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 32,
        num_features: int = 16,
        bias: bool = False,
        num_classes: int = 10,
        in_chans: int = 3,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_classes, self.num_features, self.in_chans = num_classes, num_features, in_chans
        height, width = to_2tuple(img_size)
        self.projection = nn.Linear(in_chans * height * width, num_features, bias=bias, device=device, dtype=dtype)
        self.reset_classifier(num_classes)

    def get_classifier(self) -> nn.Module:
        """Return the classifier."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one of `num_classes` outputs, or remove it for 0."""
        self.num_classes = num_classes
        weight = self.projection.weight
        self.fc: nn.Module = nn.Identity()
        if num_classes:
            self.fc = nn.Linear(self.num_features, num_classes, device=weight.device, dtype=weight.dtype)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the representations `(B, num_features)` of images."""
        return self.projection(x.flatten(1))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits of representations or, with `pre_logits`, the representations."""
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images, or their representations without a classifier."""
        return self.forward_head(self.forward_features(x))


def linear(pretrained: bool = False, **kwargs: Any) -> LinearNet:
    """Build the linear encoder, with D = 16 unless `num_features` sets it."""
    return build_model_with_cfg(LinearNet, "linear", pretrained, **kwargs)


# Published encoders contain this file as their code. If this package is installed too, the name is registered already.
if not is_model("linear"):
    linear = register_model(linear)
