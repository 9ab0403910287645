"""A batch of images to a batch of views, on whatever device the images are."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from . import cropping, photometric
from .recipes import Recipe, ViewSpec, get_recipe

# The last one decides the flip.
_DRAWS = cropping.DRAWS + photometric.DRAWS + 1


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
        # Reduced precision would round pixels more coarsely than their 8 bits.
        with torch.autocast(device.type, enabled=False):
            pixels = None if cropped else batch.float() / 255
            views = []
            for number, (spec, size) in enumerate(zip(self.recipe.views, self.sizes, strict=True)):
                # For the whole of the larger batch: a step split in any way sees the same views of the same images.
                draws = generator.random((total, _DRAWS), dtype=np.float32)
                uniform = torch.from_numpy(draws[first : first + images])
                if cropped:
                    view = batch[number].float() / 255
                else:
                    boxes = cropping.crop_boxes(uniform[:, : cropping.DRAWS], *pixels.shape[-2:], spec)
                    view = cropping.resized_crops(
                        pixels, boxes.to(device, non_blocking=True), size, spec.interpolation
                    ).clamp_(0, 1)
                views.append(self._finish(view, uniform[:, cropping.DRAWS :], spec))
        return views

    def _finish(self, view: Tensor, uniform: Tensor, spec: ViewSpec) -> Tensor:
        mirrored = (uniform[:, -1] < spec.flip).to(view.device, non_blocking=True)
        view = torch.where(mirrored.view(-1, 1, 1, 1), view.flip(3), view)
        view = photometric.photometric(view, uniform[:, : photometric.DRAWS], spec)
        return view.sub_(self.mean.to(view.device)).div_(self.std.to(view.device))
