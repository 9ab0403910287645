"""Turn a batch of images into a batch of views, on the device of the images."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ...messages import describe
from .colour import DRAWS as COLOUR_DRAWS
from .colour import Step, photometric_steps
from .crop import DRAWS as CROP_DRAWS
from .crop import crop_boxes, resize_taps, resized_crops
from .filters import Taps
from .recipes import Recipe, ViewSpec, for_channels, get_recipe

# Maps a slice of the batch to crops of its images, in [0, 1].
Crop = Callable[[slice], Tensor]

# The last random number decides the flip.
_DRAWS = CROP_DRAWS + COLOUR_DRAWS + 1
# Pixels of a view that each CPU thread processes at a time: 96 images of 32 pixels, or 2 of 224.
_PIXELS = 98304


class Views:
    """Make the views of a recipe, with independent random parameters for every image of the batch.

    A call draws all random numbers at once, and their number does not depend on the recipe's probabilities, so that
    disabling one operation does not change the others.

    Images have as many channels as `mean` and `std` have numbers. Three are colours; what a recipe becomes for another
    number says [`~augment.recipes.for_channels`], and `changes` in words.

    Args:
        recipe ([`Recipe`] or `str`): The recipe, or its name.
        image_size (`int`): The side in pixels of views whose size the recipe does not set.
        mean (`Sequence[float]`): The mean of each channel to subtract, on the scale [0, 1].
        std (`Sequence[float]`): The standard deviation of each channel to divide by.

    Raises:
        TypeError: `recipe` is neither a recipe nor the name of one, or another argument is of the wrong type.
        ValueError: The recipe is unknown, or `image_size`, `mean` or `std` is out of range.

    Example:
        >>> views = Views("cifar-simclr", image_size=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
        >>> first, second = views(images, seed=0)  # images: uint8 `(B, 3, H, W)`
    """

    def __init__(self, recipe: Recipe | str, image_size: int, mean: Sequence[float], std: Sequence[float]):
        wanted = get_recipe(recipe)
        if not isinstance(image_size, int | np.integer):
            raise TypeError(f"image_size must be a positive number of pixels, got {describe(image_size)}")
        if image_size < 1:
            raise ValueError(f"image_size is {image_size}: it must be a positive number of pixels")
        self.sizes = wanted.sizes(image_size)
        self.mean, self.std = _channels("mean", mean), _channels("std", std)
        if self.mean.shape != self.std.shape:
            raise ValueError(f"mean has {self.mean.numel()} numbers and std {self.std.numel()}: pass one per channel")
        self.channels = self.mean.numel()
        self.recipe, self.changes = for_channels(wanted, self.channels)
        if self.std.min() <= 0:
            raise ValueError(f"std is {list(std)}: its numbers must be positive")

    @torch.no_grad()
    def __call__(
        self, batch: Tensor | Sequence[Tensor], seed: int | None = None, first: int = 0, total: int | None = None
    ) -> list[Tensor]:
        """Make the views.

        Args:
            batch (`Tensor` of shape `(B, C, H, W)`, or one `(B, C, s, s)` per view): Images, or crops made during
                decoding, uint8. Crops are flipped and recoloured only.
            seed (`int`, *optional*): Determines the views, which are the same on every device; the global random state
                is not used. By default a seed is drawn from the global state.
            first (`int`, defaults to 0): The position of the batch's first image in the larger batch that contains
                it.
            total (`int`, *optional*): The number of images in that larger batch; by default there is no larger one. The
                parts of a batch get the same views as the whole batch.

        Returns:
            `list[Tensor]`: One normalized float32 tensor `(B, C, s, s)` per view.

        Raises:
            ValueError: The batch has a wrong shape, or does not lie within `total` images.
        """
        cropped = None if isinstance(batch, Tensor) else batch
        if cropped is not None and len(cropped) != self.recipe.num_views:
            raise ValueError(f"{len(cropped)} crops per image for {self.recipe.num_views} views of {self.recipe.name}")
        for part in batch if cropped is not None else (batch,):
            if not isinstance(part, Tensor) or part.ndim != 4 or part.shape[1] != self.channels:
                shape = f"shape {tuple(part.shape)}" if isinstance(part, Tensor) else describe(part)
                raise ValueError(f"images of a batch must be tensors of shape (B, {self.channels}, H, W), got {shape}")
        images = len(batch[0]) if cropped is not None else len(batch)
        total = first + images if total is None else total
        if not 0 <= first <= total - images:
            raise ValueError(f"images {first} to {first + images - 1} are not part of a batch of total={total} images")
        seed = int(torch.randint(2**62, ())) if seed is None else seed
        # NumPy's generator, because torch's CPU generator ignores all but the lowest 32 bits of a seed.
        generator = np.random.default_rng(seed % 2**64)
        device = batch[0].device
        views = []
        # Reduced precision would round pixels more coarsely than their 8 bits.
        with torch.autocast(device.type, enabled=False):
            for number, (spec, size) in enumerate(zip(self.recipe.views, self.sizes, strict=True)):
                # Drawn for the whole larger batch, so that the images of a step get the same views however it is split.
                draws = generator.random((total, _DRAWS), dtype=np.float32)
                uniform = torch.from_numpy(draws[first : first + images])
                amounts = None
                if self.channels != 3:
                    draws = generator.random((total, 2, self.channels), dtype=np.float32)
                    amounts = torch.from_numpy(draws[first : first + images])
                if isinstance(batch, Tensor):
                    crop = self._crop_images(batch, uniform, spec, size)
                else:
                    crop = self._take_crops(batch[number], uniform, spec)
                empty = torch.empty(images, self.channels, size, size, device=device)
                views.append(self._finish(crop, uniform, amounts, spec, empty))
        return views

    def _crop_images(self, images: Tensor, uniform: Tensor, spec: ViewSpec, size: int) -> Crop:
        """Return a function that crops whole images."""
        height, width = images.shape[-2:]
        boxes = crop_boxes(uniform[:, :CROP_DRAWS], height, width, spec)
        mirrored = uniform[:, -1] < spec.flip
        columns, rows = resize_taps(boxes, (height, width), size, spec.interpolation, images.device, mirrored)

        def crop(part: slice) -> Tensor:
            taps = (Taps(axis.sources[part], axis.weights[part]) for axis in (columns, rows))
            return resized_crops(images[part], boxes[part], *taps).div_(255).clamp_(0, 1)

        return crop

    def _take_crops(self, crops: Tensor, uniform: Tensor, spec: ViewSpec) -> Crop:
        """Return a function that flips crops made during decoding."""
        flip = Step(lambda chosen: chosen.flip(3), (uniform[:, -1] < spec.flip).tolist())

        def crop(part: slice) -> Tensor:
            return flip(crops[part].float() / 255, part.start)

        return crop

    def _finish(self, crop: Crop, uniform: Tensor, amounts: Tensor | None, spec: ViewSpec, views: Tensor) -> Tensor:
        """Recolour and normalize the crops, and write them into `views`."""
        steps = photometric_steps(uniform[:, CROP_DRAWS:-1], spec, views.device, amounts)
        mean, std = self.mean.to(views.device), self.std.to(views.device)
        for part in _slices(views):
            pixels = crop(part)
            for step in steps:
                pixels = step(pixels, part.start)
            torch.sub(pixels, mean, out=views[part]).div_(std)
        return views


def _channels(name: str, values: Sequence[float]) -> Tensor:
    """Return one number per channel as a tensor `(1, C, 1, 1)`."""
    try:
        numbers = torch.tensor(tuple(values), dtype=torch.float32)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be numbers, one per channel, got {describe(values)}") from None
    if numbers.ndim != 1 or not len(numbers):
        raise ValueError(f"{name} is {list(values)}: it must be numbers, one per channel")
    return numbers.view(1, -1, 1, 1)


def _slices(views: Tensor) -> list[slice]:
    """Return slices of the batch; on the CPU they are small, so that their pixels stay in the cache."""
    length = max(len(views), 1)
    if views.device.type == "cpu":
        length = max(_PIXELS * torch.get_num_threads() // (views.shape[-2] * views.shape[-1]), 1)
    return [slice(start, start + length) for start in range(0, len(views), length)]
