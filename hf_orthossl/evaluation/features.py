"""Extract the representations of a whole data set once, and cache them on disk for further probes."""

import hashlib
import json
import os
from collections.abc import Iterator, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import HF_HOME
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm

from ..data import ImageDataset, ImageSource, collate
from ..distributed.collectives import all_gather_object, all_gather_rows, rank, shard_range, world_size
from ..encoders import Encoder
from ..spectra.layers import evaluation_mode


@dataclass
class Features:
    """Representations with their labels.

    Args:
        representations (`Tensor` of shape `(N, D)`): Encoder outputs, float32, on the CPU.
        labels (`Tensor` of shape `(N,)`): Class indices, −1 for images without a label.
    """

    representations: Tensor
    labels: Tensor


def normalized_batches(
    encoder: Encoder,
    dataset: Dataset,
    *,
    batch_size: int = 256,
    num_workers: int = 0,
    progress: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield batches of a data set with `pixel_values` as the encoder expects them: float, normalized, on its device.

    Args:
        encoder ([`Encoder`]): The encoder, whose `mean`, `std` and device are used.
        dataset (`ImageDataset`): The images: uint8, `(3, S, S)`, of the encoder's size.
        batch_size (`int`, defaults to 256): Images per batch.
        num_workers (`int`, defaults to 0): Number of processes that decode images.
        progress (`str`, *optional*): Title of a progress bar; without it, no bar is shown.

    Yields:
        `dict`: A batch with `pixel_values` `(B, 3, S, S)` and `labels` `(B,)`.
    """
    device = next(encoder.parameters()).device
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) * 255 for values in (encoder.mean, encoder.std))
    loader = DataLoader(dataset, batch_size=batch_size, collate_fn=collate, num_workers=num_workers)
    for batch in tqdm(loader, desc=progress, disable=progress is None, leave=False, dynamic_ncols=True):
        batch["pixel_values"] = (batch["pixel_values"].to(device) - mean) / std
        yield batch


@torch.no_grad()
def extract_features(encoder: Encoder, dataset: Dataset, *, shared: bool = False, **kwargs: Any) -> Features:
    """Return the representations of a data set, in order, from a frozen encoder in eval mode.

    Args:
        encoder ([`Encoder`]): The encoder; its train or eval mode is restored.
        dataset (`ImageDataset`): The images, as for [`normalized_batches`].
        shared (`bool`, defaults to `False`): Divide the images among the processes of the run. All of them must call
            this function, and all receive all features.
        kwargs: Further arguments of [`normalized_batches`].
    """
    if shared and world_size() > 1:
        assert isinstance(dataset, Sized)
        kwargs |= {"progress": None} if rank() else {}
        own = extract_features(encoder, Subset(dataset, shard_range(len(dataset))), **kwargs)
        return Features(all_gather_rows(own.representations), all_gather_rows(own.labels))
    was_training = encoder.training
    encoder.eval()
    # The share of a process may be empty.
    representations, labels = [torch.empty(0)], [torch.empty(0, dtype=torch.long)]
    try:
        for batch in normalized_batches(encoder, dataset, **kwargs):
            representations.append(encoder(batch["pixel_values"]).float().cpu())
            labels.append(batch["labels"])
    finally:
        encoder.train(was_training)
    return Features(torch.cat(representations), torch.cat(labels))


# Attributes of an encoder, besides its weights, that determine the representation of an image.
_TRANSFORM = ("image_size", "mean", "std", "interpolation", "pooling")
# To be increased when decoding, resizing or pooling changes, so that older cache entries are not used.
FORM = 1


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
        """
        if not self.enabled:
            return extract_features(encoder, dataset, **kwargs)
        shared = kwargs.get("shared", False) and world_size() > 1
        main = not shared or rank() == 0
        path = self.folder / f"{features_key(encoder, dataset)}.safetensors" if main else None
        cached = _read(path) if path is not None else None
        if shared and all_gather_object(cached is not None)[0]:
            cached = cached or Features(torch.empty(0), torch.empty(0))
            cached = Features(all_gather_rows(cached.representations), all_gather_rows(cached.labels))
        if cached is not None:
            return cached
        features = extract_features(encoder, dataset, **kwargs)
        if path is not None:
            _write(path, features)
        return features


def features_key(encoder: Encoder, dataset: ImageDataset) -> str:
    """Return a hash of everything that determines an encoder's features of a data set."""
    about = {
        "encoder": encoder_key(encoder),
        "data": dataset.source.dataset._fingerprint,
        "files": _files(dataset.source),
        "columns": [dataset.source.image_column, dataset.source.label_column, dataset.source.class_names],
        "rows": dataset.indices,
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:40]


def _files(source: ImageSource) -> str | None:
    """Return a hash of the sizes and times of a folder's image files; the data set's fingerprint covers only names."""
    first = source.dataset[0][source.image_column]
    if not (isinstance(first, dict) and first.get("path") and first.get("bytes") is None):
        return None
    digest = hashlib.sha256()
    for image in source.dataset.with_format(None)[source.image_column]:
        try:
            status = os.stat(image["path"])
        except (OSError, TypeError):
            continue
        digest.update(f"{status.st_size} {status.st_mtime_ns} ".encode())
    return digest.hexdigest()


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
    image = torch.stack([side[:, None] * side, side[:, None].sin() + side, (3 * side).cos() - side[:, None]])
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
    digest = hashlib.blake2b(digest_size=16)
    for tensor in (features.representations, features.labels):
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _read(path: Path) -> Features | None:
    """Return the features in a file, or `None` if it does not exist or is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            stored = (file.metadata() or {}).get("checksum")
            features = Features(file.get_tensor("representations"), file.get_tensor("labels"))
    except (OSError, SafetensorError):
        return None
    return features if _checksum(features) == stored else None


def _write(path: Path, features: Features) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two processes may write the same entry at once: each writes a separate file, and the last one renamed remains.
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    tensors = {"representations": features.representations.contiguous(), "labels": features.labels.contiguous()}
    try:
        save_file(tensors, temporary, metadata={"checksum": _checksum(features)})
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"features cannot be cached in {path.parent} ({error}): free disk space, or pass --cache none"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
