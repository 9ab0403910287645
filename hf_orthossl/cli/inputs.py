"""Open what a command measures or shows: an encoder, and a sample of images that is spread evenly over a split."""

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..data import ImageDataset, ImageSource, available_splits, load_source
from ..data.options import ImageOptions
from ..data.unreadable import Unreadable, check_unreadable, left_out_note
from ..encoders import Encoder, load_encoder
from ..encoders.channels import match_channels
from ..encoders.embedding import normalized_batches
from ..evaluation.frozen import HELD_OUT_SPLITS
from ..messages import first_line


class EncoderOptions(Protocol):
    """The options by which a command opens an encoder."""

    image_size: int | None
    channels: int | None
    untrained: bool
    seed: int
    device: str | None


def open_encoder(name: str, args: EncoderOptions) -> Encoder:
    """Return an encoder on the device, in eval mode.

    Raises:
        ValueError: If the encoder or the device cannot be used.
    """
    torch.manual_seed(args.seed)
    encoder = load_encoder(name, pretrained=not args.untrained, image_size=args.image_size, channels=args.channels)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return encoder.to(device).eval()
    except RuntimeError as error:
        raise ValueError(f"device {device!r} cannot be used ({first_line(error)}): pass --device cpu") from error


def open_source(encoder: Encoder, args: ImageOptions, split: str | None, **exclude: Any) -> ImageSource:
    """Return the images of a split with the channels of an encoder, and print what was taken.

    Args:
        encoder ([`Encoder`]): The encoder.
        args ([`ImageOptions`]): What the user named.
        split (`str`, *optional*): The split; by default the training images.
        exclude: Folders to leave out, as for [`load_source`].

    Raises:
        ValueError: The images have another number of channels.
    """
    channels = args.channels or (None if encoder.channels == 3 else encoder.channels)
    source = load_source(args.location, split=split, **exclude, **args.reading() | {"channels": channels})
    print(f"data     {source.describe()}")
    if measured_by := match_channels(encoder, source):
        print(f"pixels   {measured_by}")
    return source


def held_out_split(args: ImageOptions, split: str | None) -> str | None:
    """Return the split that the user named or, without one, a held-out split if there is one."""
    if split is not None:
        return split
    known = available_splits(args.location, args.dataset_name)
    return next((name for name in HELD_OUT_SPLITS if name in known), None)


def open_images(args: ImageOptions, split: str | None, channels: int | None) -> ImageSource:
    """Return the images of a split or, without one, of a held-out split if there is one.

    Args:
        args ([`ImageOptions`]): What the user named.
        split (`str`, *optional*): The split.
        channels (`int`, *optional*): The channels of the encoder; `None` for RGB.
    """
    return load_source(args.location, split=held_out_split(args, split), **args.reading() | {"channels": channels})


def spread(count: int, wanted: int) -> list[int]:
    """Return rows evenly spread over a data set, so that a sorted one keeps all its classes."""
    return np.linspace(0, count - 1, min(count, wanted)).round().astype(int).tolist()


def sample_images(encoder: Encoder, args: ImageOptions, split: str | None, count: int) -> Tensor:
    """Return normalized images `(N, C, S, S)` for an encoder, and print what was taken and what cannot be read.

    Args:
        encoder ([`Encoder`]): The encoder.
        args ([`ImageOptions`]): What the user named.
        split (`str`, *optional*): The split; by default a held-out one.
        count (`int`): How many images, if there are as many.

    Raises:
        ValueError: The images do not fit the encoder, or more than allowed cannot be read.
    """
    source = open_source(encoder, args, held_out_split(args, split))
    rows = spread(source.num_rows, count)
    dataset = ImageDataset(source, image_size=encoder.image_size, indices=rows, unreadable="omit")
    unreadable: list[Unreadable] = []
    batches = [batch["pixel_values"] for batch in normalized_batches(encoder, dataset, unreadable=unreadable)]
    check_unreadable(unreadable, len(rows), source.max_unreadable)
    for note in left_out_note(unreadable, len(rows), source.split):
        print(f"note     {note}")
    return torch.cat(batches)
