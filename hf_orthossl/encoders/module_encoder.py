"""Encoders whose backbone is a network of the user's own, or of torchvision: any module from images to features."""

import logging
from collections.abc import Sequence

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from ..messages import describe
from ..spectra.stages import guess_stages
from .encoder import Encoder

logger = logging.getLogger(__name__)


class ModuleEncoder(Encoder):
    """An [`Encoder`] around any module that maps images `(B, C, H, W)` to `(B, D)` or to a feature map `(B, D, H, W)`.

    A feature map is averaged over its positions. Of a classifier the output is its classes: replace its last layer by
    `nn.Identity()` to train what comes before it.

    Args:
        module (`nn.Module`): The network, which is trained in place.
        image_size (`int`, defaults to 224): The height and width of the images, in pixels.
        name (`str`, *optional*): The name to show and to record; defaults to that of the class.
        mean (`Sequence[float]`, defaults to ImageNet's): The mean by which each channel is normalized, on the scale
            [0, 1].
        std (`Sequence[float]`, defaults to ImageNet's): The standard deviation of each channel, on the same scale.
        interpolation (`str`, defaults to `"bicubic"`): The interpolation used to resize images.
        channels (`int`, defaults to 3): The number of channels of the images.

    Raises:
        TypeError: `module` is not a module.
        ValueError: It has no parameters, fails on images of `image_size`, or returns anything else.

    Example:
        ```python
        network = torchvision.models.resnet18()
        network.fc = nn.Identity()
        model = SSLModel(SSLConfig(method="byol"), encoder=ModuleEncoder(network, image_size=32))
        OrthoSSLTrainer(model, args, train_dataset="path/to/images", write_encoder=False).train()
        ```
    """

    library = "torch"
    pooling = "mean"

    def __init__(
        self,
        module: nn.Module,
        image_size: int = 224,
        *,
        name: str | None = None,
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
        interpolation: str = "bicubic",
        channels: int = 3,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise TypeError(f"encoder must be a torch module, got {describe(module)}: pass one, or load_encoder(…)")
        name = name or type(module).__name__
        if not any(True for _ in module.parameters()):
            raise ValueError(f"encoder {name!r} has no parameters: pass a network that can be trained")
        super().__init__(
            module,
            name=name,
            image_size=image_size,
            mean=mean,
            std=std,
            interpolation=interpolation,
            stage_modules=guess_stages(key for key, _ in module.named_modules() if key),
            channels=channels,
        )
        last, layer = [*module.named_modules()][-1]
        if isinstance(layer, nn.Linear) and last.partition(".")[0] in ("fc", "head", "classifier", "heads"):
            logger.warning(
                "the representation of %r is what its classifier %s returns, %d numbers: replace that layer by "
                "nn.Identity() to train what comes before it",
                name, last, self.num_features,
            )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """Return the representations `(B, D)` of normalized images `(B, C, H, W)`."""
        output = self.backbone(self._reorder(images))
        if not isinstance(output, Tensor) or output.ndim not in (2, 4):
            shape = f"of shape {tuple(output.shape)}" if isinstance(output, Tensor) else describe(output)
            raise ValueError(f"its output is {shape}, and must be a tensor (B, D) or a feature map (B, D, H, W)")
        return output if output.ndim == 2 else output.mean(dim=(2, 3))

    def last_output(self, images: Tensor) -> Tensor:
        """Return the feature map of the module, or that of its last stage if it pools itself."""
        output = self.backbone(self._reorder(images))
        return output if output.ndim > 2 else super().last_output(images)

    def _switch_checkpointing(self, enabled: bool) -> None:
        switch = getattr(self.backbone, "set_grad_checkpointing", None)
        if switch is None:
            raise ValueError("it has no method set_grad_checkpointing(enable)")
        switch(enabled)
