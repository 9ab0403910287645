"""Compute the full-batch loss with the memory of a small batch, by recomputing activations chunk by chunk."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ..distributed.sync_batchnorm import is_synchronized


class ChunkedEncoder(nn.Module):
    """An encoder that stores the activations of one chunk of the batch at a time.

    The forward pass stores only the inputs and outputs of the chunks; heads and loss see the whole batch; the backward
    pass runs the encoder on each chunk again, with the same random numbers, and computes its gradient. Loss and
    gradient are those of the whole batch, for a third more time in the encoder, with one exception: batch norm in the
    encoder takes its statistics from each chunk (over all processes, if synchronized). Running statistics are updated
    once per chunk, and not again when it is recomputed.

    Source: Gao, Zhang, Han & Callan, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021,
    arXiv 2101.06983; here by checkpointing.

    Args:
        encoder ([`Encoder`]): Maps `(n, C, H, W)` to `(n, D)`.
        size (`int`): Maximum number of images in a chunk, at least 1; the sizes of chunks differ by one at most.

    Raises:
        ValueError: If `size` is below 1.
    """

    encoder: Any

    def __init__(self, encoder: nn.Module, size: int):
        super().__init__()
        if size < 1:
            raise ValueError(f"gradient_cache is {size}: the number of images in a chunk must be 1 or more")
        self.encoder = encoder
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        """Return the representations `(B, D)` of one view `(B, C, H, W)` of the whole batch.

        Raises:
            ValueError: If a chunk has a single image and the encoder's batch norm is not synchronized.
        """
        return self._chunked(self.encoder, images)

    def tokens(
        self,
        images: Tensor,
        *,
        keep: Tensor | None = None,
        mask: Tensor | None = None,
        mask_token: Tensor | None = None,
    ) -> Tensor:
        """Return the tokens `(B, prefix + N, D)` of the whole batch, see [`Encoder.tokens`]."""

        def encode(images: Tensor, keep: Tensor | None, mask: Tensor | None) -> Tensor:
            return self.encoder.tokens(images, keep=keep, mask=mask, mask_token=mask_token)

        return self._chunked(encode, images, keep, mask)

    def feature_map(self, images: Tensor, *, mask: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
        """Return the last feature map `(B, D, h, w)` of the whole batch, see [`Encoder.feature_map`]."""

        def encode(images: Tensor, mask: Tensor | None) -> Tensor:
            return self.encoder.feature_map(images, mask=mask, mask_token=mask_token)

        return self._chunked(encode, images, mask)

    def pool(self, tokens: Tensor) -> Tensor:
        """Return the representations `(B, D)` of tokens."""
        return self.encoder.pool(tokens)

    def representation_and_map(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return representations `(B, D)` and features `(B, d, h, w)` of the whole batch, of one pass.

        Raises:
            ValueError: If the encoder has no feature map, or a chunk is too small.
        """
        return self._chunked(self.encoder.representation_and_map, images)

    def _chunked(self, encode: Callable[..., Any], images: Tensor, *beside: Tensor | None) -> Any:
        """Return what `encode` makes of the images, and of the rows of each tensor beside them, chunk by chunk."""
        if not torch.is_grad_enabled():
            return encode(images, *beside)
        self.check(len(images))
        count = -(-len(images) // self.size)
        parts = [(None,) * count if rows is None else rows.tensor_split(count) for rows in (images, *beside)]
        outputs = [
            checkpoint(encode, *chunk, use_reentrant=False, context_fn=self._contexts)
            for chunk in zip(*parts, strict=True)
        ]
        if isinstance(outputs[0], tuple):
            return tuple(torch.cat(rows) for rows in zip(*outputs, strict=True))
        return torch.cat(outputs)

    def check(self, images: int) -> None:
        """Reject a batch of this many images if it has a chunk that is too small for the encoder's batch norm.

        Raises:
            ValueError: A chunk has a single image and the encoder's batch norm is not synchronized.
        """
        if 1 < images < 2 * -(-images // self.size) and any(map(_needs_two_images, self.encoder.modules())):
            raise ValueError(
                f"gradient_cache is {self.size}: in a batch of {images}, one chunk has a single image, too few for the "
                f"statistics of the encoder's batch norm: pass --gradient_cache {-(-images // (images // 2))} or more"
            )

    def _contexts(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        return contextlib.nullcontext(), self._frozen_running_statistics()

    @contextlib.contextmanager
    def _frozen_running_statistics(self) -> Iterator[None]:
        norms = [module for module in self.encoder.modules() if isinstance(module, _BatchNorm)]
        saved = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
        # Set the momentum to 0 instead of disabling tracking, so that a layer saves the same tensors for backward.
        for norm in norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None
        try:
            yield
        finally:
            for norm, (momentum, batches) in zip(norms, saved, strict=True):
                norm.momentum, norm.num_batches_tracked = momentum, batches


def _needs_two_images(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.training and not is_synchronized(module)
