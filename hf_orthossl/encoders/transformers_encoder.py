"""Encoders whose backbone is a vision model of transformers."""

import inspect
import json
import math
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CONFIG_MAPPING, MODEL_MAPPING, PreTrainedConfig, PreTrainedModel

from ..messages import first_line, suggest
from .encoder import Encoder, choose_stages, square_side


class TransformersEncoder(Encoder):
    """An [`Encoder`] around a vision model of transformers.

    The representation is the model's `pooler_output` if that is a pooling (ResNet, ConvNeXt, Swin) or the normalized
    class token (DINOv2, CLIP). If it is a tanh layer for classification (ViT, DeiT), this layer is removed, and the
    representation is the class token of `last_hidden_state`. Without a class token, it is the mean over positions.
    """

    library = "transformers"
    pooling = ""

    def forward(self, images: Tensor) -> Tensor:
        """Return the representations `(B, D)` of normalized images `(B, 3, H, W)`, in any size the model supports."""
        kwargs = {}
        if images.shape[-1] != self.image_size and self._interpolates():
            kwargs["interpolate_pos_encoding"] = True
        outputs = self.backbone(self._reorder(images), **kwargs)
        if not self.pooling:  # chosen once, by the probe at construction
            self.pooling = self._choose_pooling(outputs)
        if self.pooling == "pooler_output":
            return outputs.pooler_output.flatten(1)
        hidden = outputs.last_hidden_state
        if self.pooling == "cls":
            return hidden[:, 0]
        return hidden.mean(dim=1) if hidden.ndim == 3 else hidden.mean(dim=(2, 3))

    def _interpolates(self) -> bool:
        return "interpolate_pos_encoding" in inspect.signature(self.backbone.forward).parameters

    def _choose_pooling(self, outputs: Any) -> str:
        if getattr(outputs, "pooler_output", None) is not None:
            return "pooler_output"
        names = [key.rpartition(".")[2] for key, _ in self.backbone.named_parameters()]
        return "cls" if {"cls_token", "class_embedding"}.intersection(names) else "mean"


def build_transformers_encoder(
    name: str, folder: Path, pretrained: bool, image_size: int | None, **backbone_kwargs: Any
) -> TransformersEncoder:
    """Build a [`TransformersEncoder`] from a folder with a `config.json` and, if `pretrained`, safetensors weights.

    Args:
        name (`str`): The name that the user gave.
        folder (`Path`): The folder.
        pretrained (`bool`): Whether to load the folder's weights.
        image_size (`int`, *optional*): The side of the images in pixels, to which position embeddings are resampled;
            defaults to that of the model.
        backbone_kwargs: Entries of the configuration to change.

    Returns:
        [`TransformersEncoder`]: The encoder.

    Raises:
        ValueError: The model is not a vision model of transformers, an entry is unknown, or the weights do not fit.
    """
    config = _read_config(name, folder, backbone_kwargs)
    own_size = getattr(config, "image_size", None)
    processor = _read_processor(folder)
    image_size = image_size or square_side(name, own_size or processor["image_size"])
    architecture = _architecture(name, config)
    try:
        # First on the meta device, because the modules of the architecture decide how it is built.
        with torch.device("meta"):
            kwargs = _without_untrained_pooler(architecture, config)
        backbone = _load(name, architecture, config, folder, kwargs) if pretrained else None
        if own_size is not None:
            config.image_size = image_size
        if backbone is None:
            backbone = architecture(config, **kwargs)
        elif own_size not in (None, image_size):
            backbone = _resized(architecture(config, **kwargs), backbone, image_size)
    except (TypeError, RuntimeError, AttributeError, ZeroDivisionError) as error:
        raise ValueError(
            f"backbone {name!r} cannot be built ({first_line(error)}): check its arguments and weights"
        ) from error
    for key, parameter in backbone.named_parameters():
        if key.endswith("mask_token"):  # unused with whole images, so DDP would wait for its gradient
            parameter.requires_grad_(False)
    return TransformersEncoder(
        backbone,
        name=name,
        image_size=image_size,
        mean=processor["image_mean"],
        std=processor["image_std"],
        interpolation=Image.Resampling(processor["resample"]).name.lower(),
        stage_modules=choose_stages(_stage_modules(backbone)),
    )


