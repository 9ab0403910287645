"""BYOL from lightly's modules, assembled as in its own example (examples/pytorch/byol.py)."""

import copy

import torch
import torchvision
from torch import Tensor, nn

# Suffix of the names of networks with a stem for small images, whose other layers are torchvision's.
STEM = "_cifar"


def check_lightly() -> None:
    """Raise a `ValueError` that says how to install lightly if it is missing."""
    try:
        import lightly  # noqa: F401
    except ImportError:
        raise ValueError(
            "this benchmark runs lightly side by side, which is not installed: pip install 'hf_orthossl[bench]', or "
            "uv run --extra bench python scripts/benchmark.py …"
        ) from None


def torchvision_backbone(name: str) -> nn.Module:
    """Return torchvision's ResNet of that name without classifier, `(B, 3, H, W)` → `(B, D, 1, 1)`.

    Args:
        name (`str`): Name of a ResNet of torchvision; `_cifar` after it replaces the stem by a 3×3 one without pooling.

    Raises:
        ValueError: torchvision has no such ResNet.
    """
    architecture = name.removesuffix(STEM)
    if not architecture.startswith("resnet") or architecture not in torchvision.models.list_models():
        raise ValueError(
            f"--backbone {name}: lightly's example takes torchvision's ResNets; choose resnet18, resnet50, "
            f"resnet18{STEM} or resnet50{STEM}"
        )
    resnet = torchvision.models.get_model(architecture)
    if name.endswith(STEM):
        resnet.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
        resnet.maxpool = nn.Identity()
    return nn.Sequential(*list(resnet.children())[:-1])


class LightlyBYOL(nn.Module):
    """BYOL as lightly's example writes it.

    Args:
        backbone (`nn.Module`): From [`torchvision_backbone`].
        num_features (`int`): Dimension D of the representation.
        hidden_dim (`int`): Hidden width of projector and predictor.
        output_dim (`int`): Output width of projector and predictor.
    """

    def __init__(self, backbone: nn.Module, num_features: int, hidden_dim: int, output_dim: int):
        from lightly.loss import NegativeCosineSimilarity
        from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
        from lightly.models.utils import deactivate_requires_grad

        super().__init__()
        self.backbone = backbone
        self.projection_head = BYOLProjectionHead(num_features, hidden_dim, output_dim)
        self.prediction_head = BYOLPredictionHead(output_dim, hidden_dim, output_dim)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)
        self.criterion = NegativeCosineSimilarity()

    def forward(self, x: Tensor) -> Tensor:
        """Return the predictions `(B, d)` of one view."""
        y = self.backbone(x).flatten(start_dim=1)
        return self.prediction_head(self.projection_head(y))

    def forward_momentum(self, x: Tensor) -> Tensor:
        """Return the targets `(B, d)` of one view."""
        y = self.backbone_momentum(x).flatten(start_dim=1)
        return self.projection_head_momentum(y).detach()

    def loss(self, views: list[Tensor]) -> Tensor:
        """Return the loss, which equals L / 4 − 1 for the loss L of this package."""
        x0, x1 = views
        p0, z0 = self(x0), self.forward_momentum(x0)
        p1, z1 = self(x1), self.forward_momentum(x1)
        return 0.5 * (self.criterion(p0, z1) + self.criterion(p1, z0))

    def step(self, views: list[Tensor], optimizer: torch.optim.Optimizer, momentum: float, bf16: bool = False) -> None:
        """Take one optimizer step; the target network moves first, as in the example."""
        from lightly.models.utils import update_momentum

        update_momentum(self.backbone, self.backbone_momentum, m=momentum)
        update_momentum(self.projection_head, self.projection_head_momentum, m=momentum)
        with torch.autocast(views[0].device.type, torch.bfloat16, enabled=bf16):
            loss = self.loss(views)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
