"""Encoders whose backbone is a vision model of transformers."""

import contextlib
import inspect
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import MODEL_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from ..untrusted import Refused
from .budget import building, plan
from .description import CHANNEL_ENTRIES, read_processor, require_normalization, transformers_config
from .encoder import Encoder, choose_stages, square_side
from .weights import Weights, compare, require_finite

# Parts of models with a head, beside the encoder.
HEADS = ("classifier", "cls_classifier", "distillation_classifier", "decoder", "head", "lm_head")


class TransformersEncoder(Encoder):
    """An [`Encoder`] around a vision model of transformers.

    The representation is the model's `pooler_output` if that is a pooling (ResNet, ConvNeXt, Swin) or the normalized
    class token (DINOv2, CLIP). If it is a tanh layer for classification (ViT, DeiT), this layer is removed, and the
    representation is the class token of `last_hidden_state`. Without a class token, it is the mean over positions.
    """

    library = "transformers"
    pooling = ""

    def forward(self, images: Tensor) -> Tensor:
        """Return the representations `(B, D)` of normalized images `(B, C, H, W)`, in any size the model supports."""
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

    def _switch_checkpointing(self, enabled: bool) -> None:
        action = "enable" if enabled else "disable"
        # The name changed within the versions that we support.
        names = (f"activation_checkpointing_{action}", f"gradient_checkpointing_{action}")
        switch = next(getattr(self.backbone, name) for name in names if hasattr(self.backbone, name))
        switch(*[{"use_reentrant": False}] if enabled else [])

    def _interpolates(self) -> bool:
        return "interpolate_pos_encoding" in inspect.signature(self.backbone.forward).parameters

    def _choose_pooling(self, outputs: Any) -> str:
        if getattr(outputs, "pooler_output", None) is not None:
            return "pooler_output"
        names = [key.rpartition(".")[2] for key, _ in self.backbone.named_parameters()]
        return "cls" if {"cls_token", "class_embedding"}.intersection(names) else "mean"


def build_transformers_encoder(
    name: str,
    folder: Path,
    entries: dict[str, Any],
    weights: Weights | None,
    image_size: int | None,
    in_chans: int | None = None,
    **backbone_kwargs: Any,
) -> TransformersEncoder:
    """Build a [`TransformersEncoder`] from a folder.

    Args:
        name (`str`): The name that the user gave.
        folder (`Path`): The folder, whose image processor is read.
        entries (`dict`): The content of its `config.json`.
        weights ([`Weights`], *optional*): The weights to load.
        image_size (`int`, *optional*): The side of the images in pixels, to which position embeddings are resampled;
            defaults to that of the model.
        in_chans (`int`, *optional*): The number of channels of the images, to which weights are adapted by timm's rule;
            defaults to that of the model.
        backbone_kwargs: Entries of the configuration to change.

    Returns:
        [`TransformersEncoder`]: The encoder.

    Raises:
        ValueError: The model is not a vision model of transformers, an entry is unknown or beyond the limits, or the
            weights do not fit.
    """
    with building(name):
        config = transformers_config(name, entries, backbone_kwargs)
        architecture = _architecture(name, config)
    processor = read_processor(name, folder)
    entry = next((key for key in CHANNEL_ENTRIES if key in config.to_dict()), None)
    own_channels = 3 if entry is None else getattr(config, entry)
    channels = in_chans or own_channels
    require_normalization(name, own_channels, processor["mean"], processor["std"])
    if entry is None and channels != own_channels:
        raise Refused(
            f"channels is {channels}, but the configuration of backbone {name!r} has no number of channels: it takes "
            f"images of {own_channels}, choose another backbone"
        )
    own_size = getattr(config, "image_size", None)
    if image_size is None or (weights is not None and own_size is not None):
        own_side = square_side(name, own_size or processor["image_size"])
    else:
        own_side = image_size
    image_size = image_size or own_side
    # Models that take images of any size have none.
    resized = own_size not in (None, image_size, [image_size] * 2, (image_size,) * 2)

    def planned() -> PreTrainedModel:
        network = architecture(config)
        if _has_untrained_pooler(network):
            network.pooler = None  # type: ignore[assignment]  # as the models themselves do
        return network

    with building(name), _quiet():
        if weights is None:
            if entry is not None:
                setattr(config, entry, channels)
            if resized:
                config.image_size = image_size
            kwargs = _pooler_arguments(plan(name, planned, None, image_size, channels))
            backbone = architecture(config, **kwargs)
        else:
            kwargs = _pooler_arguments(
                plan(name, planned, None if backbone_kwargs else weights.numbers, own_side, own_channels)
            )
            backbone = _load(name, architecture, config, weights, kwargs)
            if resized or channels != own_channels:
                if resized:
                    config.image_size = image_size
                if entry is not None:
                    setattr(config, entry, channels)
                plan(name, planned, None, image_size, channels)
                backbone = _resized(architecture(config, **kwargs), backbone, image_size, own_channels, channels)
    for key, parameter in backbone.named_parameters():
        if key.endswith("mask_token"):  # unused with whole images, so DDP would wait for its gradient
            parameter.requires_grad_(False)
    return TransformersEncoder(
        backbone,
        name=name,
        image_size=image_size,
        # The statistics of other channels say nothing of these.
        mean=processor["mean"] if channels == own_channels else (),
        std=processor["std"] if channels == own_channels else (),
        interpolation=processor["interpolation"],
        own_size=own_size if isinstance(own_size, int) else None,
        stage_modules=choose_stages(_stage_modules(backbone)),
        channels=channels,
    )


