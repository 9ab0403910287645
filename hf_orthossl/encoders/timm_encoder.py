"""Encoders whose backbone is a timm model."""

import re
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from ..messages import first_line
from .encoder import Encoder, choose_stages, square_side


class TimmEncoder(Encoder):
    """An [`Encoder`] around a timm model without classifier; its representation is the model's pooled output."""

    library = "timm"

    def forward(self, images: Tensor) -> Tensor:
        """Return the representations `(B, D)` of normalized images `(B, 3, H, W)`."""
        return self.backbone(self._reorder(images))

    def _as_feature_map(self, output: Tensor) -> Tensor:
        if output.ndim == 4 and getattr(self.backbone, "output_fmt", None) == "NHWC":
            return output.permute(0, 3, 1, 2)
        return output


def build_timm_encoder(
    name: str,
    model: str,
    config: dict,
    weights: Path | None,
    image_size: int | None,
    **backbone_kwargs: Any,
) -> TimmEncoder:
    """Build a [`TimmEncoder`].

    Args:
        name (`str`): The name that the user gave.
        model (`str`): The name for timm: an architecture, with or without tag.
        config (`dict`): `pretrained_cfg` and, for a saved model, `model_args`, which replace timm's own.
        weights (`Path`, *optional*): The safetensors file to load.
        image_size (`int`, *optional*): The side of the images in pixels; defaults to that of the model.
        backbone_kwargs: Further arguments of `timm.create_model`.

    Returns:
        [`TimmEncoder`]: The encoder.

    Raises:
        ValueError: timm rejects the arguments, or the weights do not fit.
    """
    cfg, model_args = config["pretrained_cfg"], config.get("model_args", {})
    own_size = model_args.get("img_size") or (cfg.get("input_size") or (3, 224, 224))[-2:]
    image_size = image_size or square_side(name, own_size)
    # Networks with position embeddings are built for one size; for all others it is only a recommendation.
    if cfg.get("fixed_input_size") or "img_size" in model_args:
        backbone_kwargs["img_size"] = image_size
    pool = backbone_kwargs.get("global_pool", model_args.get("global_pool", cfg.get("global_pool")))
    if pool == "":  # in timm this disables pooling, without which there is no representation
        backbone_kwargs["global_pool"] = "avg"
    if "model_args" in config:
        own = {key: value for key, value in model_args.items() if key != "num_classes"}
        backbone_kwargs = {**own, **backbone_kwargs, "pretrained_cfg": cfg}
    if weights is not None:
        # With custom_load the file would be read in the format of the original release.
        backbone_kwargs["pretrained_cfg_overlay"] = {"file": str(weights), "custom_load": False}
    try:
        backbone: Any = timm.create_model(model, pretrained=weights is not None, num_classes=0, **backbone_kwargs)
    except (TypeError, ValueError, AssertionError, RuntimeError, KeyError) as error:
        raise ValueError(
            f"backbone {name!r} cannot be built ({first_line(error)}): check its arguments and weights"
        ) from error
    return TimmEncoder(
        backbone,
        name=name,
        image_size=image_size,
        mean=backbone.pretrained_cfg["mean"],
        std=backbone.pretrained_cfg["std"],
        interpolation=backbone.pretrained_cfg["interpolation"],
        stage_modules=choose_stages(_stage_modules(backbone)),
    )


def _stage_modules(backbone: nn.Module) -> list[str]:
    """Return the modules of timm's `feature_info`, without the stem."""
    info = getattr(backbone, "feature_info", None)
    modules = [stage["module"] for stage in info] if isinstance(info, list) else []
    kinds = [re.sub(r"\d+", "#", module) for module in modules]
    return modules[1:] if len(kinds) > 1 and kinds[0] != kinds[1] else modules
