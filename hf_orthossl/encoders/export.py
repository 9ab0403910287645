"""Write an encoder as a folder that loads without this package."""

import copy
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import cast

import torch
from PIL import Image
from timm.models import save_for_hf
from torch import Tensor
from transformers import BitImageProcessor, PreTrainedModel

from ..distributed.sharding import has_sharded_weights
from ..files import replacing_folder
from ..messages import describe, first_line
from . import linear_backbone, small_images
from .description import PROCESSOR
from .encoder import Encoder

# Modules of networks that timm lacks → the module and class names that transformers finds through `auto_map`.
OWN_CODE: dict[ModuleType, tuple[str, str]] = {
    small_images: ("modeling_small_images", "SmallImagesModel"),
    linear_backbone: ("modeling_linear", "LinearModel"),
}
# Appended to the code of an exported folder, which registers the architectures with timm when it is loaded.
REMOTE_MODEL = '''

class {name}(TimmWrapperModel):
    """A network of this file as a transformers model: `AutoModel.from_pretrained(..., trust_remote_code=True)`."""
'''
OWN_FILES = (
    "config.json",
    "model.safetensors",
    PROCESSOR,
    *(f"{remote}.py" for remote, _ in OWN_CODE.values()),
)


def export_encoder(
    encoder: Encoder, folder: str | Path, *, metadata: dict | None = None, rehearsal: bool = False
) -> Path:
    """Write an encoder as a folder that timm and transformers load without this package.

    timm backbones load by `timm.create_model("local-dir:…", pretrained=True)`, by `AutoModel`, whose `pooler_output` is
    the representation, and `AutoImageProcessor`. Backbones of transformers load by `AutoModel` and
    `AutoImageProcessor`; `encoder.pooling` names the output that is the representation. CIFAR-stem networks and the
    linear encoder carry their own code (`AutoModel.from_pretrained(…, trust_remote_code=True)`).

    The files are written to a temporary folder next to `folder`, which takes its place as a whole once all are complete
    ([`~files.replacing_folder`]). Other files in `folder` are kept.

    Args:
        encoder ([`Encoder`]): The encoder. Its `mean`, `std`, `interpolation` and `image_size` become the
            preprocessing: the shorter side is resized to `image_size`, and the centre is cropped.
        folder (`str` or `Path`): The folder to write.
        metadata (`dict`, *optional*): JSON values to store in `config.json` under the key `orthossl`.
        rehearsal (`bool`, defaults to `False`): Write one number of each weight only: whatever could stop an export
            stops this one, without the time and the space for the weights. The folder cannot be loaded.

    Returns:
        `Path`: The folder.

    Raises:
        TypeError: `encoder` is not an [`Encoder`], `folder` is not a path, or `metadata` is not a JSON object.
        ValueError: The weights are sharded over processes, or the network is the user's own.
        OSError: The files cannot be written.

    Example:
        >>> export_encoder(model.encoder, "runs/a/encoder")
        >>> timm.create_model("local-dir:runs/a/encoder", pretrained=True)
    """
    if not isinstance(encoder, Encoder):
        raise TypeError(
            f"encoder must be an Encoder, got {describe(encoder)}: pass one from load_encoder, or a model's .encoder"
        )
    if not isinstance(folder, str | Path):
        raise TypeError(f"folder must be a path, got {describe(folder)}")
    _require_json(metadata)
    if encoder.library == "torch":
        raise ValueError(
            f"encoder {encoder.name!r} is a network of your own, whose class no other program has, so that a folder of "
            "it could not be loaded: save its weights by safetensors.torch.save_file(encoder.backbone.state_dict(), …) "
            "and train with write_encoder=False"
        )
    if has_sharded_weights(encoder):
        raise ValueError(
            "the encoder's weights are sharded over processes: call gather_module(encoder) on all "
            "processes, and export the result on the main one"
        )
    folder = Path(folder)
    # Exported on the CPU, where users load it, and contiguous, as safetensors requires.
    backbone = copy.deepcopy(encoder.backbone).to("cpu").to(memory_format=torch.contiguous_format)
    weights = separate_weights(backbone.state_dict())
    if rehearsal:
        weights = {name: weight.reshape(-1)[:1].clone() for name, weight in weights.items()}
    need = sum(weight.nbytes for weight in weights.values())
    with replacing_folder(folder, OWN_FILES, need=need) as unfinished:
        if encoder.library == "timm":
            _write_timm(encoder, backbone, weights, unfinished, metadata)
        else:
            _write_transformers(encoder, backbone, weights, unfinished, metadata, rehearsal)
    return folder


