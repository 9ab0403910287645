"""Find the network of a transformers configuration that encodes images: the model itself, or its tower for images."""

import dataclasses
import importlib
import inspect
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any, cast

from torch import Tensor
from transformers import MODEL_MAPPING, PreTrainedConfig, PreTrainedModel

from ..untrusted import Refused

# Entries in which a model of several parts (CLIP, SAM, LLaVA) describes its tower for images.
_TOWERS = ("vision_config", "image_config")
# Entries of models that do not encode one image → what they do instead.
_OTHERS = {
    "num_queries": "finds objects with a decoder of queries",
    "decoder_config": "finds segments with a decoder of queries",
    "num_frames": "takes videos of several frames",
    "keypoint_detector_config": "matches the keypoints of two images",
    "merge_index": "takes an image together with a prompt of another",
}


def require_images(name: str, kind: type[PreTrainedConfig]) -> None:
    """Refuse a class of configurations whose models do something else than encode one image.

    Args:
        name (`str`): The name that the user gave, for errors.
        kind (class): The class.

    Raises:
        Refused: It is of such models.
    """
    entries = {spec.name for spec in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if "vocab_size" in entries and not entries & {"image_size", "patch_size", "num_channels", *_TOWERS}:
        raise Refused(
            f"backbone {name!r} is not a vision model (its model_type is {kind.model_type!r}): choose one whose input "
            "is pixel_values"
        )
    key = next((key for key in _OTHERS if key in entries), None)
    if key is not None:
        raise Refused(
            f"backbone {name!r} has model_type {kind.model_type!r}, which {_OTHERS[key]} ({key} in its config.json): "
            "choose a model that encodes one image"
        )


def vision_network(name: str, config: PreTrainedConfig) -> tuple[PreTrainedConfig, type[PreTrainedModel]]:
    """Return the configuration and the class of the network that encodes images.

    Of a model with a tower for images (CLIP, SigLIP, BLIP, SAM, LLaVA) it is the tower.

    Args:
        name (`str`): The name that the user gave, for errors.
        config (`PreTrainedConfig`): The configuration of the whole model.

    Raises:
        Refused: It has no network that takes images, and nothing else.
    """
    model_type = config.model_type
    tower = next((getattr(config, key) for key in _TOWERS if getattr(config, key, None) is not None), None)
    if isinstance(tower, PreTrainedConfig):
        config = tower
        require_images(name, type(config))
    elif config.is_encoder_decoder:
        raise Refused(
            f"backbone {name!r} has model_type {model_type!r}, whose outputs are those of a decoder: choose a model "
            "that encodes one image"
        )
    architecture = _architecture(config)
    if architecture is None:
        raise Refused(
            f"backbone {name!r} is not a vision model (its model_type is {model_type!r}): choose one whose input is "
            "pixel_values"
        )
    needed = [key for key in _required(architecture) if key != "pixel_values"]
    if needed:
        raise Refused(
            f"backbone {name!r} has model_type {model_type!r}, whose {architecture.__name__} takes {', '.join(needed)} "
            "beside the images: choose a model that takes images alone"
        )
    return config, architecture


def tower_weights(weights: dict[str, Tensor], wanted: Collection[str]) -> dict[str, Tensor]:
    """Return the tensors of a tower by its own names, from those of a whole model or of the tower alone.

    Args:
        weights (`dict[str, Tensor]`): All tensors.
        wanted (collection of `str`): The names of the tower's own tensors.

    Returns:
        `dict[str, Tensor]`: The tensors below the prefix that fits most of these names; all if none fits.
    """
    prefixes = Counter(
        stored.removesuffix(key) for key in wanted for stored in weights if stored == key or stored.endswith(f".{key}")
    )
    if not prefixes:
        return weights
    prefix = prefixes.most_common(1)[0][0]
    if not prefix:  # beside others of the whole model (SAM)
        own = {key.partition(".")[0] for key in wanted}
        return {key: tensor for key, tensor in weights.items() if key.partition(".")[0] in own}
    return {key.removeprefix(prefix): tensor for key, tensor in weights.items() if key.startswith(prefix)}


def _architecture(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """Return the class of `AutoModel` or, where that has none, the one beside the configuration (`BlipVisionModel`)."""
    known: Any = MODEL_MAPPING.get(type(config), None)
    for candidate in [*(known if isinstance(known, tuple) else (known,)), *_beside(config)]:
        if getattr(candidate, "main_input_name", None) == "pixel_values":
            return cast(type[PreTrainedModel], candidate)
    return None


def _beside(config: PreTrainedConfig) -> Iterator[type[PreTrainedModel]]:
    """Yield the vision models of transformers whose configuration is of this class, if `AutoModel` knows none."""
    place = type(config).__module__
    if config.__class__ in MODEL_MAPPING or not place.startswith("transformers.models."):
        return
    module = importlib.import_module(place.replace(".configuration_", ".modeling_"))
    for candidate in vars(module).values():
        if (
            inspect.isclass(candidate)
            and issubclass(candidate, PreTrainedModel)
            and candidate.__name__.endswith(("VisionModel", "ImageModel"))
            and candidate.config_class is type(config)
        ):
            yield candidate


def _required(architecture: type[PreTrainedModel]) -> list[str]:
    """Return the names of the inputs without which a model cannot be called."""
    parameters = list(inspect.signature(architecture.forward).parameters.values())[1:]
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in parameters if p.default is p.empty and p.kind in named]
