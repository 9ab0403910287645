"""From a name to an encoder."""

import json
from pathlib import Path

import timm
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

# Imported for their registrations: `load_encoder("resnet18_cifar")` works because of them.
from . import linear_backbone, small_images  # noqa: F401
from .encoder import Encoder, did_you_mean, one_line
from .timm_encoder import build_timm_encoder
from .transformers_encoder import build_transformers_encoder

WEIGHTS = "model.safetensors"
SHARDED_WEIGHTS = "model.safetensors.index.json"


def load_encoder(name: str, pretrained: bool = False, image_size: int | None = None, **backbone_kwargs) -> Encoder:
    """
    Load any timm or Hugging Face vision backbone as an encoder: images `(B, 3, H, W)` → representations `(B, D)`.

    Code that comes with a model is never run and pickled weights are never read. The encoder is in training
    mode and on the CPU, its weights in float32 unless a default dtype is set.

    Args:
        name (`str`):
            A timm name (`"resnet18"`, `"vit_tiny_patch16_224.augreg_in21k"`, `"resnet18_cifar"`), a Hub id
            (`"facebook/dinov2-small"`, `"hf-hub:timm/resnet18.a1_in1k"`, with `@revision` at will), a folder
            with a `config.json` in timm's or transformers' form (also as `"local-dir:…"`), or a run folder
            that holds such a folder as `encoder`.
        pretrained (`bool`, *optional*, defaults to `False`):
            Load the weights too; otherwise the architecture is initialised at random.
        image_size (`int`, *optional*, defaults to the model's own):
            Height and width of the images, in pixels. Position embeddings are made for it, or resampled to
            it; for convolutional networks it is only recorded.
        backbone_kwargs:
            Further arguments of the architecture: those of `timm.create_model` (`patch_size=4`,
            `drop_path_rate=0.1`, `dynamic_img_size=True` for a ViT that is to see several sizes), or entries
            of the transformers configuration.

    Raises:
        ValueError: If the name, an argument or the weights are not usable.
        OSError: If a folder or Hub repository cannot be read.
    """
    # timm's own word for it, accepted as such
    timm_size = backbone_kwargs.pop("img_size", None)
    if None not in (timm_size, image_size) and timm_size != image_size:
        raise ValueError(f"image_size={image_size} contradicts img_size={timm_size}: give one of them")
    image_size = timm_size if image_size is None else image_size
    if image_size is not None and (not isinstance(image_size, int) or image_size < 1):
        raise ValueError(f"image_size={image_size!r} must be a positive number of pixels")
    # Tables that no checkpoint holds are computed here: on the meta device of from_pretrained they would be lost.
    with torch.device("cpu"):
        source = next((source for source in ("hf-hub", "local-dir") if name.startswith(f"{source}:")), "")
        plain = name.removeprefix(f"{source}:")
        if not source and timm.is_model(plain):
            encoder = _load_timm_name(plain, pretrained, image_size, **backbone_kwargs)
        else:
            folder = _folder(name, source, plain, pretrained)
            encoder = _load_folder(name, folder, pretrained, image_size, **backbone_kwargs)
    encoder.pretrained = pretrained
    return encoder


def _load_timm_name(name: str, pretrained: bool, image_size: int | None, **backbone_kwargs) -> Encoder:
    architecture, _, tag = name.partition(".")
    tagged = timm.list_models(f"{architecture}.*", include_tags=True)
    if tag and name not in tagged:
        raise ValueError(f"unknown backbone {name!r}: timm has no such weights{did_you_mean(name, tagged)}")
    cfg = timm.get_pretrained_cfg(name)
    weights = None
    if pretrained:
        if cfg is None or not cfg.hf_hub_id:
            raise ValueError(f"backbone {name!r} has no pretrained weights: pass pretrained=False")
        weights = _weights(name, _download(name, cfg.hf_hub_id, pretrained=True))
    config = {"pretrained_cfg": {} if cfg is None else cfg.to_dict()}
    return build_timm_encoder(name, name, config, weights, image_size, **backbone_kwargs)


def _folder(name: str, source: str, plain: str, pretrained: bool) -> Path:
    """The local folder that a name means, downloaded if it is on the Hub."""
    folder = Path(plain).expanduser()
    if source != "hf-hub" and folder.is_dir():
        folder = folder / "encoder" if (folder / "encoder" / "config.json").exists() else folder
        if not (folder / "config.json").exists():
            raise FileNotFoundError(f"backbone {name!r}: the folder has neither config.json nor encoder/config.json")
        return folder
    if source == "local-dir" or plain.startswith(("/", ".", "~")):
        raise FileNotFoundError(f"backbone {name!r}: there is no such folder")
    if source != "hf-hub" and "/" not in plain:
        raise ValueError(
            f"unknown backbone {name!r}{did_you_mean(name, timm.list_models())}"
            " (it is no timm name and no folder; Hub ids are written owner/model)"
        )
    return _download(name, plain, pretrained)


def _download(name: str, repo_id: str, pretrained: bool) -> Path:
    """The snapshot of a Hub repository: its configuration and, if wanted, its safetensors weights, nothing else."""
    repo_id, _, revision = repo_id.partition("@")
    patterns = ["config.json", "preprocessor_config.json"]
    if pretrained:
        patterns += [WEIGHTS, SHARDED_WEIGHTS, "model-*.safetensors"]
    try:
        folder = Path(snapshot_download(repo_id, revision=revision or None, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, EntryNotFoundError, OSError) as error:
        raise OSError(
            f"backbone {name!r}: {repo_id!r} is no folder here and cannot be read from the Hub ({one_line(error)})"
        ) from error
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"backbone {name!r}: the Hub repository {repo_id!r} has no config.json to be read")
    return folder


def _load_folder(name: str, folder: Path, pretrained: bool, image_size: int | None, **backbone_kwargs) -> Encoder:
    try:
        config = json.loads((folder / "config.json").read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"backbone {name!r}: {folder / 'config.json'} is not JSON ({error})") from error
    if "architecture" in config:
        architecture = config["architecture"]
        if not timm.is_model(architecture):
            raise ValueError(
                f"backbone {name!r} has unknown architecture {architecture!r}"
                f"{did_you_mean(architecture, timm.list_models())}"
            )
        config.setdefault("pretrained_cfg", config)
        weights = _weights(name, folder) if pretrained else None
        return build_timm_encoder(name, f"local-dir:{folder}", config, weights, image_size, **backbone_kwargs)
    if "model_type" in config:
        if pretrained and not (folder / SHARDED_WEIGHTS).exists():
            _weights(name, folder)
        return build_transformers_encoder(name, folder, pretrained, image_size, **backbone_kwargs)
    raise ValueError(
        f"backbone {name!r}: {folder / 'config.json'} names neither a timm architecture nor a transformers model_type"
    )


def _weights(name: str, folder: Path) -> Path:
    """The safetensors file of a folder."""
    if (folder / WEIGHTS).exists():
        return folder / WEIGHTS
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    found = f"only pickled weights ({pickles[0]}), which are never read" if pickles else f"no {WEIGHTS}"
    raise ValueError(f"backbone {name!r} has {found}: convert its weights to {WEIGHTS}, or pass pretrained=False")
