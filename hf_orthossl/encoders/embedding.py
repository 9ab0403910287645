"""Encode images of any kind in batches: prepared as the encoder expects them, and read at any of its layers."""

from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..data import ImageDataset, ImageSource, collate, load_source, without_unreadable
from ..data.image_list import ImageList, listed_images
from ..data.unreadable import Unreadable, check_unreadable
from ..messages import suggest
from ..spectra.layers import as_vectors, evaluation_mode
from ..spectra.stages import REPRESENTATION
from ..terminal import progress_bar
from .channels import match_channels

if TYPE_CHECKING:
    from .encoder import Encoder

# What can be read of an image beside one vector: a vector at each position.
TOKENS = ("patch",)


@dataclass
class Embedded:
    """The vectors of a data set, and which image each of them is of.

    Args:
        vectors (`Tensor` of shape `(N, D)`, or `(N, h, w, D)` of tokens): The vectors, float32, on the CPU.
        rows (`list[int]`): The row of each image in the data set.
        names (`list[str]`): The path of each image, or its name or row in a data set without files.
        labels (`Tensor` of shape `(N,)`, *optional*): The class indices, −1 for images without a label; `None` if the
            data set has no labels.
        class_names (`list[str]`, *optional*): The name of each class.
        unreadable (`list[Unreadable]`): Images that cannot be read and are not among the N.
    """

    vectors: Tensor
    rows: list[int]
    names: list[str]
    labels: Tensor | None = None
    class_names: list[str] | None = None
    unreadable: list[Unreadable] = field(default_factory=list)


class VectorReader:
    """Map batches of normalized images to float32 vectors of one layer of an encoder.

    Args:
        encoder ([`Encoder`]): The encoder.
        layer (`str`, defaults to "representation"): One of the encoder's `stage_names`.
        tokens (`str`, *optional*): "patch" for a vector at each position of the layer: each patch of a vision
            transformer, without class token and registers, or each position of a feature map. By default, one vector
            for each image; a layer with positions is averaged over them.

    Attributes:
        shape (`tuple[int, ...]`): `(D,)`, or `(h, w, D)` with tokens.
        pooling (`str`): How one vector is made of a layer: "none", "avg" (the mean over positions), the encoder's own
            pooling, or "each" with tokens.

    Raises:
        ValueError: The encoder has no such layer, or the layer has no positions.
    """

    def __init__(self, encoder: "Encoder", layer: str = REPRESENTATION, tokens: str | None = None):
        if layer not in encoder.stage_names:
            raise ValueError(
                f"layer is {layer!r}, which backbone {encoder.name!r} does not have: "
                f"{suggest(layer, encoder.stage_names, most=3)}"
            )
        if tokens is not None and tokens not in TOKENS:
            raise ValueError(f"tokens is {tokens!r}: choose from {', '.join(TOKENS)}, or leave it out")
        self.encoder, self.layer, self.tokens = encoder, layer, tokens
        self.pooling = "each" if tokens else encoder.pooling if layer == REPRESENTATION else "avg"
        parameter = next(encoder.parameters())
        blank = torch.zeros(1, encoder.channels, encoder.image_size, encoder.image_size)
        with evaluation_mode(encoder):
            self.shape = tuple(self(blank.to(parameter.device, parameter.dtype)).shape[1:])

    def __call__(self, images: Tensor) -> Tensor:
        """Return the vectors `(B, *shape)` of normalized images `(B, C, H, W)`, on the device of the encoder."""
        if self.tokens is not None:
            return self._map(images).permute(0, 2, 3, 1).float()
        if self.layer == REPRESENTATION:
            return self.encoder(images).float()
        return as_vectors(self.encoder.stages(images)[self.layer], "avg")[0].float()

    def _map(self, images: Tensor) -> Tensor:
        """Return the features `(B, D, h, w)` of the layer at each of its positions."""
        if self.layer == REPRESENTATION:
            return self.encoder.representation_and_map(images)[1]
        output = self.encoder.stages(images)[self.layer]
        if output.ndim == 4:
            return output
        if output.ndim == 3:
            layout = self.encoder.patches
            return output[:, layout.prefix :].mT.unflatten(2, layout.grid(images.shape[-1]))
        raise ValueError(
            f"layer {self.layer!r} of backbone {self.encoder.name!r} is one vector for each image and has no "
            "positions: leave out tokens, or choose another layer"
        )


