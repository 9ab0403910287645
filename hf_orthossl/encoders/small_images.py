"""Residual networks for images of about 32 pixels, which this file registers with timm."""

from collections.abc import Callable
from typing import Any, cast

import torch
from timm.layers import create_classifier
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, is_model, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.2470, 0.2435, 0.2616),
        "first_conv": "conv1",
        "classifier": "fc",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "resnet18_cifar": _cfg(pool_size=(4, 4)),
        "resnet50_cifar": _cfg(pool_size=(4, 4)),
        "wide_resnet28_2": _cfg(pool_size=(8, 8)),
    }
)


def _register(entrypoint: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    # Published encoders contain this file as their code. If this package is installed too, the name is registered
    # already.
    return entrypoint if is_model(entrypoint.__name__) else register_model(entrypoint)


class CifarResNet(ResNet):
    """timm's ResNet with a 3×3 stride-1 stem and no max-pooling: images `(B, 3, 32, 32)` become 4×4 feature maps.

    Parameters have timm's names, and the last batch norm of every block starts at zero, which is timm's default
    (`zero_init_last=True`). solo-learn's network is `stem_padding=2, zero_init_last=False`, LightlySSL's is
    `conv_init="uniform", zero_init_last=False`.

    Args:
        args: Positional arguments of timm's `ResNet`.
        stem_padding (`int`, defaults to 1): The padding of the stem; 2 enlarges the maps to 34×34.
        conv_init (`str`, defaults to `"normal"`): The distribution that convolutions start from: `"normal"` is He et
            al.'s for the outputs of ReLU layers, of timm and torchvision, `"uniform"` that of `nn.Conv2d` itself.
        kwargs: Keyword arguments of timm's `ResNet`.

    Raises:
        ValueError: `stem_padding` is not 1 or 2, or `conv_init` is unknown.

    Source:
        The stem: He et al. 2016, arXiv 1512.03385, section 4.2.
    """

    def __init__(self, *args: Any, stem_padding: int = 1, conv_init: str = "normal", **kwargs: Any) -> None:
        if stem_padding not in (1, 2):
            raise ValueError(f"stem_padding is {stem_padding!r}: it must be 1 or 2")
        if conv_init not in ("normal", "uniform"):
            raise ValueError(f'conv_init is {conv_init!r}: it must be "normal" or "uniform"')
        super().__init__(*args, **kwargs)
        stem: Any = self.conv1
        conv = nn.Conv2d(
            stem.in_channels,
            stem.out_channels,
            kernel_size=3,
            padding=stem_padding,
            bias=False,
            device=stem.weight.device,
            dtype=stem.weight.dtype,
        )
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        self.conv1 = conv  # type: ignore[assignment]  # timm's type is that of its deep stem
        self.maxpool = nn.Identity()  # type: ignore[assignment]  # timm's type is that of its anti-aliased pooling
        if conv_init == "uniform":
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    module.reset_parameters()
        for stage, reduction in zip(self.feature_info, (1, 1, 2, 4, 8), strict=True):
            stage["reduction"] = reduction


def _norm(channels: int, **dd: Any) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=1e-3, **dd)


