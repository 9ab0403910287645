"""Projectors and predictors: multi-layer perceptrons in the few shapes the methods' papers use."""

import itertools

import torch
from torch import Tensor, nn


def mlp(
    *dims: int,
    norm: bool = True,
    last_norm: str | None = None,
    hidden_bias: bool | None = None,
    last_bias: bool | None = None,
    activation: type[nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Linear layers with batch norm and an activation between them, as every projector here is.

    Args:
        dims (`int`): Widths, input first: `mlp(512, 4096, 256)` maps `(B, 512)` to `(B, 256)`.
        norm (`bool`, defaults to `True`): Batch norm after every layer but the last.
        last_norm (`str`, *optional*): "affine" or "plain" (no scale and shift) adds batch norm after the last.
        hidden_bias (`bool`, *optional*): Bias of the layers but the last; only where no norm follows by default.
        last_bias (`bool`, *optional*): Bias of the last layer; only where no norm follows by default.
        activation (defaults to `nn.ReLU`): Between layers, after the norm.
    """
    layers: list[nn.Module] = []
    last = len(dims) - 2
    for i, (width, output) in enumerate(itertools.pairwise(dims)):
        normed = norm if i < last else last_norm is not None
        bias = hidden_bias if i < last else last_bias
        layers.append(nn.Linear(width, output, bias=not normed if bias is None else bias))
        if normed:
            layers.append(nn.BatchNorm1d(output, affine=i < last or last_norm == "affine"))
        if i < last:
            layers.append(activation())
    return nn.Sequential(*layers)


class Prototypes(nn.Module):
    """K directions on the unit sphere that embeddings are scored against (SwAV, Caron et al. 2020, section 3).

    Args:
        dim (`int`): Width d of the embeddings.
        count (`int`): Number of prototypes K.
    """

    def __init__(self, dim: int, count: int):
        super().__init__()
        self.linear = nn.Linear(dim, count, bias=False)
        self.normalize()

    @torch.no_grad()
    def normalize(self) -> None:
        """Puts every prototype back on the unit sphere."""
        # In place: FSDP gathers from the memory that it found the weight in.
        self.linear.weight.copy_(nn.functional.normalize(self.linear.weight, dim=1))

    def forward(self, embedding: Tensor) -> Tensor:
        """Scores `(B, K)` of L2-normalized embeddings `(B, d)`."""
        return self.linear(nn.functional.normalize(embedding, dim=1))