def normalized_batches(
    encoder: "Encoder",
    dataset: Dataset,
    *,
    batch_size: int = 256,
    num_workers: int = 0,
    progress: str | None = None,
    unreadable: list[Unreadable] | None = None,
    batches: Sequence[Sequence[int]] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield batches of a data set with `pixel_values` as the encoder expects them: float, normalized, on its device.

    Args:
        encoder ([`Encoder`]): The encoder, whose `mean`, `std` and device are used.
        dataset (`ImageDataset`): The images: uint8, `(C, S, S)`, of the encoder's size; those that cannot be read
            must be omitted and not replaced.
        batch_size (`int`, defaults to 256): Images per batch.
        num_workers (`int`, defaults to 0): Number of processes that decode images.
        progress (`str`, *optional*): Title of a progress bar with images per second, which is shown in a terminal
            only; without it, no bar is shown.
        unreadable (`list[Unreadable]`, *optional*): Receives the images that cannot be read.
        batches (sequence of sequences of `int`, *optional*): The positions of each batch in the data set, instead of
            all positions in batches of `batch_size`.

    Yields:
        `dict`: A batch with `pixel_values` `(B, C, S, S)`, `labels` `(B,)` and `index` `(B,)`, of readable images only.
    """
    device = next(encoder.parameters()).device
    mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) * 255 for values in (encoder.mean, encoder.std))
    sampling: dict[str, Any] = {"batch_size": batch_size} if batches is None else {"batch_sampler": batches}
    loader = DataLoader(dataset, collate_fn=collate, num_workers=num_workers, **sampling)
    assert isinstance(dataset, Sized)
    total = len(dataset) if batches is None else sum(map(len, batches))
    with progress_bar(None, progress or "", progress is not None, total=total, unit=" images") as shown:
        for batch in loader:
            count = len(batch["labels"])
            if unreadable is not None:
                unreadable += [Unreadable(*image) for image in batch["unreadable"]]
            batch = without_unreadable(batch)
            if len(batch["labels"]):
                batch["pixel_values"] = (batch["pixel_values"].to(device) - mean) / std
                yield batch
            shown.update(count)


def embed(
    encoder: "Encoder",
    images: Any,
    *,
    layer: str = REPRESENTATION,
    tokens: str | None = None,
    batch_size: int = 256,
    num_workers: int = 0,
    progress: bool = False,
    **reading: Any,
) -> Tensor | Embedded:
    """Return the vectors of images, see [`Encoder.embed`]."""
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: it must be 1 or more")
    reader = VectorReader(encoder, layer, tokens)
    shared: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers}
    shared["progress"] = "embedding" if progress else None
    listed = listed_images(images)
    if listed is not None:
        return _of_list(reader, listed, shared, **reading)
    return embed_source(reader, _source(encoder, images, reading), **shared)


def embed_source(reader: VectorReader, source: ImageSource, **settings: Any) -> Embedded:
    """Return the vectors of a data set, with what each is of, on one process.

    Args:
        reader ([`VectorReader`]): The encoder and its layer.
        source ([`ImageSource`]): The images.
        settings: Further arguments of [`normalized_batches`].

    Raises:
        ValueError: The encoder takes images of another number of channels.
        TooManyUnreadable: More images cannot be read than the source allows.
    """
    encoder = reader.encoder
    match_channels(encoder, source)
    vectors, labels, rows = [torch.empty(0, *reader.shape)], [torch.empty(0, dtype=torch.long)], list[int]()
    dataset, unreadable = ImageDataset(source, image_size=encoder.image_size, unreadable="omit"), list[Unreadable]()
    with evaluation_mode(encoder):
        for batch in normalized_batches(encoder, dataset, unreadable=unreadable, **settings):
            vectors.append(reader(batch["pixel_values"]).cpu())
            labels.append(batch["labels"])
            rows += batch["index"].tolist()
    check_unreadable(unreadable, len(dataset), source.max_unreadable)
    known = torch.cat(labels) if source.label_column else None
    return Embedded(torch.cat(vectors), rows, source.names(rows), known, source.class_names, unreadable)


def _source(encoder: "Encoder", images: Any, reading: dict[str, Any]) -> ImageSource:
    """Return a data set as a source, with as many channels as the encoder takes."""
    if isinstance(images, ImageSource):
        if reading:
            raise ValueError(
                f"{min(reading)} is given with an ImageSource, which is read already: pass it to load_source"
            )
        return images
    return load_source(images, **{"channels": None if encoder.channels == 3 else encoder.channels} | reading)


def _of_list(reader: VectorReader, images: list[Any], shared: dict[str, Any], **reading: Any) -> Tensor:
    """Return the vectors of a list of images, one for each."""
    encoder = reader.encoder
    if other := sorted(reading.keys() - {"pixel_range"}):
        raise ValueError(f"{other[0]} is given with a list of images: it is for folders and other data sets, omit it")
    if not encoder.knows_normalization:
        raise ValueError(
            f"backbone {encoder.name!r} does not know the mean and std of its {encoder.channels} channels: call "
            "encoder.set_normalization(mean, std) first, or pass a data set, from which they are measured"
        )
    dataset, unreadable = ImageList(images, encoder.image_size, encoder.channels, **reading), list[Unreadable]()
    vectors = []
    with evaluation_mode(encoder):
        for batch in normalized_batches(encoder, dataset, unreadable=unreadable, **shared):
            vectors.append(reader(batch["pixel_values"]).cpu())
    if unreadable:
        more = f", and {len(unreadable) - 1:,} more cannot" if len(unreadable) > 1 else ""
        raise ValueError(
            f"{unreadable[0].name} cannot be read ({unreadable[0].reason}){more}: leave it out, or pass the folder, "
            "whose unreadable files are named and left out"
        )
    return torch.cat(vectors)