class PreActivationBlock(nn.Module):
    """A residual block BN–LeakyReLU–conv–BN–LeakyReLU–conv.

    If the width changes, the shortcut is a 1×1 convolution of the block's activated input. A block that also halves
    the maps has no first batch norm and activation, as in solo-learn: both of its paths begin with a convolution.

    Args:
        in_chs (`int`): The number of input channels.
        out_chs (`int`): The number of output channels.
        stride (`int`): The stride of the first convolution.
        dd: The `device` and `dtype` of the weights.
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int, **dd: Any) -> None:
        super().__init__()
        self.bn1 = _norm(in_chs, **dd) if stride == 1 else nn.Identity()
        self.act1 = nn.LeakyReLU(0.1) if stride == 1 else nn.Identity()
        self.conv1 = nn.Conv2d(in_chs, out_chs, 3, stride, padding=1, **dd)
        self.bn2 = _norm(out_chs, **dd)
        self.act2 = nn.LeakyReLU(0.1, inplace=True)
        self.conv2 = nn.Conv2d(out_chs, out_chs, 3, padding=1, **dd)
        self.shortcut = nn.Conv2d(in_chs, out_chs, 1, stride, **dd) if in_chs != out_chs else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature maps `(B, out_chs, H / stride, W / stride)` of feature maps `(B, in_chs, H, W)`."""
        activated = self.act1(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        return shortcut + self.conv2(self.act2(self.bn2(self.conv1(activated))))


class WideResNet(nn.Module):
    """Pre-activation wide residual network WRN-`depth`-`widen_factor`, without dropout, as in solo-learn.

    It is the network of semi-supervised learning (LeakyReLU of slope 0.1, batch norm with momentum and ε of 0.001,
    convolutions with biases), and differs in these from the one of the paper that introduced it.

    Args:
        depth (`int`, defaults to 28): The number of convolutions, 6n + 4 in three groups of n blocks.
        widen_factor (`int`, defaults to 2): The factor k of the groups' widths 16·k, 32·k and 64·k channels.
        num_classes (`int`, defaults to 10): The number of outputs of the classifier; 0 leaves it out.
        in_chans (`int`, defaults to 3): The number of channels of the images.
        global_pool (`str`, defaults to `"avg"`): The pooling of the last feature maps.
        device (`torch.device`, *optional*): The device of the weights.
        dtype (`torch.dtype`, *optional*): The type of the weights.

    Source:
        Zagoruyko & Komodakis 2016, arXiv 1605.07146; Oliver et al. 2018, arXiv 1804.09170, appendix B.
    """

    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    global_pool: nn.Module
    fc: nn.Module

    def __init__(
        self,
        depth: int = 28,
        widen_factor: int = 2,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.num_classes, self.in_chans = num_classes, in_chans
        widths = [16, *(base * widen_factor for base in (16, 32, 64))]
        self.conv1 = nn.Conv2d(in_chans, widths[0], 3, padding=1, **dd)
        self.feature_info = [{"num_chs": widths[0], "reduction": 1, "module": "conv1"}]
        for group, stride in ((1, 1), (2, 2), (3, 2)):
            blocks = [PreActivationBlock(widths[group - 1], widths[group], stride, **dd)]
            blocks += [PreActivationBlock(widths[group], widths[group], 1, **dd) for _ in range((depth - 4) // 6 - 1)]
            self.add_module(f"layer{group}", nn.Sequential(*blocks))
            self.feature_info.append(
                {"num_chs": widths[group], "reduction": 2 ** (group - 1), "module": f"layer{group}"}
            )
        self.grad_checkpointing = False
        self.norm = _norm(widths[-1], **dd)
        self.act = nn.LeakyReLU(0.1, inplace=True)
        self.num_features = self.head_hidden_size = widths[-1]
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=global_pool, **dd)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the activations of each block in the backward pass, or keep them."""
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """Return the classifier."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one of `num_classes` outputs (0 removes it), and optionally the pooling."""
        self.num_classes = num_classes
        self.global_pool, self.fc = create_classifier(
            self.num_features,
            num_classes,
            pool_type=global_pool or cast(str, self.global_pool.pool_type),
            device=self.norm.weight.device,
            dtype=self.norm.weight.dtype,
        )

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last feature maps of images."""
        x = self.conv1(x)
        for layer in (self.layer1, self.layer2, self.layer3):
            x = checkpoint_seq(layer, x) if self.grad_checkpointing else layer(x)
        return self.act(self.norm(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits of feature maps or, with `pre_logits`, their pooled features."""
        x = self.global_pool(x)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images, or their pooled features without a classifier."""
        return self.forward_head(self.forward_features(x))


@_register
def resnet18_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build ResNet-18 with the 3×3 stride-1 stem of CIFAR networks: D = 512."""
    kwargs = {"block": BasicBlock, "layers": (2, 2, 2, 2), **kwargs}
    return build_model_with_cfg(CifarResNet, "resnet18_cifar", pretrained, **kwargs)


@_register
def resnet50_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build ResNet-50 with the 3×3 stride-1 stem of CIFAR networks: D = 2048."""
    kwargs = {"block": Bottleneck, "layers": (3, 4, 6, 3), **kwargs}
    return build_model_with_cfg(CifarResNet, "resnet50_cifar", pretrained, **kwargs)


@_register
def wide_resnet28_2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build WRN-28-2: D = 128."""
    feature_cfg = {"out_indices": (0, 1, 2, 3)}
    return build_model_with_cfg(WideResNet, "wide_resnet28_2", pretrained, feature_cfg=feature_cfg, **kwargs)
