"""A batch of images to a batch of views, on whatever device the images are."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from .colour import DRAWS as COLOUR_DRAWS
from .colour import Step, photometric_steps
from .crop import DRAWS as CROP_DRAWS
from .crop import crop_boxes, resize_taps, resized_crops
from .filters import Taps
from .recipes import Recipe, ViewSpec, get_recipe

# From places in the batch to crops of the images that stand there, RGB in [0, 1].
Crop = Callable[[slice], Tensor]

# The last one decides the flip.
_DRAWS = CROP_DRAWS + COLOUR_DRAWS + 1
# Pixels of a view that each thread works on at a time on the CPU: 96 images at 32 px, and single ones at 224 px.
_PIXELS = 98304


class Views:
    """Makes the views of a recipe, every image of the batch with parameters of its own.

    All random numbers of a call are drawn at once, and the same number whatever the recipe's probabilities: leaving
    an operation out leaves the others as they were.

    Args:
        recipe ([`Recipe`] or `str`): What to do.
        image_size (`int`): Side in pixels of views that name no size of their own.
        mean, std (`Sequence[float]`): Of the three channels, on the scale [0, 1]; views are normalized by them.
    """

    def __init__(self, recipe: Recipe | str, image_size: int, mean: Sequence[float], std: Sequence[float]):
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"mean is {list(mean)}, std {list(std)}: each must be 3 numbers, those of std above 0")
        self.recipe = get_recipe(recipe)
        self.sizes = self.recipe.sizes(image_size)
        self.mean = torch.tensor(tuple(mean), dtype=torch.float32).view(1, 3, 1, 1)
        self.std = torch.tensor(tuple(std), dtype=torch.float32).view(1, 3, 1, 1)

    @torch.no_grad()
    def __call__(
        self, batch: Tensor | Sequence[Tensor], seed: int | None = None, first: int = 0, total: int | None = None
    ) -> list[Tensor]:
        """Makes the views.

        Args:
            batch (`Tensor` of shape `(B, 3, H, W)`, or one `(B, 3, s, s)` per view): Images, or crops made at decode,
                uint8. Crops are flipped and recoloured only.
            seed (`int`, *optional*): Determines the views, the same on every device; the global random state is
                neither read nor changed. By default a seed is drawn from the global state.
            first (`int`, defaults to 0): Place of the batch's first image in a larger batch that it is a part of.
            total (`int`, *optional*): Images in that larger batch. Parts of it get the views that it would get as a
                whole. By default there is no larger one.

        Returns:
            `list[Tensor]`: One float32 tensor `(B, 3, s, s)` per view, normalized.

        Raises:
            ValueError: there are not as many sets of crops as views, or the batch is no part of one of `total` images.
        """
        cropped = not isinstance(batch, Tensor)
        if cropped and len(batch) != self.recipe.num_views:
            raise ValueError(f"{len(batch)} crops per image for {self.recipe.num_views} views of {self.recipe.name}")
        images = len(batch[0]) if cropped else len(batch)
        total = first + images if total is None else total
        if not 0 <= first <= total - images:
            raise ValueError(f"images {first} to {first + images - 1} are not part of a batch of total={total} images")
        seed = int(torch.randint(2**62, ())) if seed is None else seed
        # NumPy's, as torch's CPU generator ignores all but the lowest 32 bits of a seed.
        generator = np.random.default_rng(seed % 2**64)
        device = batch[0].device
        views = []
        # Reduced precision would round pixels more coarsely than their 8 bits.
        with torch.autocast(device.type, enabled=False):
            for number, (spec, size) in enumerate(zip(self.recipe.views, self.sizes, strict=True)):
                # For the whole of the larger batch: a step split in any way sees the same views of the same images.
                draws = generator.random((total, _DRAWS), dtype=np.float32)
                uniform = torch.from_numpy(draws[first : first + images])
                if cropped:
                    crop = self._cropped(batch[number], uniform, spec)
                else:
                    crop = self._whole(batch, uniform, spec, size)
                views.append(self._finished(crop, uniform, spec, torch.empty(images, 3, size, size, device=device)))
        return views

    def _whole(self, images: Tensor, uniform: Tensor, spec: ViewSpec, size: int) -> Crop:
        """Makes crops of whole images."""
        boxes = crop_boxes(uniform[:, :CROP_DRAWS], *images.shape[-2:], spec)
        mirrored = uniform[:, -1] < spec.flip
        shape = images.shape[-2:]
        columns, rows = resize_taps(boxes, shape, size, spec.interpolation, images.device, mirrored)

        def crop(part: slice) -> Tensor:
            taps = (Taps(axis.sources[part], axis.weights[part]) for axis in (columns, rows))
            return resized_crops(images[part], boxes[part], *taps).div_(255).clamp_(0, 1)

        return crop

    def _cropped(self, crops: Tensor, uniform: Tensor, spec: ViewSpec) -> Crop:
        """Takes crops made at decode."""
        flip = Step(lambda chosen: chosen.flip(3), (uniform[:, -1] < spec.flip).tolist())

        def crop(part: slice) -> Tensor:
            return flip(crops[part].float() / 255, part.start)

        return crop

    def _finished(self, crop: Crop, uniform: Tensor, spec: ViewSpec, views: Tensor) -> Tensor:
        """Recolours and normalizes the crops, into `views`."""
        steps = photometric_steps(uniform[:, CROP_DRAWS:-1], spec, views.device)
        mean, std = self.mean.to(views.device), self.std.to(views.device)
        for part in _parts(views):
            pixels = crop(part)
            for step in steps:
                pixels = step(pixels, part.start)
            torch.sub(pixels, mean, out=views[part]).div_(std)
        return views


def _parts(views: Tensor) -> list[slice]:
    """What is worked on at a time: on the CPU, few enough views that they stay in the cache between operations."""
    length = max(len(views), 1)
    if views.device.type == "cpu":
        length = max(_PIXELS * torch.get_num_threads() // (views.shape[-2] * views.shape[-1]), 1)
    return [slice(start, start + length) for start in range(0, len(views), length)]
