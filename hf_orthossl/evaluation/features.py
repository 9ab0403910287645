"""Extract the representations of a whole data set once, and cache them on disk for further probes."""

import hashlib
import json
from collections.abc import Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import HF_HOME
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from ..data import ImageDataset
from ..data.unreadable import Unreadable, check_unreadable
from ..distributed.collectives import all_gather_object, all_gather_rows, rank, shard_range, world_size
from ..encoders import Encoder
from ..encoders.embedding import normalized_batches
from ..files import replacing
from ..spectra.layers import evaluation_mode


@dataclass
class Features:
    """Representations with their labels.

    Args:
        representations (`Tensor` of shape `(N, D)`): Encoder outputs, float32, on the CPU.
        labels (`Tensor` of shape `(N,)`): Class indices, −1 for images without a label.
        unreadable (`list[Unreadable]`, *optional*): Images that cannot be read and are not among the N.
    """

    representations: Tensor
    labels: Tensor
    unreadable: list[Unreadable] = field(default_factory=list)


# Representations of equal images that were computed in batches of different sizes differ by less, relative to their
# length: twice the error that `spectra.eigenvalues.is_rounding` allows to each.
_ROUNDING = 16 * torch.finfo(torch.float32).eps


def are_equal(*representations: Tensor, chunk: int = 4096) -> bool:
    """Return whether all representations are the same up to rounding, as those of a collapsed encoder are.

    A probe would otherwise learn from rounding errors, which depend on the batch that an image was in.

    Args:
        representations (`Tensor` of shape `(N, D)`): Representations of one or several sets of images.
        chunk (`int`, defaults to 4096): Number of representations compared at a time.
    """
    first = next((part[0] for part in representations if len(part)), None)
    if first is None:
        return False
    first = first.double()
    largest = first.square().sum() * _ROUNDING**2
    rows = (rows for part in representations for rows in part.split(chunk))
    return all(bool(((part.double() - first).square().sum(1) <= largest).all()) for part in rows)


@torch.no_grad()
def extract_features(encoder: Encoder, dataset: Dataset, *, shared: bool = False, **kwargs: Any) -> Features:
    """Return the representations of a data set, in order, from a frozen encoder in eval mode.

    Args:
        encoder ([`Encoder`]): The encoder; its train or eval mode is restored.
        dataset (`ImageDataset`): The images, as for [`normalized_batches`].
        shared (`bool`, defaults to `False`): Divide the images among the processes of the run. All of them must call
            this function, and all receive all features.
        kwargs: Further arguments of [`normalized_batches`].

    Raises:
        TooManyUnreadable: More images cannot be read than the source of the data set allows.
    """
    assert isinstance(dataset, Sized)
    if shared and world_size() > 1:
        kwargs |= {"progress": None} if rank() else {}
        own = _extract(encoder, Subset(dataset, shard_range(len(dataset))), **kwargs)
        features = _gathered(own)
    else:
        features = _extract(encoder, dataset, **kwargs)
    _check(features, dataset)
    return features


def _check(features: Features, dataset: Any) -> None:
    if isinstance(dataset, ImageDataset):
        check_unreadable(features.unreadable, len(dataset), dataset.source.max_unreadable)


def _gathered(own: Features) -> Features:
    """Return the features of all processes, in rank order."""
    unreadable = [image for images in all_gather_object(own.unreadable) for image in images]
    return Features(all_gather_rows(own.representations), all_gather_rows(own.labels), unreadable)


def _extract(encoder: Encoder, dataset: Dataset, **kwargs: Any) -> Features:
    """Return the representations of a data set that are extracted in this process."""
    unreadable: list[Unreadable] = []
    was_training = encoder.training
    encoder.eval()
    # The share of a process may be empty.
    representations, labels = [torch.empty(0)], [torch.empty(0, dtype=torch.long)]
    try:
        for batch in normalized_batches(encoder, dataset, unreadable=unreadable, **kwargs):
            representations.append(encoder(batch["pixel_values"]).float().cpu())
            labels.append(batch["labels"])
    finally:
        encoder.train(was_training)
    return Features(torch.cat(representations), torch.cat(labels), unreadable)


# Attributes of an encoder, besides its weights, that determine the representation of an image.
_TRANSFORM = ("image_size", "mean", "std", "interpolation", "pooling")
# To be increased when decoding, resizing or pooling changes, so that older cache entries are not used.
FORM = 2


