"""Read how much each patch is attended to in the last block of a vision transformer."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..spectra.layers import evaluation_mode
from .encoder import Encoder

_FUSED = F.scaled_dot_product_attention
_SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax)


class _Recorder(TorchFunctionMode):
    """Keep the last attention among all N tokens, however the network computes it.

    Fused attention has no weights to return: they are computed again from its queries and keys, which are final, with
    rotations and norms.
    """

    def __init__(self, tokens: int):
        super().__init__()
        self.tokens = tokens
        self.weights: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is _FUSED:
            named = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | (kwargs or {})
            query, key = named["query"], named["key"]
            if query.shape[-2] == key.shape[-2] == self.tokens:
                self.weights = _weights(query, key, named.get("attn_mask"), named.get("scale"))
        elif func in _SOFTMAX and result.ndim == 4 and result.shape[-2:] == (self.tokens, self.tokens):
            self.weights = result
        return result


def _weights(query: Tensor, key: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    scores = query.float() @ key.float().mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1)


def attention_maps(encoder: Encoder, images: Tensor) -> Tensor:
    """Return how much of the last block's attention goes to each patch, for each head.

    The attention is that of the class token or, for a network without one, the mean over all patches. The part that
    goes to class token and registers is left out, so that a map sums to 1 or less.

    Source: figure 1 of DINO, Caron et al. 2021.

    Args:
        encoder ([`Encoder`]): A vision transformer. Its mode is restored.
        images (`Tensor` of shape `(B, C, S, S)`): Normalized images.

    Returns:
        `Tensor` of shape `(B, heads, h, w)`: Float32, on the device of the encoder.

    Raises:
        ValueError: The encoder is no vision transformer with attention among all of its tokens.
    """
    layout = encoder.patches
    rows, columns = layout.grid(images.shape[-1])
    recorder = _Recorder(layout.prefix + rows * columns)
    with evaluation_mode(encoder), recorder:
        encoder.tokens(images)
    if recorder.weights is None or len(recorder.weights) != len(images):
        raise ValueError(
            f"backbone {encoder.name!r} has no attention among all of its tokens: pass a vision transformer, such as "
            "vit_small_patch16_224"
        )
    weights = recorder.weights.float()
    received = weights[:, :, 0] if layout.prefix else weights.mean(dim=2)
    return received[..., layout.prefix :].unflatten(-1, (rows, columns))
