"""Tables of positions of transformers models, resampled to another number of positions."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def resample_table(key: str, weight: Tensor, wanted: torch.Size, last: int = 0) -> Tensor | None:
    """Return a table of positions in another shape, or `None` if what it holds is not known.

    Args:
        key (`str`): The name of the parameter.
        weight (`Tensor`): The table.
        wanted (`torch.Size`): Its shape for another image size.
        last (`int`, defaults to 0): The number of tokens without a position after the grid (YOLOS's detection tokens).
    """
    name = key.rpartition(".")[2]
    if weight.ndim != len(wanted):
        return None
    if name == "relative_position_bias_table":  # BEiT: (2h−1)·(2w−1) differences and 3 for the class token, × heads
        return _relative(weight, wanted)
    if name in ("rel_pos_h", "rel_pos_w"):  # SAM: differences along one side × width of a head
        return F.interpolate(weight.T[None], size=wanted[0], mode="linear")[0].T
    if name == "attention_biases":  # LeViT: heads × differences of a square
        table = _grid(weight[..., None], torch.Size((*wanted, 1)), 0)
        return None if table is None else table[..., 0]
    if weight.ndim == 4 and "pos_embed" in name:  # SAM: (1, H, W, C)
        return _resize(weight.permute(0, 3, 1, 2), (wanted[1], wanted[2])).permute(0, 2, 3, 1)
    if "position_embedding" in key or "pos_embed" in name:  # (…, N, C)
        return _grid(weight, wanted, last)
    return None


def _grid(weight: Tensor, wanted: torch.Size, last: int) -> Tensor | None:
    """Resample tokens `(…, N, C)` of a square grid, before and after which others have no position."""
    own, other = weight.shape[-2] - last, wanted[-2] - last
    # A class token, registers: as many as leave squares of both.
    first = next((n for n in range(own) if math.isqrt(own - n) ** 2 == own - n and _is_square(other - n)), None)
    if first is None or weight.shape[-1] != wanted[-1]:
        return None
    side, new = math.isqrt(own - first), math.isqrt(other - first)
    tokens = weight.reshape(-1, *weight.shape[-2:])
    places = tokens[:, first:own].transpose(1, 2).unflatten(2, (side, side))
    places = _resize(places, (new, new)).flatten(2).transpose(1, 2)
    return torch.cat([tokens[:, :first], places, tokens[:, own:]], dim=1).reshape(wanted)


def _relative(weight: Tensor, wanted: torch.Size) -> Tensor | None:
    extra = 3
    if not (_is_square(len(weight) - extra) and _is_square(wanted[0] - extra)):
        return None
    side, new = math.isqrt(len(weight) - extra), math.isqrt(wanted[0] - extra)
    places = weight[:-extra].T.reshape(1, -1, side, side)
    return torch.cat([_resize(places, (new, new)).flatten(2)[0].T, weight[-extra:]])


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize `(B, C, H, W)` as ViT, DINOv2 and BEiT do, bicubic."""
    return F.interpolate(maps, size=size, mode="bicubic", align_corners=False)


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number


def sincos_positions(rows: int, columns: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """Return fixed positions of patches: sines and cosines of their column, then of their row.

    Frequencies are 10,000^(−4i/D) for i in [0, D/4).

    Source: MAE, He et al. 2022, appendix A.1; MoCo v3, Chen et al. 2021.

    Args:
        rows (`int`): Rows of patches.
        columns (`int`): Columns of patches.
        width (`int`): The width D of a token, a multiple of 4.
        device (`torch.device`, defaults to `"cpu"`): Where the positions are needed.

    Returns:
        `Tensor` of shape `(rows·columns, D)` in float64.
    """
    frequencies = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64, device=device) / (width // 4))
    halves = []
    for count in (columns, rows):
        angles = torch.arange(count, dtype=torch.float64, device=device)[:, None] * frequencies
        halves.append(torch.cat([angles.sin(), angles.cos()], dim=1))
    across, down = halves
    return torch.cat([across.repeat(rows, 1), down.repeat_interleave(columns, 0)], dim=1)