class FeatureCache:
    """A folder of features, each stored under a key of weights, images and transform.

    A damaged entry (truncated, or with a wrong checksum) is computed again. Entries are written to a temporary file,
    which is then renamed.

    Args:
        folder (`str` or `Path`, *optional*): The folder; `orthossl/features` in the Hugging Face home by default.
        enabled (`bool`, defaults to `True`): Whether to read and write the folder.
    """

    def __init__(self, folder: str | Path | None = None, enabled: bool = True):
        self.folder = Path(folder or Path(HF_HOME) / "orthossl" / "features")
        self.enabled = enabled

    def features(self, encoder: Encoder, dataset: ImageDataset, **kwargs: Any) -> Features:
        """Return the features of a data set, from the cache if they are in it.

        Args:
            encoder ([`Encoder`]): The encoder.
            dataset ([`ImageDataset`]): The images.
            kwargs: Further arguments of [`extract_features`], none of which change the features. With `shared=True`,
                only the main process reads and writes, and all processes receive the features.

        Raises:
            OSError: If the folder cannot be written.
            TooManyUnreadable: More images cannot be read than the source of the data set allows.
        """
        if not self.enabled:
            return extract_features(encoder, dataset, **kwargs)
        shared = kwargs.get("shared", False) and world_size() > 1
        main = not shared or rank() == 0
        path = self.folder / f"{features_key(encoder, dataset)}.safetensors" if main else None
        cached = _read(path) if path is not None else None
        if shared and all_gather_object(cached is not None)[0]:
            cached = _gathered(cached or Features(torch.empty(0), torch.empty(0)))
        if cached is not None:
            _check(cached, dataset)
            return cached
        features = extract_features(encoder, dataset, **kwargs)
        if path is not None:
            _write(path, features)
        return features


def features_key(encoder: Encoder, dataset: ImageDataset) -> str:
    """Return a hash of everything that determines an encoder's features of a data set."""
    source, rule = dataset.source, dataset.source.pixels
    about = {
        "encoder": encoder_key(encoder),
        "data": source.cache_key,
        "columns": [source.image_column, source.label_column, source.class_names],
        "pixels": rule.key(),
        "rows": dataset.indices,
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:40]


def encoder_key(encoder: Encoder) -> str:
    """Return a hash of everything that determines a representation: weights, transform and architecture."""
    about = {
        "form": FORM,
        "weights": weights_hash(encoder),
        "transform": {name: getattr(encoder, name, None) for name in _TRANSFORM},
        "behaviour": _behaviour(encoder),
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:40]


@torch.no_grad()
def _behaviour(encoder: Encoder) -> list[int]:
    """Return the rounded representation of one fixed image.

    It distinguishes encoders with equal weights but different pooling, attention heads or activations.
    """
    parameter = next(encoder.parameters())
    side = torch.linspace(-2, 2, encoder.image_size, device=parameter.device, dtype=parameter.dtype)
    patterns = [side[:, None] * side, side[:, None].sin() + side, (3 * side).cos() - side[:, None]]
    # Further channels have the same patterns, weaker, so that no two channels are equal.
    image = torch.stack([patterns[number % 3] / (1 + number // 3) for number in range(encoder.channels)])
    with evaluation_mode(encoder):
        values = encoder(image[None])[0].float().nan_to_num()
    # Rounded, because the last bits depend on threads and device.
    return (values / values.abs().max().clamp(min=1e-30) * 100).round().int().tolist()


def weights_hash(module: nn.Module) -> str:
    """Return the SHA-256 of a module's parameters and buffers: their names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def _checksum(features: Features) -> str:
    digest = hashlib.blake2b(json.dumps(features.unreadable).encode(), digest_size=16)
    for tensor in (features.representations, features.labels):
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _read(path: Path) -> Features | None:
    """Return the features in a file, or `None` if it does not exist or is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            stored = metadata.get("checksum")
            unreadable = [Unreadable(*image) for image in json.loads(metadata.get("unreadable", "[]"))]
            features = Features(file.get_tensor("representations"), file.get_tensor("labels"), unreadable)
    except (OSError, SafetensorError, ValueError, TypeError):
        return None
    return features if _checksum(features) == stored else None


def _write(path: Path, features: Features) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"representations": features.representations.contiguous(), "labels": features.labels.contiguous()}
    about = {"checksum": _checksum(features), "unreadable": json.dumps(features.unreadable)}
    need = sum(tensor.nbytes for tensor in tensors.values())
    # Two processes may write the same entry at once: each writes a separate file, and the last one renamed remains.
    with replacing(path, need=need, otherwise="pass --cache none") as partial:
        save_file(tensors, partial, metadata=about)
