"""Load an export where this package is missing, as a stranger does."""

import importlib.abc
import json
import sys
from pathlib import Path
from typing import Any

import timm
import torch
import transformers
from torch import Tensor
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, PreTrainedModel

_PACKAGE = "hf_orthossl"


class _Missing(importlib.abc.MetaPathFinder):
    """Make the import of this package fail, as where it was never installed."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Raise for the package and its modules."""
        if name.partition(".")[0] == _PACKAGE:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def check_export(folder: Path) -> str:
    """Return "ok", or how an export that was loaded without this package differs.

    It must run in a process of its own, whose imports it changes.

    Args:
        folder (`Path`): The folder with `export/`, `expected.pt` and `expected.json`.
    """
    for name in [name for name in sys.modules if name.partition(".")[0] == _PACKAGE]:
        del sys.modules[name]
    sys.meta_path.insert(0, _Missing())
    how = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    tensors = torch.load(folder / "expected.pt", weights_only=True)
    images, expected = tensors["images"], tensors["expected"]
    ways = [_by_transformers] if how["library"] == "transformers" else [_by_timm, _by_transformers]
    for way in ways:
        with torch.no_grad():
            found = way(folder / "export", how["pooling"], images)
        error = (found - expected).abs().max() / expected.abs().max()
        if found.shape != expected.shape or not error < 1e-3:
            return f"{way.__name__[4:]} differs by {error:.1g} of the largest"
    return "ok"


def _by_timm(folder: Path, pooling: str, images: Tensor) -> Tensor:
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(images)


def _by_transformers(folder: Path, pooling: str, images: Tensor) -> Tensor:
    """Return the output that `encoder.pooling` names, image by image."""
    network = _network(folder).eval()
    return torch.cat([_representation(network(image[None]), pooling) for image in images])


def _network(folder: Path) -> PreTrainedModel:
    """Return the network by `AutoModel` or, where that does not know a tower, by the class that config.json names."""
    config = AutoConfig.from_pretrained(folder)
    if type(config) in MODEL_MAPPING:
        return AutoModel.from_pretrained(folder)
    return getattr(transformers, config.architectures[0]).from_pretrained(folder)


def _representation(output: Any, pooling: str) -> Tensor:
    if pooling == "cls":
        return output.last_hidden_state[:, 0]
    if pooling == "mean_channels_last":
        return output.last_hidden_state.mean((1, 2))
    if pooling not in ("mean", "feature_maps"):
        return output[pooling].flatten(1)
    hidden = output.last_hidden_state if pooling == "mean" else output.feature_maps[-1]
    return hidden.mean(1) if hidden.ndim == 3 else hidden.mean((2, 3))
