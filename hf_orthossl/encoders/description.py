"""Check what a folder of someone else says of its network, before timm or transformers see any entry.

Only entries that describe a network or its images are handed on, as numbers, words and lists of them. No entry can name
a file, an address, another repository or code, or say how weights are loaded.
"""

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import timm
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg
from transformers import CONFIG_MAPPING, PreTrainedConfig

from ..messages import suggest
from ..untrusted import Refused, read_object
from .encoder import suggest_architecture

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
# The side of the images, in pixels: the largest that timm and transformers publish is 1,536.
MAX_SIDE = 2048
# The channels of an image: hyperspectral instruments have a few hundred.
MAX_CHANNELS = 1024
# Any other whole number (widths, depths, words of a vocabulary), any real one, and entries of a list.
MAX_WHOLE, MAX_REAL, MAX_LIST = 2**20, 1e12, 10_000
MAX_TEXT = 200
INTERPOLATIONS = tuple(filter.name.lower() for filter in Image.Resampling)

# Arguments by which timm finds and loads weights or changes what is built around a network, from its own signatures.
_OF_BUILDERS = {
    *inspect.signature(timm.create_model).parameters,
    *inspect.signature(build_model_with_cfg).parameters,
    *("features_only", "feature_cls", "out_indices", "output_stride", "device", "dtype"),
}
# Entries of a transformers configuration with which it would read another repository or file, or run other code.
_ELSEWHERE = (
    *("backbone", "backbone_kwargs", "use_timm_backbone", "use_pretrained_backbone", "transformers_weights"),
    *("quantization_config", "per_layer_config", "fusion_config", "distributed_config"),
)
# How configurations of transformers name the number of channels.
CHANNEL_ENTRIES = ("num_channels", "in_channels", "in_chans", "num_input_channels")
# Of every configuration: what is said of labels, formats and outputs, which an encoder has nothing to do with.
_COMMON = {spec.name for spec in dataclasses.fields(PreTrainedConfig)} | {"torch_dtype", "num_labels", "model_type"}


def read_config(name: str, folder: Path) -> dict[str, Any]:
    """Return the `config.json` of a folder, which names a timm architecture or a transformers model_type.

    Args:
        name (`str`): The name that the user gave, for errors.
        folder (`Path`): The folder.

    Raises:
        ValueError: It is not JSON within the limits, or names neither.
    """
    config = read_object(folder, CONFIG)
    for key in ("architecture", "model_type"):
        if key in config and not isinstance(config[key], str):
            raise Refused(
                f"backbone {name!r}: {key} in config.json must be a name, got {_shown(config[key])}: correct it"
            )
    if "architecture" in config and not timm.is_model(config["architecture"]):
        architecture = config["architecture"][:MAX_TEXT]
        raise Refused(
            f"backbone {name!r} has unknown architecture {architecture!r}: "
            f"{suggest_architecture(architecture, timm.list_models())}"
        )
    if "architecture" in config or "model_type" in config:
        return config
    raise Refused(
        f"backbone {name!r}: {folder / CONFIG} names neither a timm architecture nor a transformers model_type, "
        "choose a folder of timm or transformers"
    )


