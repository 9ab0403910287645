"""Features on disk, so that every probe of the same encoder on the same images after the first is quick."""

import hashlib
import json
import os
from pathlib import Path

import torch
from huggingface_hub.constants import HF_HOME
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..data import ImageDataset, ImageSource
from ..distributed.collectives import all_gather_object, all_gather_rows, rank, world_size
from ..spectra.layers import evaluation_mode
from .features import Features, extract_features

# What turns an image into a vector, apart from the weights.
_TRANSFORM = ("image_size", "mean", "std", "interpolation", "pooling")
# Raised when images are decoded, resized or pooled differently from before: what is cached no longer holds.
FORM = 1


class FeatureCache:
    """A folder of features, each under a key of weights, images and transform.

    An entry that is damaged (cut short, or its checksum is wrong) is made anew. Entries are written aside and renamed.

    Args:
        folder (`str` or `Path`, *optional*): Where; `orthossl/features` in the Hugging Face home by default.
        enabled (`bool`, defaults to `True`): `False` neither reads nor writes.
    """

    def __init__(self, folder: str | Path | None = None, enabled: bool = True):
        self.folder = Path(folder or Path(HF_HOME) / "orthossl" / "features")
        self.enabled = enabled

    def features(self, encoder: nn.Module, dataset: ImageDataset, **kwargs) -> Features:
        """Features of a data set, read if they are there and extracted otherwise.

        Args:
            encoder, dataset: As for [`extract_features`].
            kwargs: Further arguments of [`extract_features`], none of which change the features. With `shared=True`,
                the main process alone reads and writes, and all processes get the features.

        Raises:
            OSError: the folder cannot be written.
        """
        if not self.enabled:
            return extract_features(encoder, dataset, **kwargs)
        shared = kwargs.get("shared", False) and world_size() > 1
        main = not shared or rank() == 0
        path = self.folder / f"{features_key(encoder, dataset)}.safetensors" if main else None
        found = _read(path) if main else None
        if shared and all_gather_object(found is not None)[0]:
            found = found or Features(torch.empty(0), torch.empty(0))
            found = Features(all_gather_rows(found.representations), all_gather_rows(found.labels))
        if found is not None:
            return found
        features = extract_features(encoder, dataset, **kwargs)
        if main:
            _write(path, features)
        return features


def features_key(encoder: nn.Module, dataset: ImageDataset) -> str:
    """Hash of everything that determines an encoder's features of a data set."""
    about = {
        "encoder": encoder_key(encoder),
        "data": dataset.source.dataset._fingerprint,
        "files": _files(dataset.source),
        "columns": [dataset.source.image_column, dataset.source.label_column, dataset.source.class_names],
        "rows": dataset.indices,
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:40]


def _files(source: ImageSource) -> str | None:
    """Hash of sizes and times of a folder's image files: the fingerprint of such a data set knows their names alone."""
    first = source.dataset[0][source.image_column]
    if not (isinstance(first, dict) and first.get("path") and first.get("bytes") is None):
        return None
    digest = hashlib.sha256()
    for image in source.dataset.with_format(None)[source.image_column]:
        try:
            found = os.stat(image["path"])
        except (OSError, TypeError):
            continue
        digest.update(f"{found.st_size} {found.st_mtime_ns} ".encode())
    return digest.hexdigest()


def encoder_key(encoder: nn.Module) -> str:
    """Hash of everything that determines what an encoder makes of an image: weights, transform and architecture."""
    about = {
        "form": FORM,
        "weights": weights_hash(encoder),
        "transform": {name: getattr(encoder, name, None) for name in _TRANSFORM},
        "behaviour": _behaviour(encoder),
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:40]


@torch.no_grad()
def _behaviour(encoder: nn.Module) -> list[int]:
    """Coarse representation of one fixed image.

    Pooling, heads of attention and activations leave no trace in the weights, and change what they mean.
    """
    parameter = next(encoder.parameters())
    side = torch.linspace(-2, 2, encoder.image_size, device=parameter.device, dtype=parameter.dtype)
    image = torch.stack([side[:, None] * side, side[:, None].sin() + side, (3 * side).cos() - side[:, None]])
    with evaluation_mode(encoder):
        values = encoder(image[None])[0].float().nan_to_num()
    # Coarse, as the last bits depend on threads and device.
    return (values / values.abs().max().clamp(min=1e-30) * 100).round().int().tolist()


def weights_hash(module: nn.Module) -> str:
    """SHA-256 of a module's parameters and buffers: their names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


def _checksum(features: Features) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for tensor in (features.representations, features.labels):
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _read(path: Path) -> Features | None:
    """The entry, or `None` if there is none or it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            stored = (file.metadata() or {}).get("checksum")
            features = Features(file.get_tensor("representations"), file.get_tensor("labels"))
    except (OSError, SafetensorError):
        return None
    return features if _checksum(features) == stored else None


def _write(path: Path, features: Features) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two processes may write the same entry at once: each its own file, and the last one stays.
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    tensors = {"representations": features.representations.contiguous(), "labels": features.labels.contiguous()}
    try:
        save_file(tensors, aside, metadata={"checksum": _checksum(features)})
        os.replace(aside, path)
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"features cannot be cached in {path.parent} ({error}): free some space, or pass --cache none"
        ) from error
    finally:
        aside.unlink(missing_ok=True)
