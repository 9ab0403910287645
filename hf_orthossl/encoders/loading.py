"""Load an encoder by its name: a timm architecture, a Hub id, a folder or a run."""

import os
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

from ..messages import describe, first_line, suggest

# Imported because they register architectures: `load_encoder("resnet18_cifar")` depends on it.
from . import linear_backbone, small_images  # noqa: F401
from .description import CONFIG, MAX_CHANNELS, PROCESSOR, read_config, timm_arguments, timm_description
from .encoder import Encoder, suggest_architecture
from .timm_encoder import build_timm_encoder
from .transformers_encoder import build_transformers_encoder
from .weights import SHARDED_WEIGHTS, WEIGHTS, Start, find_weights


def load_encoder(
    name: str | Path,
    pretrained: bool = False,
    image_size: int | None = None,
    channels: int | None = None,
    **backbone_kwargs: Any,
) -> Encoder:
    """Load any timm or Hugging Face vision backbone as an encoder of images `(B, C, H, W)` to `(B, D)`.

    Code that comes with a model is never run, and pickled weights are never read. What a folder or repository says is
    checked before a network is built from it (`description.py`), and so are the size of the network, of its images and
    of its weights (`budget.py`, `weights.py`): at most 5 billion parameters without weights and as many as the file
    holds with them, 8,000 modules, images of 2048 pixels, 2 TFLOP or 20 kFLOP per parameter for one image, and what
    fits in memory.

    The encoder is in training mode and on the CPU; its weights are float32 unless another default dtype is set.

    Args:
        name (`str` or `Path`): One of: a timm name (`"resnet18"`, `"vit_tiny_patch16_224.augreg_in21k"`,
            `"resnet18_cifar"`); a Hub id (`"facebook/dinov2-small"`, `"hf-hub:timm/resnet18.a1_in1k"`), optionally
            with `@revision`; a folder with a `config.json` of timm or transformers (also as `"local-dir:…"`); a run
            folder that contains such a folder as `encoder`.
        pretrained (`bool`, defaults to `False`): Load the weights too; otherwise they are initialized at random.
        image_size (`int`, *optional*): The height and width of the images, in pixels; defaults to that of the model.
            Position embeddings are made for this size, or resampled to it. For convolutional networks it is only
            recorded.
        channels (`int`, *optional*): The number C of channels of the images, `in_chans` in timm; defaults to that of
            the model. Weights for another number are adapted by timm's rule, in models of transformers too: those of
            the first layer are repeated and rescaled, or summed for a single channel. The encoder's `mean` and `std`
            are then unknown, see [`~encoders.encoder.Encoder.set_normalization`].
        backbone_kwargs: Further arguments of the architecture: those of `timm.create_model` (`patch_size=4`,
            `drop_path_rate=0.1`, `dynamic_img_size=True` for a ViT that sees several sizes), or entries of the
            transformers configuration.

    Returns:
        [`Encoder`]: The encoder.

    Raises:
        TypeError: `name` is not a string or path, or `pretrained` is not a boolean.
        ValueError: The name, an argument or the weights cannot be used.
        OSError: The folder or the Hub repository cannot be read.

    Example:
        >>> encoder = load_encoder("resnet18_cifar")
        >>> encoder(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 512])
    """
    if not isinstance(name, str | Path):
        raise TypeError(f"name must be a timm name such as 'resnet18', a Hub id or a folder, got {describe(name)}")
    if not isinstance(pretrained, bool):
        raise TypeError(f"pretrained must be True or False, got {describe(pretrained)}")
    name = str(name)
    # timm's name for image_size
    timm_size = backbone_kwargs.pop("img_size", None)
    if None not in (timm_size, image_size) and timm_size != image_size:
        raise ValueError(f"image_size={image_size} contradicts img_size={timm_size}: pass only one of them")
    image_size = timm_size if image_size is None else image_size
    if image_size is not None and (not isinstance(image_size, int) or image_size < 1):
        raise ValueError(f"image_size={image_size!r} must be a positive number of pixels")
    if isinstance(channels, list | tuple):  # some architectures call their widths so
        backbone_kwargs["channels"], channels = channels, None
    # timm's name for channels
    timm_channels = backbone_kwargs.pop("in_chans", None)
    if None not in (timm_channels, channels) and timm_channels != channels:
        raise ValueError(f"channels={channels} contradicts in_chans={timm_channels}: pass only one of them")
    channels = timm_channels if channels is None else channels
    if channels is not None and (type(channels) is not int or not 1 <= channels <= MAX_CHANNELS):
        raise ValueError(f"channels={channels!r} must be a number of channels from 1 to {MAX_CHANNELS}")
    # Tables that no checkpoint contains are computed here; on the meta device of from_pretrained they would be lost.
    with torch.device("cpu"):
        prefix = next((prefix for prefix in ("hf-hub", "local-dir") if name.startswith(f"{prefix}:")), "")
        plain = name.removeprefix(f"{prefix}:")
        if not prefix and timm.is_model(plain):
            encoder = _load_timm_name(plain, pretrained, image_size, channels, **backbone_kwargs)
        else:
            folder = _find_folder(name, prefix, plain, pretrained)
            local = prefix != "hf-hub" and Path(plain).expanduser().is_dir()
            repository = None if local else plain.partition("@")[0]
            encoder = _load_folder(name, folder, repository, pretrained, image_size, channels, **backbone_kwargs)
    encoder.pretrained = pretrained
    return encoder


