"""The patch tokens of a vision transformer: which pixels each sees, and how some are left out or replaced."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..messages import first_line
from ..spectra.layers import evaluation_mode
from .probing import unused_parameters

if TYPE_CHECKING:
    from .spatial import SpatialFeatures


@dataclass(frozen=True)
class PatchLayout:
    """Say how a vision transformer divides an image into patches, and orders their tokens.

    Args:
        patch (`int`): The side of a patch in pixels.
        prefix (`int`): The number of tokens before those of the patches: class token and registers.
        width (`int`): The number of channels D of a token.
        pooling_parameters (`tuple[str, ...]`): The parameters of the backbone on which the representation depends, but
            no token.
    """

    patch: int
    prefix: int
    width: int
    pooling_parameters: tuple[str, ...] = ()

    def grid(self, side: int) -> tuple[int, int]:
        """Return the number of rows and columns of patches of an image of `side` × `side` pixels.

        Raises:
            ValueError: The side is not a multiple of the patch.
        """
        if side < self.patch or side % self.patch:
            below = max(side // self.patch, 1) * self.patch
            raise ValueError(
                f"a view of {side} px does not divide into patches of {self.patch} px: pass --image_size, or a size in "
                f"--views, of {below} or {below + self.patch}"
            )
        return side // self.patch, side // self.patch


def find_patches(encoder: "SpatialFeatures") -> PatchLayout:
    """Return the layout of an encoder's patch tokens, after checks with two images that leaving out patches works.

    What is checked holds for any vision transformer: the representation is that of the tokens; tokens follow the order
    in which patches are kept, with their positions; patches that are left out or replaced have no influence, and are
    those of the image in raster order.

    Args:
        encoder ([`SpatialFeatures`]): The encoder.

    Raises:
        ValueError: It is no vision transformer whose patches can be left out.
    """
    try:
        with evaluation_mode(encoder):
            return _checked_layout(encoder)
    except Exception as error:  # networks of other kinds fail in many ways
        raise ValueError(
            f"backbone {encoder.name!r} has no patch tokens that can be left out ({first_line(error)}): pass a vision "
            "transformer, such as --backbone vit_small_patch16_224"
        ) from error


def _checked_layout(encoder: "SpatialFeatures") -> PatchLayout:
    patch, side = patch_side(encoder.patch_embedding()), encoder.image_size
    weights = next(encoder.backbone.parameters())
    generator = torch.Generator().manual_seed(0)
    # On the CPU even where torch builds on another device by default.
    images = torch.randn(2, encoder.channels, side, side, generator=generator, device="cpu")
    images = images.to(weights.device, weights.dtype)
    with torch.enable_grad():
        tokens = encoder.tokens(images)
        pooled = encoder.pool(tokens)
        unused = {*unused_parameters(encoder.backbone, tokens)} - {*unused_parameters(encoder.backbone, pooled)}
    rows, columns = PatchLayout(patch, 0, 0).grid(side)
    count = rows * columns
    prefix = tokens.shape[1] - count
    if tokens.ndim != 3 or prefix < 0:
        raise ValueError(f"its tokens have the shape {tuple(tokens.shape)}, not one for each of {count} patches")
    layout = PatchLayout(patch, prefix, tokens.shape[2], tuple(sorted(unused)))
    if weights.is_meta:  # shapes without values
        return layout
    order = torch.randperm(count, generator=generator, device="cpu").to(weights.device)
    half = order[: max(count // 2, 1)]
    hidden = torch.ones(count, dtype=torch.bool, device=weights.device).index_fill(0, half, False)
    inpainted = torch.where(_pixels(hidden.view(rows, columns), patch), images.flip(0), images)
    zero = weights.new_zeros(layout.width)
    with torch.no_grad():
        ordered = encoder.tokens(images, keep=order.expand(2, -1))
        kept = [encoder.tokens(each, keep=half.expand(2, -1)) for each in (images, inpainted)]
        masked = [encoder.tokens(each, mask=hidden.expand(2, -1), mask_token=zero) for each in (images, inpainted)]
        _require_equal("its representation is not that of its tokens", pooled, encoder(images))
    index = torch.cat([torch.arange(prefix, device=order.device), prefix + order])
    _require_equal("positions do not follow the patches that are kept", ordered, tokens[:, index])
    _require_equal("it sees patches that are left out", *kept)
    _require_equal("it sees patches that are masked", *masked)
    if count > 1 and torch.equal(masked[0], tokens):
        raise ValueError("masking patches changes nothing")
    return layout


def embedding_layer(backbone: nn.Module, name: str) -> nn.Module:
    """Return the layer of a backbone that embeds patches, by the name that its library gives it.

    Raises:
        ValueError: There is no layer of this name.
    """
    layer = next((module for key, module in backbone.named_modules() if key == name), None)
    if layer is None:
        raise ValueError(f"{type(backbone).__name__} has no layer that embeds patches")
    return layer


def patch_side(embedding: nn.Module) -> int:
    """Return the side in pixels of the patches that a layer embeds.

    Raises:
        ValueError: Its convolution does not cut images into square patches.
    """
    convolution = next((m for m in embedding.modules() if isinstance(m, nn.Conv2d)), None)
    if convolution is None or convolution.kernel_size != convolution.stride or len({*convolution.stride}) > 1:
        raise ValueError("its first layer does not cut images into square patches")
    return convolution.stride[0]


def _pixels(hidden: Tensor, patch: int) -> Tensor:
    """Return which pixels `(H, W)` belong to the patches `(rows, columns)` that are hidden."""
    return hidden.repeat_interleave(patch, 0).repeat_interleave(patch, 1)


def _require_equal(otherwise: str, first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape or (first - second).norm() > 1e-3 * second.norm():
        raise ValueError(otherwise)


def gather_tokens(tokens: Tensor, keep: Tensor, prefix: int) -> Tensor:
    """Return the first `prefix` tokens and, of those after them, the ones to keep, in the order of `keep`.

    Args:
        tokens (`Tensor` of shape `(B, prefix + N, D)`): All tokens.
        keep (`Tensor` of shape `(B, K)`): Indices of patches in [0, N).
        prefix (`int`): The number of tokens before those of the patches.

    Returns:
        `Tensor` of shape `(B, prefix + K, D)`.
    """
    index = (keep + prefix)[:, :, None].expand(-1, -1, tokens.shape[2])
    return torch.cat([tokens[:, :prefix], tokens.gather(1, index)], dim=1)


@contextlib.contextmanager
def hooked(module: nn.Module, change: Callable[[Any], Any]) -> Iterator[None]:
    """Change the output of a module within this context.

    Args:
        module (`nn.Module`): The module.
        change: Maps its output to what takes its place.
    """

    def changed(_module: nn.Module, _inputs: tuple, output: Any) -> Any:
        try:
            return change(output)
        except AttributeError:  # it is no tensor
            raise ValueError(f"{type(module).__name__} returns more than the tokens") from None

    hook = module.register_forward_hook(changed)
    try:
        yield
    finally:
        hook.remove()


def replace_patches(embeddings: Tensor, mask: Tensor, mask_token: Tensor, channels_last: bool) -> Tensor:
    """Return the embeddings of patches, with the mask token in place of those that are masked.

    Args:
        embeddings (`Tensor`): What the layer that embeds patches returns: `(B, N, D)`, `(B, rows, columns, D)`, or the
            map of a convolution `(B, D, rows, columns)`.
        mask (`Tensor` of shape `(B, N)`): Which patches are masked, in raster order.
        mask_token (`Tensor` of shape `(D,)`): The mask token.
        channels_last (`bool`): Whether a map has its channels last.
    """
    token = mask_token.to(embeddings.dtype)
    if embeddings.ndim == 4 and not channels_last:
        return torch.where(mask.view(len(mask), 1, *embeddings.shape[2:]), token[:, None, None], embeddings)
    return torch.where(mask.view(*embeddings.shape[:-1], 1), token, embeddings)