def _architecture(name: str, config: PreTrainedConfig) -> type[PreTrainedModel]:
    architecture = MODEL_MAPPING.get(type(config), None)
    if getattr(architecture, "main_input_name", None) != "pixel_values":
        raise Refused(
            f"backbone {name!r} is not a vision model (its model_type is {config.model_type!r}): choose one whose "
            "input is pixel_values"
        )
    return cast(type[PreTrainedModel], architecture)  # the library's type is a pair of optional classes


def _has_untrained_pooler(network: nn.Module) -> bool:
    """Return whether a model may be built without its pooler, and that is a layer for classification."""
    if "add_pooling_layer" not in inspect.signature(type(network).__init__).parameters:
        return False
    pooler = getattr(network, "pooler", None)
    return pooler is not None and any(isinstance(module, nn.Linear) for module in cast(nn.Module, pooler).modules())


def _pooler_arguments(planned: nn.Module) -> dict[str, bool]:
    may_omit = "add_pooling_layer" in inspect.signature(type(planned).__init__).parameters
    return {"add_pooling_layer": False} if may_omit and getattr(planned, "pooler", None) is None else {}


def _load(
    name: str, architecture: type[PreTrainedModel], config: PreTrainedConfig, weights: Weights, kwargs: dict
) -> PreTrainedModel:
    """Build a model with weights that are exactly its own, without those of a head.

    The folder is not handed to transformers, which would also look there for adapters and files that are named
    elsewhere.
    """
    loaded: Any = architecture.from_pretrained(
        None,
        config=config,
        state_dict=weights.read(),
        dtype=torch.float32,  # training needs full precision, whatever precision was published
        local_files_only=True,
        ignore_mismatched_sizes=True,  # these are reported below, in one line
        output_loading_info=True,
        **kwargs,
    )
    backbone, report = loaded  # a pair because of output_loading_info, which the library's type leaves out
    shapes = [f"{key!r}, {[*stored]} instead of {[*wanted]}" for key, stored, wanted in report["mismatched_keys"]]
    unexpected = [key for key in report["unexpected_keys"] if not _is_left_out(key, backbone, weights)]
    compare(name, report["missing_keys"], unexpected, shapes)
    require_finite(name, backbone)
    return backbone


def _is_left_out(key: str, backbone: PreTrainedModel, weights: Weights) -> bool:
    """Return whether a tensor of a checkpoint belongs to a head or to what is computed, which an encoder leaves out."""
    prefix = f"{backbone.base_model_prefix}." if backbone.base_model_prefix else ""
    own = key.removeprefix(prefix)
    first = own.partition(".")[0]
    if first == "pooler" or own.endswith("mask_token") or own in {name for name, _ in backbone.named_buffers()}:
        return True
    if first in HEADS and not hasattr(backbone, first):
        return True
    # A model with a head keeps the encoder's weights under its prefix.
    return bool(prefix) and not key.startswith(prefix) and any(name.startswith(prefix) for name in weights.tensors)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from printing its report of a load, which is read here, and its bar, which is over at once."""
    before, had_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if had_bar:
            logging.enable_progress_bar()


def _resized(
    target: PreTrainedModel, source: PreTrainedModel, image_size: int, own_channels: int = 3, channels: int = 3
) -> PreTrainedModel:
    """Copy weights from `source` to `target`, resampling position embeddings (bicubic, as for ViT and DINOv2).

    Convolutions of `own_channels` whose counterparts in `target` have `channels` are adapted by timm's rule.
    """
    wanted, weights = target.state_dict(), source.state_dict()
    for key, weight in weights.items():
        if weight.shape != wanted[key].shape and "position_embedding" in key:
            weights[key] = _resample(weight, wanted[key], image_size, target.config.patch_size)
        elif weight.ndim == 4 and (weight.shape[1], wanted[key].shape[1]) == (own_channels, channels):
            weights[key] = adapt_input_conv(channels, weight, own_channels)
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