def timm_description(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """Return what timm's `config.json` says of the images and layers, without the sources of weights that it names.

    Returns:
        `dict`: Entries of timm's `pretrained_cfg`.

    Raises:
        ValueError: An entry is of the wrong type, or beyond its limit.
    """
    cfg = config.get("pretrained_cfg", config)
    if not isinstance(cfg, dict):
        raise Refused(
            f"backbone {name!r}: pretrained_cfg in config.json must be an object, got {_shown(cfg)}: correct it"
        )
    checks = {
        "architecture": (_is_text, "a name"),
        "tag": (_is_text, "a name"),
        **dict.fromkeys(
            ("input_size", "test_input_size", "min_input_size"),
            (_is_input, f"[C, H, W] up to {MAX_SIDE} pixels and {MAX_CHANNELS} channels"),
        ),
        "fixed_input_size": (lambda value: isinstance(value, bool), "true or false"),
        "interpolation": (lambda value: value in INTERPOLATIONS, f"one of {', '.join(INTERPOLATIONS)}"),
        **dict.fromkeys(("crop_pct", "test_crop_pct"), (lambda value: _is_real(value) and 0 < value <= 2, "a share")),
        "crop_mode": (_is_text, "a name"),
        "mean": (_is_mean, "finite numbers, one per channel"),
        "std": (_is_std, "positive numbers, one per channel"),
        "num_classes": (_is_whole, f"a whole number up to {MAX_WHOLE:,}"),
        "pool_size": (lambda value: _is_plain(value) and isinstance(value, list | int), "one or two whole numbers"),
        **dict.fromkeys(("first_conv", "classifier"), (_are_layers, "the name of a layer, or several")),
    }
    known: dict[str, Any] = {}
    for key, (fits, expected) in checks.items():
        value = cfg.get(key)
        if value is None:
            # timm writes null where an entry has no value, which may differ from the architecture's own.
            known |= {key: None} if key in cfg and key in ("first_conv", "classifier", "pool_size", "tag") else {}
        elif not fits(value):
            raise Refused(
                f"backbone {name!r}: {key} in config.json must be {expected}, got {_shown(value)}: correct it"
            )
        else:
            known[key] = value
    return known


def timm_arguments(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of the architecture in timm's `config.json`, its `model_args`.

    Raises:
        ValueError: An argument determines how weights are loaded, not how the architecture is built, or is a path, a
            URL, an object or a number beyond the limit.
    """
    given = config.get("model_args") or {}
    if not isinstance(given, dict):
        raise Refused(
            f"backbone {name!r}: model_args in config.json must be an object, got {_shown(given)}: correct it"
        )
    for key, value in given.items():
        if key.startswith("pretrained") or key in _OF_BUILDERS or not _is_plain(value):
            raise Refused(
                f"backbone {name!r}: config.json has the model_args entry {_shown(key)[1:-1]}={_shown(value)}, which "
                f"is no argument of an architecture, or is beyond {MAX_WHOLE:,}: remove it"
            )
    size = given.get("img_size")
    if size is not None and not _is_side(size):
        raise Refused(
            f"backbone {name!r}: img_size in config.json must be a number of pixels up to {MAX_SIDE}, got "
            f"{_shown(size)}: correct it"
        )
    _require_channels(name, "in_chans", given.get("in_chans"))
    return given


def transformers_config(name: str, entries: dict[str, Any], changes: dict[str, Any]) -> PreTrainedConfig:
    """Return the configuration of a transformers model, from the entries that describe a network.

    Args:
        name (`str`): The name that the user gave, for errors.
        entries (`dict`): The content of `config.json`.
        changes (`dict`): Entries that the user sets.

    Raises:
        ValueError: transformers has no such model, an entry names something elsewhere or is beyond its limit, or the
            user sets an entry that there is not.
    """
    model_type = entries["model_type"]
    if model_type not in CONFIG_MAPPING:
        raise Refused(
            f"backbone {name!r} has model_type {model_type[:MAX_TEXT]!r}, which transformers does not support, "
            "and code from its folder is never run: choose a model of transformers"
        )
    kind = CONFIG_MAPPING[model_type]
    config = kind(**_network_entries(name, kind, entries))
    known = config.to_dict()
    for key, value in changes.items():
        if key not in known:
            nearest = suggest(key, known, most=3, otherwise="its config.json lists them")
            raise Refused(f"backbone {name!r} has no argument {key!r}: {nearest}")
        setattr(config, key, value)
    # Masked autoencoders hide a random part of every image by default.
    if "mask_ratio" in known:
        config.mask_ratio = 0.0
    return config


def read_processor(name: str, folder: Path) -> dict[str, Any]:
    """Return the normalization and size from a folder's image processor; defaults are ImageNet's at 224 pixels.

    Returns:
        `dict`: `mean` and `std`, a number per channel, `interpolation`, a name, and `image_size`, one or two numbers.

    Raises:
        ValueError: `preprocessor_config.json` is not JSON, or an entry is of the wrong type or beyond its limit.
    """
    try:
        saved = read_object(folder, PROCESSOR)
    except FileNotFoundError:
        saved = {}
    size = saved.get("crop_size") or saved.get("size") or 224
    if isinstance(size, dict):
        size = [size.get("height"), size.get("width")] if "height" in size else size.get("shortest_edge", 224)
    resample = saved.get("resample")
    resample = Image.Resampling.BICUBIC.value if resample is None else resample
    found = {
        "mean": saved.get("image_mean") or IMAGENET_DEFAULT_MEAN,
        "std": saved.get("image_std") or IMAGENET_DEFAULT_STD,
        "image_size": size,
    }
    checks = {
        "mean": (_is_mean, "image_mean", "finite numbers, one per channel"),
        "std": (_is_std, "image_std", "positive numbers, one per channel"),
        "image_size": (_is_side, "size", f"a number of pixels up to {MAX_SIDE}, or height and width"),
    }
    for key, (fits, theirs, expected) in checks.items():
        if not fits(found[key]):
            raise Refused(
                f"backbone {name!r}: {theirs} in {PROCESSOR} must be {expected}, got {_shown(found[key])}: correct it"
            )
    if not (_is_whole(resample) and resample in list(Image.Resampling)):
        raise Refused(
            f"backbone {name!r}: resample in {PROCESSOR} must be a filter of Pillow, 0 to 5, got {_shown(resample)}: "
            "correct it"
        )
    return {**found, "interpolation": Image.Resampling(resample).name.lower()}


def require_normalization(name: str, channels: int, mean: Any, std: Any) -> None:
    """Refuse a mean or standard deviation of another number of channels than the network's own.

    Three numbers pass, which timm and transformers write by default whatever the network takes; they are not used for
    another number of channels.

    Raises:
        ValueError: There are neither 3 numbers nor one per channel.
    """
    for key, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) not in (3, channels):
            raise Refused(
                f"backbone {name!r}: {key} must be {channels} numbers, one per channel, got {_shown(values)}: correct "
                f"config.json or {PROCESSOR}"
            )


def _network_entries(name: str, kind: type[PreTrainedConfig], entries: dict[str, Any]) -> dict[str, Any]:
    """Return the entries that a class of configurations knows, and numbers under other names, which older ones have."""
    own = {spec.name for spec in dataclasses.fields(kind)} | set(kind.attribute_map)  # type: ignore[arg-type]
    own |= {"rope_scaling"} if "rope_parameters" in own else set()
    kept: dict[str, Any] = {}
    for key, value in entries.items():
        if key in _ELSEWHERE and value:
            raise Refused(
                f"backbone {name!r}: config.json asks for {key}={_shown(value)}, which is read from elsewhere or needs "
                "other code: save the network itself, without it"
            )
        if key in _COMMON or key in _ELSEWHERE or key.startswith(("_", "attn_implementation")):
            continue
        if isinstance(value, dict) and isinstance(value.get("model_type"), str) and key in own:
            inner = value["model_type"]
            if inner not in CONFIG_MAPPING:
                raise Refused(
                    f"backbone {name!r}: {key} in config.json has unknown model_type {_shown(inner)}: correct it"
                )
            kept[key] = {"model_type": inner, **_network_entries(name, CONFIG_MAPPING[inner], value)}
        elif key in own or _is_numeric(value):
            if not _is_plain(value, nested=True):
                raise Refused(
                    f"backbone {name!r}: config.json has {key}={_shown(value)}, which is a path or an address, or "
                    f"beyond the limit of {MAX_WHOLE:,}: correct it"
                )
            kept[key] = value
    for key in ("image_size", "img_size", "input_size"):
        if kept.get(key) is not None and not _is_side(kept[key]):
            raise Refused(
                f"backbone {name!r}: {key} in config.json must be a number of pixels up to {MAX_SIDE}, got "
                f"{_shown(kept[key])}: correct it"
            )
    for key in CHANNEL_ENTRIES:
        # A list (EfficientNet's `in_channels`) is of the network's blocks.
        if not isinstance(kept.get(key), list):
            _require_channels(name, key, kept.get(key))
    return kept


def _require_channels(name: str, key: str, channels: Any) -> None:
    if channels is not None and not _is_channels(channels):
        raise Refused(
            f"backbone {name!r}: {key} in config.json must be a number of channels from 1 to {MAX_CHANNELS}, got "
            f"{_shown(channels)}: correct it"
        )


def _is_plain(value: Any, nested: bool = False) -> bool:
    """Return whether a value is a number within the limits, a word, or a list (with `nested`, an object) of such."""
    if isinstance(value, list):
        return len(value) <= MAX_LIST and all(_is_plain(item, nested) for item in value)
    if isinstance(value, dict):
        return nested and all(_is_plain(item, nested) for item in value.values())
    if value is None or isinstance(value, bool):
        return True
    if isinstance(value, str):
        return _is_text(value)
    return abs(value) <= (MAX_WHOLE if isinstance(value, int) else MAX_REAL)


def _is_numeric(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_numeric(item) for item in value)
    return isinstance(value, bool | int | float)


def _is_text(value: Any) -> bool:
    """Return whether a value is a word: no path and no address."""
    return isinstance(value, str) and len(value) <= MAX_TEXT and value.isprintable() and not set(value) & set("/\\:~")


def _is_whole(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_WHOLE


def _is_real(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= 1000


def _is_mean(value: Any) -> bool:
    return isinstance(value, list | tuple) and 1 <= len(value) <= MAX_CHANNELS and all(map(_is_real, value))


def _is_std(value: Any) -> bool:
    return _is_mean(value) and all(item > 1e-6 for item in value)


def _is_channels(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MAX_CHANNELS


def _is_side(value: Any) -> bool:
    """Return whether a value is a height and width in pixels, or one for both."""
    sides = value if isinstance(value, list) else [value]
    return 0 < len(sides) <= 3 and all(type(side) is int and 0 < side <= MAX_SIDE for side in sides)


def _is_input(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and _is_channels(value[0]) and _is_side(value[1:])


def _are_layers(value: Any) -> bool:
    return all(map(_is_text, value)) if isinstance(value, list) else _is_text(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
