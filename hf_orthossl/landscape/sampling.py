"""Views of images, batch by batch, as the vectors whose covariances are taken."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

# Makes the views of a batch of images, `(images, seed) -> [(B, 3, H, W), …]`.
ViewMaker = Callable[[Tensor, int], Sequence[Tensor]]


@torch.no_grad()
def view_batches(
    images: Tensor | Iterable[Tensor],
    views: ViewMaker,
    *,
    draws: int = 1,
    features: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
    batch_size: int = 256,
) -> Iterator[Tensor]:
    """
    Batches `(B, draws · T, D)` of views of images, drawn `draws` times from a pipeline of T views.

    Args:
        images (`Tensor` or iterable of `Tensor`): `(n, 3, H, W)`, or batches of it.
        views (`Callable`): `views(images, seed)` returns T tensors `(B, 3, h, w)`, as
            [`~hf_orthossl.data.Views`] does.
        draws (`int`, *optional*, defaults to 1): Calls per batch, with seeds of their own that follow from `seed`.
        features (`Callable`, *optional*): Maps a view to features `(B, D)`; defaults to its pixels.
        seed (`int`, *optional*, defaults to 0): The same seed gives the same views.
        batch_size (`int`, *optional*, defaults to 256): Images per batch, where `images` is one tensor.

    Raises:
        ValueError: views differ in size where pixels are compared.
    """
    if isinstance(images, Tensor):
        images = images.split(batch_size)
    for number, batch in enumerate(images):
        made = []
        for draw in range(draws):
            hashed = np.random.SeedSequence((seed, number, draw)).generate_state(1, np.uint64)[0]
            made += [view.flatten(1) if features is None else features(view) for view in views(batch, int(hashed))]
        if len({view.shape for view in made}) > 1:
            sizes = sorted({view.shape[1] for view in made})
            raise ValueError(f"views differ in size ({sizes} pixels): compare them in an encoder's features")
        yield torch.stack([view.float().cpu() for view in made], 1)
