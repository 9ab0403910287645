"""Frozen teachers: encoders with their weights, which see the student's views as they expect images."""

import hashlib
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encoders import Encoder, load_encoder
from ..encoders.description import CONFIG
from ..messages import first_line
from .gradient_cache import ChunkedEncoder
from .losses import at_least_float32

_REMEDY = "pass --method_config teacher=NAME, the name of weights in timm, a Hub id, an encoder folder or a run folder"


class Teacher:
    """An encoder in evaluation mode, whose representations of the student's views are targets.

    It is no `nn.Module`, so nothing that walks through a model finds it: it is not in the optimizer, in checkpoints, in
    an export, in the gradients of DDP, in the shards of FSDP or among the batch norms to synchronize. Each process
    holds all of it, and it moves to the device and precision of the views. Copies of a model share it.

    Args:
        name (`str`): Anything that [`load_encoder`] accepts, with weights.
        student ([`Encoder`]): The encoder to train.

    Raises:
        ValueError: There is no name, the encoder or its weights cannot be loaded, it takes images of another number of
            channels, or it is the network that the student starts as.
    """

    def __init__(self, name: str, student: Encoder):
        if not name:
            raise ValueError(f"teacher is empty, and distillation needs an encoder with its weights: {_REMEDY}")
        try:
            encoder = load_encoder(name, pretrained=True)
        except (ValueError, OSError) as error:
            # A teacher without weights has nothing to teach.
            said = first_line(error).replace(", or pass pretrained=False", "")
            raise ValueError(f"teacher: {said.replace('pass pretrained=False', _REMEDY)}") from error
        if encoder.channels != student.channels:
            raise ValueError(
                f"teacher {name!r} takes images of {encoder.channels} channels, and the images have "
                f"{student.channels}: pass a teacher of {student.channels} channels"
            )
        assert encoder.start is not None
        self.name, self.start = name, encoder.start
        start = getattr(student, "start", None)
        if start is not None and student.image_size == encoder.image_size and start.sha256() == self.start.sha256():
            raise ValueError(
                f"teacher {name!r} has the weights that the student starts from, {start.name!r}, at the same size, so "
                "there is nothing to learn from it: pass another teacher, or omit --pretrained"
            )
        self.encoder = encoder.eval().requires_grad_(False)
        self._description: str | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return the teacher itself, which never changes."""
        return self

    @property
    def num_features(self) -> int:
        """Return the width D of the teacher's representation."""
        return self.encoder.num_features

    def describe(self) -> str:
        """Return the teacher in words that may be published: name, revision, and what its files hold."""
        if self._description is None:
            config = hashlib.sha256((self.start.weights.folder / CONFIG).read_bytes()).hexdigest()[:16]
            size = self.encoder.image_size
            self._description = f"{self.start.describe()}, {CONFIG} {config}, images of {size} px"
        return self._description

    def is_in(self, folder: Path) -> bool:
        """Return whether the teacher's files are in this folder, or in one within it."""
        return folder.resolve() in (self.start.weights.folder.resolve() / CONFIG).parents

    @torch.compiler.disable
    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the representations `(B, D)` of images `(B, C, s, s)` normalized for the teacher."""
        return self._encoder_for(images)(images)

    @torch.compiler.disable
    @torch.no_grad()
    def representation_and_map(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the representations `(B, D)` and the features `(B, d, h, w)` of normalized images."""
        return self._encoder_for(images).representation_and_map(images)

    @torch.compiler.disable
    @torch.no_grad()
    def see(self, view: Tensor, student: nn.Module) -> Tensor:
        """Return a view as the teacher expects images: of its size, and normalized by its mean and standard deviation.

        The view is resized with the interpolation that the teacher was trained with, with antialiasing, and its values
        are kept within [0, 1], as those of a view of the teacher's own size would be.

        Args:
            view (`Tensor` of shape `(B, C, h, w)`): A view, normalized for the student.
            student ([`Encoder`] or [`ChunkedEncoder`]): The student, whose normalization is undone.

        Returns:
            `Tensor` of shape `(B, C, s, s)`, of the precision of the view.
        """
        own: Any = student.encoder if isinstance(student, ChunkedEncoder) else student
        side = self.encoder.image_size
        with torch.autocast(view.device.type, enabled=False):
            pixels = at_least_float32(view)
            pixels = pixels * _per_channel(own.std, pixels) + _per_channel(own.mean, pixels)
            if pixels.shape[-2:] != (side, side):
                mode = "bilinear" if self.encoder.interpolation == "bilinear" else "bicubic"
                pixels = F.interpolate(pixels, size=(side, side), mode=mode, antialias=True).clamp_(0, 1)
            pixels = pixels.sub_(_per_channel(self.encoder.mean, pixels)).div_(_per_channel(self.encoder.std, pixels))
        return pixels.to(view.dtype)

    def _encoder_for(self, images: Tensor) -> Encoder:
        weight = next(self.encoder.parameters())
        if (weight.device, weight.dtype) != (images.device, images.dtype):
            self.encoder.to(images.device, images.dtype)
        return self.encoder


def _per_channel(values: tuple[float, ...], images: Tensor) -> Tensor:
    """Return one number per channel as a tensor `(C, 1, 1)` of the precision and on the device of images."""
    return torch.tensor(values, dtype=images.dtype, device=images.device).view(-1, 1, 1)
