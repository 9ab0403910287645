"""The linear encoder of the theory, registered with timm as `linear`: one matrix from pixels to representation."""

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
    """
    f(x) = W·flatten(x): normalised images `(B, in_chans, img_size, img_size)` to representations `(B, num_features)`.

    What the landscape theory of Ziyin, Lubana, Ueda & Tanaka (ICLR 2023, arXiv 2210.00638) describes exactly.

    Args:
        img_size (`int` or pair, *optional*, defaults to 32): Height and width of the images, in pixels.
        num_features (`int`, *optional*, defaults to 16): Width d of the representation.
        bias (`bool`, *optional*, defaults to `False`): Add a learnable constant to the representation.
        num_classes (`int`, *optional*, defaults to 10): Outputs of a classifier on top; 0 leaves it out.
        in_chans (`int`, *optional*, defaults to 3): Channels of the images.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 32,
        num_features: int = 16,
        bias: bool = False,
        num_classes: int = 10,
        in_chans: int = 3,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        self.num_classes, self.num_features, self.in_chans = num_classes, num_features, in_chans
        height, width = to_2tuple(img_size)
        self.projection = nn.Linear(in_chans * height * width, num_features, bias=bias, device=device, dtype=dtype)
        self.reset_classifier(num_classes)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        like = {"device": self.projection.weight.device, "dtype": self.projection.weight.dtype}
        self.fc = nn.Linear(self.num_features, num_classes, **like) if num_classes else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        return self.projection(x.flatten(1))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def linear(pretrained: bool = False, **kwargs) -> LinearNet:
    """One matrix from pixels to representation: D = 16 unless `num_features` says otherwise."""
    return build_model_with_cfg(LinearNet, "linear", pretrained, **kwargs)


# Published encoders carry this file as their code; beside the installed package the name is already taken.
if not is_model("linear"):
    linear = register_model(linear)