def _read_config(name: str, folder: Path, changes: dict) -> PreTrainedConfig:
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if content["model_type"] not in CONFIG_MAPPING:
        raise ValueError(
            f"backbone {name!r} has model_type {content['model_type']!r}, which transformers does not support, "
            "and code from its folder is never run: choose a model of transformers"
        )
    config = CONFIG_MAPPING[content["model_type"]].from_dict(content)
    known = config.to_dict()
    for key, value in changes.items():
        if key not in known:
            nearest = suggest(key, known, most=3, otherwise="its config.json lists them")
            raise ValueError(f"backbone {name!r} has no argument {key!r}: {nearest}")
        setattr(config, key, value)
    # Masked autoencoders hide a random part of every image by default.
    if "mask_ratio" in known:
        config.mask_ratio = 0.0
    return config


def _architecture(name: str, config: PreTrainedConfig) -> type[PreTrainedModel]:
    architecture = MODEL_MAPPING.get(type(config), None)
    if getattr(architecture, "main_input_name", None) != "pixel_values":
        raise ValueError(
            f"backbone {name!r} is not a vision model (its model_type is {config.model_type!r}): choose one whose "
            "input is pixel_values"
        )
    return cast(type[PreTrainedModel], architecture)  # the library's type is a pair of optional classes


def _without_untrained_pooler(architecture: type[PreTrainedModel], config: PreTrainedConfig) -> dict:
    if "add_pooling_layer" not in inspect.signature(architecture.__init__).parameters:
        return {}
    pooler = cast(nn.Module, architecture(config).pooler)
    return {"add_pooling_layer": False} if any(isinstance(m, nn.Linear) for m in pooler.modules()) else {}


def _read_processor(folder: Path) -> dict:
    """Return the normalization and size from the folder's image processor; defaults are ImageNet's at 224 pixels."""
    path = folder / "preprocessor_config.json"
    saved = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    size = saved.get("crop_size") or saved.get("size") or 224
    if isinstance(size, dict):
        size = [size["height"], size["width"]] if "height" in size else size.get("shortest_edge", 224)
    resample = saved.get("resample")
    return {
        "image_mean": saved.get("image_mean") or IMAGENET_DEFAULT_MEAN,
        "image_std": saved.get("image_std") or IMAGENET_DEFAULT_STD,
        "resample": Image.Resampling.BICUBIC if resample is None else resample,
        "image_size": size,
    }


def _load(
    name: str, architecture: type[PreTrainedModel], config: PreTrainedConfig, folder: Path, kwargs: dict
) -> PreTrainedModel:
    loaded: Any = architecture.from_pretrained(
        folder,
        config=config,
        dtype=torch.float32,  # training needs full precision, whatever precision was published
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        **kwargs,
    )
    backbone, report = loaded  # a pair because of output_loading_info, which the library's type leaves out
    missing = sorted(key for key in report["missing_keys"] if not key.endswith("mask_token"))
    if missing:
        raise ValueError(
            f"backbone {name!r}: its weights lack {len(missing)} tensors, among them {missing[0]!r}, so they belong to "
            "another network: pass pretrained=False"
        )
    return backbone


def _resized(target: PreTrainedModel, source: PreTrainedModel, image_size: int) -> PreTrainedModel:
    """Copy weights from `source` to `target`, resampling position embeddings (bicubic, as for ViT and DINOv2)."""
    wanted, weights = target.state_dict(), source.state_dict()
    for key, weight in weights.items():
        if weight.shape != wanted[key].shape and "position_embedding" in key:
            weights[key] = _resample(weight, wanted[key], image_size, target.config.patch_size)
    target.load_state_dict(weights)
    return target


def _resample(weight: Tensor, wanted: Tensor, image_size: int, patch_size: int | list[int]) -> Tensor:
    patch = patch_size if isinstance(patch_size, int) else patch_size[0]
    grid = image_size // patch
    prefix = wanted.shape[-2] - grid**2  # class and distillation tokens have no position
    tokens = weight.reshape(-1, weight.shape[-1])
    before = math.isqrt(len(tokens) - prefix)
    places = tokens[prefix:].T.reshape(1, -1, before, before)
    places = F.interpolate(places, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([tokens[:prefix], places.flatten(2)[0].T]).reshape(wanted.shape)


def _stage_modules(backbone: nn.Module) -> list[str]:
    """Return the blocks of the outermost list of blocks: the stages of a pyramid, or the layers of a ViT."""
    lists = [(key, m) for key, m in backbone.named_modules() if isinstance(m, nn.ModuleList) and len(m) > 1]
    if not lists:
        return []
    key, blocks = min(lists, key=lambda item: (item[0].count("."), -len(item[1])))
    return [f"{key}.{index}" for index in range(len(blocks))]
