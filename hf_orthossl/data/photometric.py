"""What is done to the colours and sharpness of a batch of views, every image with its own numbers."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .blurring import blur
from .colours import brighten, contrast, grayscale, saturate, solarize, turn_hue
from .recipes import ViewSpec

# Uniform numbers per image: jitter's gate, 4 amounts and 4 sort keys; gates of grayscale, blur and solarize; σ.
DRAWS = 13


class Step(NamedTuple):
    """One operation, on some images of a batch.

    Args:
        operation (`Callable`): From images and, where there are any, values to images; it may overwrite its own.
        gates (`list[bool]`): Which images, known without waiting for the device.
        values (`Tensor` of shape `(B,)`, *optional*): One number per image.
    """

    operation: Callable[..., Tensor]
    gates: list[bool]
    values: Tensor | None = None

    def __call__(self, images: Tensor, first: int = 0) -> Tensor:
        """Does it to images that stand in the batch from place `first` on; they may be overwritten."""
        part = slice(first, first + len(images))
        rows = [row for row, gate in enumerate(self.gates[part]) if gate]
        if not rows:
            return images
        values = [] if self.values is None else [self.values[part]]
        if len(rows) == len(images):
            return self.operation(images, *values)
        chosen = torch.tensor(rows).to(images.device, non_blocking=True)
        changed = self.operation(images.index_select(0, chosen), *(value.index_select(0, chosen) for value in values))
        return images.index_copy_(0, chosen, changed)


def photometric_steps(uniform: Tensor, spec: ViewSpec, device: torch.device) -> list[Step]:
    """Jitter, grayscale, blur and solarization, in this order (that of BYOL and of solo-learn), to be called in turn.

    Args:
        uniform (`Tensor` of shape `(B, 13)`): Independent uniform numbers in [0, 1), on the CPU.
        spec ([`ViewSpec`]): Probabilities and strengths.
        device (`torch.device`): Where the images are, RGB in [0, 1].
    """
    low, high = spec.blur_sigma
    sigma = (low + (high - low) * uniform[:, 12]).to(device, non_blocking=True)
    others = (
        (grayscale, uniform[:, 9] < spec.grayscale, None),
        (lambda images, values: blur(images, values, high), uniform[:, 10] < spec.blur, sigma),
        (lambda images: solarize(images, spec.solarize_threshold), uniform[:, 11] < spec.solarize, None),
    )
    steps = _jitter(uniform[:, 0] < spec.jitter, uniform[:, 1:5], uniform[:, 5:9], spec, device)
    return steps + [Step(operation, gates.tolist(), values) for operation, gates, values in others]


def _jitter(gates: Tensor, amounts: Tensor, keys: Tensor, spec: ViewSpec, device: torch.device) -> list[Step]:
    """Brightness, contrast, saturation and hue, in an order of its own for every image, as torchvision's."""
    # With the ranges of their values.
    operations = (
        (brighten, max(0.0, 1 - spec.brightness), 1 + spec.brightness),
        (contrast, max(0.0, 1 - spec.contrast), 1 + spec.contrast),
        (saturate, max(0.0, 1 - spec.saturation), 1 + spec.saturation),
        (turn_hue, -spec.hue, spec.hue),
    )
    order = keys.argsort(1)
    values = [
        (low + (high - low) * amounts[:, number]).to(device, non_blocking=True)
        for number, (_, low, high) in enumerate(operations)
    ]
    return [
        Step(operation, (gates & (order[:, turn] == number)).tolist(), values[number])
        for turn in range(4)
        for number, (operation, low, high) in enumerate(operations)
        if low < high
    ]