def _load_timm_name(
    name: str, pretrained: bool, image_size: int | None, in_chans: int | None, **backbone_kwargs: Any
) -> Encoder:
    architecture, _, tag = name.partition(".")
    tagged = timm.list_models(f"{architecture}.*", include_tags=True)
    if tag and name not in tagged:
        raise ValueError(f"unknown backbone {name!r}, timm has no such weights: {suggest(name, tagged, most=3)}")
    cfg = timm.get_pretrained_cfg(name)
    weights = None
    if pretrained:
        if cfg is None or not cfg.hf_hub_id:
            raise ValueError(f"backbone {name!r} has no pretrained weights: pass pretrained=False")
        weights = find_weights(name, _download(name, cfg.hf_hub_id, pretrained=True))
    config = {"pretrained_cfg": {} if cfg is None else cfg.to_dict()}
    encoder = build_timm_encoder(name, name, config, weights, image_size, in_chans, **backbone_kwargs)
    encoder.start = None if weights is None else Start(name, weights, getattr(cfg, "hf_hub_id", None))
    return encoder


def _find_folder(name: str, prefix: str, plain: str, pretrained: bool) -> Path:
    """Return the local folder of a model, which is downloaded if it is on the Hub."""
    folder = Path(plain).expanduser()
    if prefix != "hf-hub" and folder.is_dir():
        folder = folder / "encoder" if os.path.lexists(folder / "encoder" / CONFIG) else folder
        if not os.path.lexists(folder / CONFIG):
            raise FileNotFoundError(
                f"backbone {name!r}: the folder has neither config.json nor encoder/config.json, pass an encoder folder"
            )
        return folder
    if prefix == "local-dir" or plain.startswith(("/", ".", "~")):
        raise FileNotFoundError(f"backbone {name!r}: there is no such folder")
    if prefix != "hf-hub" and "/" not in plain:
        raise ValueError(
            f"unknown backbone {name!r}, neither a timm name nor a folder (Hub ids are written owner/model): "
            f"{suggest_architecture(name, timm.list_models())}"
        )
    return _download(name, plain, pretrained)


def _download(name: str, repo_id: str, pretrained: bool) -> Path:
    """Download the configuration of a Hub repository and, if requested, its safetensors weights, but nothing else."""
    repo_id, _, revision = repo_id.partition("@")
    patterns = [CONFIG, PROCESSOR]
    if pretrained:
        patterns += [WEIGHTS, SHARDED_WEIGHTS, "model-*.safetensors"]
    try:
        folder = Path(snapshot_download(repo_id, revision=revision or None, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, EntryNotFoundError, OSError) as error:
        raise OSError(
            f"backbone {name!r}: {repo_id!r} is not a local folder and cannot be read from the Hub "
            f"({first_line(error)}): check the name and the connection"
        ) from error
    if not (folder / CONFIG).exists():
        raise FileNotFoundError(
            f"backbone {name!r}: the Hub repository {repo_id!r} has no config.json, choose one with a model"
        )
    return folder


def _load_folder(
    name: str,
    folder: Path,
    repository: str | None,
    pretrained: bool,
    image_size: int | None,
    in_chans: int | None,
    **backbone_kwargs: Any,
) -> Encoder:
    config = read_config(name, folder)
    encoder: Encoder
    if "architecture" not in config:
        weights = find_weights(name, folder, shards=True) if pretrained else None
        encoder = build_transformers_encoder(name, folder, config, weights, image_size, in_chans, **backbone_kwargs)
    else:
        about = {"pretrained_cfg": timm_description(name, config), "model_args": timm_arguments(name, config)}
        weights = find_weights(name, folder) if pretrained else None
        encoder = build_timm_encoder(
            name, config["architecture"], about, weights, image_size, in_chans, **backbone_kwargs
        )
    encoder.start = None if weights is None else Start(name, weights, repository)
    return encoder
