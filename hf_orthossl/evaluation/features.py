"""Representations of a whole data set, extracted once for every probe."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm

from ..data import collate
from ..distributed.collectives import all_gather_rows, rank, shard_range, world_size


@dataclass
class Features:
    """Representations with their labels.

    Args:
        representations (`Tensor` of shape `(N, D)`): Encoder outputs, float32, on the CPU.
        labels (`Tensor` of shape `(N,)`): Class indices, −1 where there is no label.
    """

    representations: Tensor
    labels: Tensor


def normalized_batches(
    encoder: nn.Module,
    dataset: Dataset,
    *,
    batch_size: int = 256,
    num_workers: int = 0,
    progress: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Batches of a data set with `pixel_values` as the encoder expects them: float, normalized, on its device.

    Args:
        encoder ([`Encoder`]): Its `mean`, `std` and device are used.
        dataset (`ImageDataset`): Its items are uint8 images `(3, S, S)` of the encoder's size.
        batch_size (`int`, defaults to 256): Images per batch.
        num_workers (`int`, defaults to 0): Processes that decode.
        progress (`str`, *optional*): Text of a progress bar; none by default.
    """
    device = next(encoder.parameters()).device
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) * 255 for values in (encoder.mean, encoder.std))
    loader = DataLoader(dataset, batch_size=batch_size, collate_fn=collate, num_workers=num_workers)
    for batch in tqdm(loader, desc=progress, disable=progress is None, leave=False, dynamic_ncols=True):
        batch["pixel_values"] = (batch["pixel_values"].to(device) - mean) / std
        yield batch


@torch.no_grad()
def extract_features(encoder: nn.Module, dataset: Dataset, *, shared: bool = False, **kwargs) -> Features:
    """Runs a frozen encoder in eval mode over a data set, in order.

    Args:
        encoder ([`Encoder`]): Left in the mode it was in.
        dataset, kwargs: As for [`normalized_batches`].
        shared (`bool`, defaults to `False`): Share the images out over the processes of the run, all of which call and
            all of which get all features.
    """
    if shared and world_size() > 1:
        kwargs |= {"progress": None} if rank() else {}
        own = extract_features(encoder, Subset(dataset, shard_range(len(dataset))), **kwargs)
        return Features(all_gather_rows(own.representations), all_gather_rows(own.labels))
    was_training = encoder.training
    encoder.eval()
    # A share may be empty.
    representations, labels = [torch.empty(0)], [torch.empty(0, dtype=torch.long)]
    try:
        for batch in normalized_batches(encoder, dataset, **kwargs):
            representations.append(encoder(batch["pixel_values"]).float().cpu())
            labels.append(batch["labels"])
    finally:
        encoder.train(was_training)
    return Features(torch.cat(representations), torch.cat(labels))