def image_processor(encoder: Encoder) -> BitImageProcessor:
    """Return transformers' image processor that prepares images as this package does: resized, cropped, normalized."""
    return BitImageProcessor(
        size={"shortest_edge": encoder.image_size},
        crop_size={"height": encoder.image_size, "width": encoder.image_size},
        resample=Image.Resampling[encoder.interpolation.upper()],
        image_mean=list(encoder.mean),
        image_std=list(encoder.std),
        do_convert_rgb=encoder.channels == 3,
    )


def separate_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights of which no two share memory, as safetensors requires: those that do are copied.

    A tied weight keeps all its names, because a loader that is not told of the tie, such as timm's, expects each of
    them. A module that ties its weights ties them again when they are loaded.

    Args:
        weights (mapping of `str` to `Tensor`): The state dict of a module.
    """
    separate: dict[str, Tensor] = {}
    seen = set()
    for name, weight in weights.items():
        # Subclasses, such as sharded weights, are gathered by whoever writes them.
        if type(weight) in (Tensor, torch.nn.Parameter) and weight.numel() and weight.device.type != "meta":
            place = weight.device, weight.untyped_storage().data_ptr()
            weight = weight.clone() if place in seen else weight
            seen.add(place)
        separate[name] = weight
    return separate


def _require_json(metadata: dict | None) -> None:
    """Raise `TypeError` unless the metadata is a JSON object, before anything is written."""
    if metadata is None:
        return
    if not isinstance(metadata, dict):
        raise TypeError(f"metadata must be a dict of JSON values, got {describe(metadata)}")
    try:
        json.dumps(metadata)
    except (TypeError, ValueError) as error:
        raise TypeError(f"metadata must be a dict of JSON values ({first_line(error)})") from None


def _write_timm(
    encoder: Encoder, backbone: torch.nn.Module, weights: dict[str, Tensor], folder: Path, metadata: dict | None
) -> None:
    cfg = cast(dict, backbone.pretrained_cfg)  # an attribute of every timm model
    size = (encoder.channels, encoder.image_size, encoder.image_size)
    # A crop ratio that was tuned for another size does not apply to this one.
    crop_pct = cfg["crop_pct"] if tuple(cfg["input_size"]) == size else 1.0
    preprocessing = {
        "input_size": size,
        "mean": encoder.mean,
        "std": encoder.std,
        "interpolation": encoder.interpolation,
        "crop_pct": crop_pct,
    }
    # timm asks the backbone, here a copy, for its weights, and they may be tied.
    backbone.state_dict = lambda: weights  # type: ignore[method-assign,assignment]
    save_for_hf(backbone, str(folder), data_config=preprocessing, safe_serialization=True)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if encoder.channels != 3:
        # Earlier releases of timm take the weights of the layers named here for those of 3 channels.
        config["pretrained_cfg"]["first_conv"] = None
    # transformers passes num_classes itself and fails on a second one; timm reads the one at the top level.
    config.get("model_args", {}).pop("num_classes", None)
    for claim in ("tag", "license"):  # they describe the release of the architecture, not these weights
        config["pretrained_cfg"].pop(claim, None)
    module = inspect.getmodule(type(backbone))
    if module in OWN_CODE:
        remote, name = OWN_CODE[module]
        config["auto_map"] = {"AutoModel": f"{remote}.{name}"}
        source = inspect.getsource(module).replace(
            "from torch import Tensor, nn\n",
            "from torch import Tensor, nn\nfrom transformers import TimmWrapperModel\n",
            1,
        )
        (folder / f"{remote}.py").write_text(source + REMOTE_MODEL.format(name=name), encoding="utf-8")
    _write_config(folder, config, metadata)


def _write_transformers(
    encoder: Encoder,
    backbone: torch.nn.Module,
    weights: dict[str, Tensor],
    folder: Path,
    metadata: dict | None,
    rehearsal: bool,
) -> None:
    # The original format may join or split weights, which single numbers are not fit for.
    cast(PreTrainedModel, backbone).save_pretrained(folder, state_dict=weights, save_original_format=not rehearsal)
    image_processor(encoder).save_pretrained(folder)
    _write_config(folder, json.loads((folder / "config.json").read_text(encoding="utf-8")), metadata)


def _write_config(folder: Path, config: dict, metadata: dict | None) -> None:
    if metadata is not None:
        config["orthossl"] = metadata
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
