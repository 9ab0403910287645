"""Projectors, predictors and prototypes: the heads that methods put on an encoder."""

import functools
import itertools
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from .losses import normalize


def mlp(
    *dims: int,
    norm: bool = True,
    last_norm: str | None = None,
    hidden_bias: bool | None = None,
    last_bias: bool | None = None,
    activation: type[nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Build linear layers with batch norm and an activation between them.

    Args:
        dims (`int`): Widths, input first: `mlp(512, 4096, 256)` maps `(B, 512)` to `(B, 256)`.
        norm (`bool`, defaults to `True`): Whether batch norm follows every layer but the last.
        last_norm (`str`, *optional*): Batch norm after the last layer: "affine", or "plain" without scale and shift.
            No norm by default.
        hidden_bias (`bool`, *optional*): Whether the layers before the last have a bias. By default only layers
            without batch norm do.
        last_bias (`bool`, *optional*): Whether the last layer has a bias. By default only without batch norm.
        activation (`type[nn.Module]`, defaults to `nn.ReLU`): Activation between the layers, after the norm.
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
    """K prototypes on the unit sphere, with which embeddings are compared.

    Source: SwAV, Caron et al. 2020, section 3.

    Args:
        dim (`int`): Width d of the embeddings.
        count (`int`): Number of prototypes K.
        bias (`bool`, defaults to `False`): Whether to add a learned number to the scores of each prototype.
    """

    def __init__(self, dim: int, count: int, bias: bool = False):
        super().__init__()
        self.linear = nn.Linear(dim, count, bias=bias)
        self.normalize()

    @torch.no_grad()
    def normalize(self) -> None:
        """Scale every prototype to unit length."""
        # In place, because FSDP gathers from the memory in which it first found the weight.
        self.linear.weight.copy_(nn.functional.normalize(self.linear.weight, dim=1))

    def forward(self, embedding: Tensor) -> Tensor:
        """Return the cosine scores `(B, K)` of embeddings `(B, d)`, with the bias if there is one."""
        return self.linear(nn.functional.normalize(embedding, dim=1))


class DINOHead(nn.Module):
    """An MLP, L2 normalization, and scores against prototypes.

    Source: DINO, Caron et al. 2021, appendix C.

    Args:
        num_features (`int`): Width D of the representation.
        hidden_dim (`int`): Width of the MLP's two hidden layers.
        bottleneck_dim (`int`): Width d of the embedding.
        prototypes (`int`): Number of prototypes K.
        norm_last_layer (`bool`, defaults to `True`): Whether prototypes have unit length; without, their lengths are
            learned and start at 1.
    """

    def __init__(
        self, num_features: int, hidden_dim: int, bottleneck_dim: int, prototypes: int, norm_last_layer: bool = True
    ):
        super().__init__()
        self.mlp = mlp(num_features, hidden_dim, hidden_dim, bottleneck_dim, norm=False, activation=nn.GELU)
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        # Weight normalization as in the paper: the rows' directions and, if they are learned, their lengths.
        self.last_layer = nn.Linear(bottleneck_dim, prototypes, bias=False)
        self.lengths = None if norm_last_layer else nn.Parameter(torch.ones(prototypes, 1))

    @property
    def prototypes(self) -> Tensor:
        """Return the prototypes `(K, d)`."""
        directions = normalize(self.last_layer.weight)
        return directions if self.lengths is None else self.lengths * directions

    def forward(self, representation: Tensor) -> Tensor:
        """Return the scores `(B, K)` of representations `(B, D)`."""
        return self.scores(self.mlp(representation))

    def scores(self, embedding: Tensor) -> Tensor:
        """Return the scores `(B, K)` of embeddings `(B, d)`: their cosines with the prototypes, times the lengths."""
        return F.linear(normalize(embedding), self.prototypes)

    def mean_score(self, embedding: Tensor) -> Tensor:
        """Return the mean `(K,)` of the scores of embeddings `(B, d)`, without forming them."""
        return F.linear(normalize(embedding).mean(dim=0), self.prototypes)

    def freeze_last_layer(self) -> None:
        """Drop the gradient of the prototypes."""
        for parameter in (self.last_layer.weight, self.lengths):
            if parameter is not None:
                parameter.grad = None


def transformer_blocks(width: int, depth: int, heads: int, mlp_ratio: float = 4.0) -> nn.Sequential:
    """Build the blocks of a vision transformer, as decoders and predictors of tokens have them.

    Args:
        width (`int`): Width of the tokens, a multiple of `heads`.
        depth (`int`): Number of blocks.
        heads (`int`): Attention heads of each block.
        mlp_ratio (`float`, defaults to 4.0): Width of the hidden layers, in units of `width`.
    """
    norm: Any = functools.partial(nn.LayerNorm, eps=1e-6)  # timm's type is that of its own norm
    return nn.Sequential(*(Block(width, heads, mlp_ratio, qkv_bias=True, norm_layer=norm) for _ in range(depth)))


def check_transformer(name: str, width: int, heads: int, default: str) -> None:
    """Raise `ValueError` unless tokens of a width have fixed positions and can be shared out to attention heads.

    Args:
        name (`str`): What the hyper-parameters begin with, as in `<name>_dim` and `<name>_heads`.
        width (`int`): Width of the tokens.
        heads (`int`): Attention heads.
        default (`str`): The defaults of both, as in "512 and 16".
    """
    if width % 4 or width % heads:
        raise ValueError(
            f"{name}_dim is {width} and {name}_heads is {heads}: {name}_dim must be a multiple of {name}_heads, and of "
            f"4 for its positions (default {default})"
        )
