"""Encoders whose backbone is a vision model of transformers."""

import contextlib
import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, MODEL_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import logging

from ..untrusted import Refused
from .budget import building, plan
from .description import CHANNEL_ENTRIES, read_processor, require_normalization, transformers_config
from .encoder import Encoder, choose_stages, square_side
from .patch_tokens import embedding_layer, gather_tokens, hooked
from .position_tables import resample_table
from .vision_network import require_images, tower_weights, vision_network
from .weights import Weights, compare, require_finite

# Parts of models with a head, beside the encoder.
HEADS = ("classifier", "cls_classifier", "distillation_classifier", "decoder", "head", "lm_head")


# `Encoder.pooling` → the representation of the outputs of a model.
_REPRESENTATIONS: dict[str, Callable[[Any], Tensor]] = {
    "pooler_output": lambda outputs: outputs.pooler_output.flatten(1),
    "summary": lambda outputs: outputs.summary.flatten(1),  # RADIO: its class tokens
    "cls_token_value": lambda outputs: outputs.cls_token_value.flatten(1),  # CvT
    "cls": lambda outputs: outputs.last_hidden_state[:, 0],
}


class TransformersEncoder(Encoder):
    """An [`Encoder`] around a vision model of transformers.

    The representation is the model's `pooler_output` if that is a pooling (ResNet, ConvNeXt, Swin) or the normalized
    class token (DINOv2, CLIP). If it is a tanh layer for classification (ViT, DeiT), this layer is removed, and the
    representation is the class token of `last_hidden_state`. Without a class token, it is the mean over positions, of
    the last of its `feature_maps` if the model has several (HGNet). Of a model with several towers (CLIP, SAM) only
    that for images is kept.
    """

    library = "transformers"
    pooling = ""
    # The names of parameters that `save_pretrained` changes; read when first needed.
    _published: dict[str, str] | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Return the representations `(B, D)` of normalized images `(B, C, H, W)`, in any size the model supports."""
        outputs = self._outputs(images)
        if not self.pooling:  # chosen once, by the probe at construction
            self.pooling = self._choose_pooling(outputs)
        if self.pooling in _REPRESENTATIONS:
            return _REPRESENTATIONS[self.pooling](outputs)
        last = outputs.feature_maps[-1] if self.pooling == "feature_maps" else outputs.last_hidden_state
        hidden = self._as_feature_map(_separated(last, len(images)), "representation")
        return hidden.mean(dim=1) if hidden.ndim == 3 else hidden.mean(dim=(2, 3))

    def pool(self, tokens: Tensor) -> Tensor:
        """Return the representations `(B, num_features)` of tokens `(B, prefix + N, D)`."""
        pooler = getattr(self.backbone, "pooler", None)
        if self.pooling == "pooler_output" and pooler is not None:
            return cast(nn.Module, pooler)(tokens)
        return tokens.mean(dim=1) if self.pooling == "mean" else tokens[:, 0]

    def published_name(self, name: str) -> str:
        """Return the name that a parameter has in the weights that are published, see [`Encoder.published_name`]."""
        if self._published is None:
            self._published = _published_names(cast(PreTrainedModel, self.backbone))
        own = super().published_name(name)
        return self._published.get(own, own)

    def patch_embedding(self) -> nn.Module:
        """Return the layer that embeds patches."""
        return embedding_layer(self.backbone, "embeddings.patch_embeddings")

    def _outputs(self, images: Tensor) -> Any:
        """Return what the backbone returns, its positions resampled to the size of the images if that is possible."""
        kwargs = {}
        if images.shape[-1] != self.image_size and self._interpolates():
            kwargs["interpolate_pos_encoding"] = True
        return self.backbone(self._reorder(images), **kwargs)

    def last_output(self, images: Tensor) -> Tensor:
        """Return the last output before pooling: a map with its channels first, or tokens."""
        outputs = self._outputs(images)
        last = getattr(outputs, "last_hidden_state", None)
        if last is None:
            return super().last_output(images)
        return self._as_feature_map(_separated(last, len(images)), "representation")

    def _tokens(self, images: Tensor) -> Tensor:
        return self._outputs(images).last_hidden_state

    @contextlib.contextmanager
    def _keeping(self, keep: Tensor, patches: int) -> Iterator[None]:
        # After the embeddings and not before the first block, which is called again to recompute its activations.
        embeddings = self.backbone.get_submodule("embeddings")
        rotary = getattr(self.backbone, "rope_embeddings", None)
        with contextlib.ExitStack() as changes:
            changes.enter_context(
                hooked(embeddings, lambda tokens: gather_tokens(tokens, keep, tokens.shape[1] - patches))
            )
            if rotary is not None:  # cosines and sines of each patch (N, d), which all heads share
                changes.enter_context(hooked(rotary, lambda angles: tuple(angle[keep][:, None] for angle in angles)))
            yield

    def _switch_checkpointing(self, enabled: bool) -> None:
        action = "enable" if enabled else "disable"
        # The name changed within the versions that we support.
        names = (f"activation_checkpointing_{action}", f"gradient_checkpointing_{action}")
        switch = next(getattr(self.backbone, name) for name in names if hasattr(self.backbone, name))
        switch(*[{"use_reentrant": False}] if enabled else [])

    def _interpolates(self) -> bool:
        return "interpolate_pos_encoding" in inspect.signature(self.backbone.forward).parameters

    def _choose_pooling(self, outputs: Any) -> str:
        for key in ("summary", "pooler_output", "cls_token_value"):
            if getattr(outputs, key, None) is not None:
                return key
        if getattr(outputs, "last_hidden_state", None) is None:
            if getattr(outputs, "feature_maps", None):
                return "feature_maps"
            raise ValueError(f"{type(outputs).__name__} has no features of the image, but {', '.join(outputs)}")
        if getattr(outputs, "encoder_last_hidden_state", None) is not None:
            raise ValueError(f"last_hidden_state of {type(outputs).__name__} is that of a decoder")
        names = [key.rpartition(".")[2] for key, _ in self.backbone.named_parameters()]
        tokens = outputs.last_hidden_state.ndim == 3
        if _channels_are_last(outputs.last_hidden_state):
            return "mean_channels_last"
        return "cls" if tokens and {"cls_token", "class_embedding"}.intersection(names) else "mean"

    def stages(self, images: Tensor) -> dict[str, Tensor]:
        """Return the output of each stage and the representation, see [`Encoder.stages`]."""
        return {stage: _separated(output, len(images)) for stage, output in super().stages(images).items()}

    def _choose_branch(self, outputs: Sequence[Any], stage: str) -> Any:
        first = super()._choose_branch(outputs, stage)
        # PVT v2 returns a tuple within a tuple.
        return self._choose_branch(first, stage) if isinstance(first, tuple | list) else first

    def _as_feature_map(self, output: Tensor, stage: str) -> Tensor:
        return output.permute(0, 3, 1, 2) if _channels_are_last(output) else output


def _published_names(backbone: PreTrainedModel) -> dict[str, str]:
    """Return the names in files of the parameters that transformers has under others in memory (layers of a ViT).

    Each parameter is represented by its number, and is found again by it after the translation. Those that a file holds
    joined or split keep their names.
    """
    keys = list(backbone.state_dict())
    try:
        written = revert_weight_conversion(backbone, {key: torch.tensor([i]) for i, key in enumerate(keys)})
    except Exception:  # single numbers cannot be joined or split in every way
        return {}
    return {keys[int(number)]: key for key, number in written.items() if number.numel() == 1}


def _channels_are_last(output: Tensor) -> bool:
    """Return whether a map has its channels last, as in Hiera and the blocks of SAM; it is square, as images are."""
    return output.ndim == 4 and output.shape[1] == output.shape[2] != output.shape[3]


def _separated(tokens: Tensor, images: int) -> Tensor:
    """Return the tokens of each image, where a model has those of all images in one row (Pixtral)."""
    if tokens.ndim == 3 and len(tokens) == 1 < images:
        return tokens.unflatten(1, (images, -1))[0]
    return tokens


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
        if entries["model_type"] in CONFIG_MAPPING:
            require_images(name, CONFIG_MAPPING[entries["model_type"]])
        config = transformers_config(name, entries, backbone_kwargs)
        whole = config
        config, architecture = vision_network(name, whole)
    processor = read_processor(name, folder)
    entry = next((key for key in CHANNEL_ENTRIES if isinstance(getattr(config, key, None), int)), None)
    own_channels = 3 if entry is None else getattr(config, entry)
    channels = in_chans or own_channels
    require_normalization(name, own_channels, processor["mean"], processor["std"])
    if entry is None and channels != own_channels:
        raise Refused(
            f"channels is {channels}, but the configuration of backbone {name!r} has no number of channels: it takes "
            f"images of {own_channels}, choose another backbone"
        )
    own_size = getattr(config, "image_size", None)
    if image_size is None:
        own_side = square_side(name, own_size or processor["image_size"])
    elif weights is not None and own_size is not None:
        own_side = max(own_size) if isinstance(own_size, list | tuple) else own_size
    else:
        own_side = image_size
    image_size = image_size or own_side
    # Models that take images of any size have none; some have one for each side.
    new_size = image_size if isinstance(own_size, int) else [image_size] * 2
    resized = own_size is not None and (own_size if isinstance(own_size, int) else list(own_size)) != new_size

    def planned() -> PreTrainedModel:
        network = architecture(config)
        lacking = weights is not None and not any("pooler." in key for key in weights.tensors)
        if _has_untrained_pooler(network, lacking):
            network.pooler = None  # type: ignore[assignment]  # as the models themselves do
        return network

    with building(name), _quiet():
        if weights is None:
            if entry is not None:
                setattr(config, entry, channels)
            if resized:
                config.image_size = new_size  # type: ignore[attr-defined]
            kwargs = _pooler_arguments(plan(name, planned, None, image_size, channels))
            backbone = architecture(config, **kwargs)
        else:
            network = plan(name, planned, None if backbone_kwargs else weights.numbers, own_side, own_channels)
            kwargs = _pooler_arguments(network)
            tensors = weights.read()
            if config is not whole:
                tensors = _tower_tensors(name, whole, network, tensors, weights.numbers)
            backbone = _load(name, architecture, config, tensors, kwargs)
            if resized or channels != own_channels:
                if resized:
                    config.image_size = new_size  # type: ignore[attr-defined]
                if entry is not None:
                    setattr(config, entry, channels)
                plan(name, planned, None, image_size, channels)
                target = architecture(config, **kwargs)
                backbone = _resized(name, target, backbone, image_size, own_channels, channels)
    return TransformersEncoder(
        backbone,
        name=name,
        image_size=image_size,
        # The statistics of other channels say nothing of these.
        mean=processor["mean"] if channels == own_channels else (),
        std=processor["std"] if channels == own_channels else (),
        interpolation=processor["interpolation"],
        own_size=own_size if isinstance(own_size, int | None) else max(own_size),
        stage_modules=choose_stages(_stage_modules(backbone)),
        channels=channels,
    )


def _tower_tensors(
    name: str, whole: PreTrainedConfig, tower: nn.Module, tensors: dict[str, Tensor], stored: int
) -> dict[str, Tensor]:
    """Return the weights of a tower, from those of the whole model."""
    wanted = {key for key, _ in tower.named_parameters() if not key.endswith("mask_token")}
    own = tower_weights(tensors, wanted)
    if wanted <= own.keys() or type(whole) not in MODEL_MAPPING:
        return own
    # The file has names of an earlier release, which transformers translates when it loads the whole model (AltCLIP).
    architecture = cast(type[PreTrainedModel], MODEL_MAPPING[type(whole)])
    plan(name, lambda: architecture(whole), stored)
    return tower_weights(_load(name, architecture, whole, tensors, {}).state_dict(), wanted)


def _has_untrained_pooler(network: nn.Module, lacking: bool) -> bool:
    """Return whether a model may be built without its pooler, which is a layer for classification or has no weights."""
    if "add_pooling_layer" not in inspect.signature(type(network).__init__).parameters:
        return False
    pooler = getattr(network, "pooler", None)
    if pooler is None:
        return False
    has_weights = next(cast(nn.Module, pooler).parameters(), None) is not None
    return (lacking and has_weights) or any(isinstance(m, nn.Linear) for m in cast(nn.Module, pooler).modules())


def _pooler_arguments(planned: nn.Module) -> dict[str, bool]:
    may_omit = "add_pooling_layer" in inspect.signature(type(planned).__init__).parameters
    return {"add_pooling_layer": False} if may_omit and getattr(planned, "pooler", None) is None else {}


def _load(
    name: str, architecture: type[PreTrainedModel], config: PreTrainedConfig, weights: dict[str, Tensor], kwargs: dict
) -> PreTrainedModel:
    """Build a model with weights that are exactly its own, without those of a head.

    The folder is not handed to transformers, which would also look there for adapters and files that are named
    elsewhere.
    """
    loaded: Any = architecture.from_pretrained(
        None,
        config=config,
        state_dict=weights,
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


def _is_left_out(key: str, backbone: PreTrainedModel, weights: Collection[str]) -> bool:
    """Return whether a tensor of a checkpoint belongs to a head or to what is computed, which an encoder leaves out."""
    prefix = f"{backbone.base_model_prefix}." if backbone.base_model_prefix else ""
    own = key.removeprefix(prefix)
    first = own.partition(".")[0]
    if first == "pooler" or own.endswith("mask_token") or own in {name for name, _ in backbone.named_buffers()}:
        return True
    if first in HEADS and not hasattr(backbone, first):
        return True
    # A model with a head keeps the encoder's weights under its prefix.
    return bool(prefix) and not key.startswith(prefix) and any(name.startswith(prefix) for name in weights)


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
    name: str,
    target: PreTrainedModel,
    source: PreTrainedModel,
    image_size: int,
    own_channels: int = 3,
    channels: int = 3,
) -> PreTrainedModel:
    """Copy weights from `source` to `target`, resampling tables of positions.

    Convolutions of `own_channels` whose counterparts in `target` have `channels` are adapted by timm's rule.
    """
    wanted, weights = target.state_dict(), source.state_dict()
    for key, weight in weights.items():
        if weight.shape == wanted[key].shape:
            continue
        if weight.ndim == 4 and (weight.shape[1], wanted[key].shape[1]) == (own_channels, channels):
            weights[key] = adapt_input_conv(channels, weight, own_channels)
            continue
        last = getattr(target.config, "num_detection_tokens", 0)
        table = resample_table(key, weight, wanted[key].shape, last)
        if table is None:
            raise Refused(
                f"backbone {name!r} has weights for one image size, such as {key!r} of shape {[*weight.shape]}, and no "
                f"rule for image_size={image_size}: omit image_size"
            )
        weights[key] = table
    target.load_state_dict(weights)
    return target


def _stage_modules(backbone: nn.Module) -> list[str]:
    """Return the blocks of the list of blocks that holds most of the parameters: stages of a pyramid, layers of a ViT.

    Of a block that is itself a list (PVT, PoolFormer) it is the last of its own blocks.
    """
    lists = {key: m for key, m in backbone.named_modules() if isinstance(m, nn.ModuleList) and len(m) > 1}
    outermost = [key for key in lists if not any(key.startswith(f"{other}.") for other in lists)]
    if not outermost:
        return []
    key = max(outermost, key=lambda key: sum(parameter.numel() for parameter in lists[key].parameters()))
    return [_last_block(f"{key}.{index}", block) for index, block in enumerate(lists[key])]


def _last_block(key: str, block: nn.Module) -> str:
    while isinstance(block, nn.ModuleList) and len(block):
        key, block = f"{key}.{len(block) - 1}", block[-1]
    return key
