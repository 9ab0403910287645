"""Choose the patches of an image to mask, and cut images into patches."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def random_masks(
    generators: Sequence[np.random.Generator], patches: int, kept: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Draw which patches of each image are kept, and which are masked, uniformly without replacement.

    Source: MAE, He et al. 2022, section 3.

    Args:
        generators (sequence of `np.random.Generator`): One for each of the B images.
        patches (`int`): The number N of patches of an image.
        kept (`int`): The number K of patches to keep.
        device (`torch.device`): Where the indices are needed.

    Returns:
        `tuple[Tensor, Tensor]`: Indices in raster order, in increasing order: of the patches that are kept `(B, K)`,
        and of those that are masked `(B, N − K)`.
    """
    orders = np.stack([generator.permutation(patches) for generator in generators])
    keep, masked = np.sort(orders[:, :kept], axis=1), np.sort(orders[:, kept:], axis=1)
    return torch.from_numpy(keep).to(device), torch.from_numpy(masked).to(device)


def below(share: float) -> float:
    """Return a share rounded down to three decimals, for the remedy in an error line."""
    return math.floor(1000 * share) / 1000


def select(values: Tensor, index: Tensor) -> Tensor:
    """Return some of the patches of each image.

    Args:
        values (`Tensor` of shape `(B, N, D)`): What is known of each patch.
        index (`Tensor` of shape `(B, M)`): Indices of patches.

    Returns:
        `Tensor` of shape `(B, M, D)`.
    """
    return values.gather(1, index[:, :, None].expand(-1, -1, values.shape[2]))


def patchify(images: Tensor, patch: int) -> Tensor:
    """Return the pixels of each patch, row by row, the channels of a pixel beside each other.

    Args:
        images (`Tensor` of shape `(B, C, H, W)`): Images.
        patch (`int`): The side p of a patch in pixels, of which H and W are multiples.

    Returns:
        `Tensor` of shape `(B, N, p·p·C)`: The patches in raster order.
    """
    cells = images.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # (B, C, rows, p, columns, p)
    return cells.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def block_mask(
    generator: np.random.Generator, grid: tuple[int, int], budget: float, smallest: float, aspect: float
) -> np.ndarray:
    """Return a mask made of rectangles that may overlap.

    Rectangles of random area and aspect ratio are added at random places until `budget` patches are masked, or until
    ten in a row do not fit; so fewer may be masked, and never more. No rectangle is as high or as wide as the grid.

    Source: BEiT, Bao et al. 2022, algorithm 1, as in the code of iBOT and DINOv2.

    Args:
        generator (`np.random.Generator`): The source of randomness.
        grid (`tuple[int, int]`): Rows and columns of patches.
        budget (`float`): The number of patches to mask; 0 masks none.
        smallest (`float`): The least area of a rectangle in patches, while so many may still be masked.
        aspect (`float`): The least ratio of height to width, in (0, 1]; the largest is its reciprocal.

    Returns:
        `np.ndarray` of shape `(rows, columns)`: `True` where a patch is masked.
    """
    rows, columns = grid
    mask = np.zeros(grid, dtype=bool)
    masked, failed = 0, 0
    while masked < budget and failed < 10:
        left = budget - masked
        area = smallest + (left - smallest) * generator.random()
        ratio = math.exp((2 * generator.random() - 1) * math.log(1 / aspect))
        height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        added = 0
        if height < rows and width < columns:
            top = generator.integers(rows - height + 1)
            start = generator.integers(columns - width + 1)
            block = mask[top : top + height, start : start + width]
            added = block.size - int(block.sum())
        if 0 < added <= left:
            block[:] = True
            masked, failed = masked + added, 0
        else:
            failed += 1
    return mask


def scattered_mask(generator: np.random.Generator, grid: tuple[int, int], budget: float) -> np.ndarray:
    """Return a mask of single patches, drawn without replacement.

    Args:
        generator (`np.random.Generator`): The source of randomness.
        grid (`tuple[int, int]`): Rows and columns of patches.
        budget (`float`): The number of patches to mask, rounded down.

    Returns:
        `np.ndarray` of shape `(rows, columns)`: `True` where a patch is masked.
    """
    patches = grid[0] * grid[1]
    mask = np.zeros(patches, dtype=bool)
    mask[generator.choice(patches, int(budget), replace=False)] = True
    return mask.reshape(grid)


@dataclass(frozen=True)
class Blocks:
    """Multi-block masks: some target blocks and one context block, whose patches in target blocks are left out.

    Source: I-JEPA, Assran et al. 2023, section 3.

    Args:
        grid (`tuple[int, int]`): Rows and columns of patches.
        target (`tuple[int, int]`): Height and width of each target block, in patches.
        context (`tuple[int, int]`): Height and width of the context block, in patches.
        targets (`int`): Number of target blocks, which may overlap.
    """

    grid: tuple[int, int]
    target: tuple[int, int]
    context: tuple[int, int]
    targets: int

    def place(self, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which patches are context, and the first row and column of each target block.

        Args:
            draws (`np.ndarray` of shape `(B, 1 + targets, 2)`): Uniform numbers in [0, 1), from which rows and columns
                follow: of the context block first.

        Returns:
            `tuple[np.ndarray, np.ndarray]`: Masks of the context `(B, rows, columns)`, and corners `(B, targets, 2)`.
        """
        sizes = np.array([self.context] + [self.target] * self.targets)
        corners = (draws * (np.array(self.grid) - sizes + 1)).astype(np.int64)
        covered = []
        for axis, count in enumerate(self.grid):
            place = np.arange(count) - corners[:, :, axis, None]
            covered.append((place >= 0) & (place < sizes[:, axis, None]))
        blocks = covered[0][:, :, :, None] & covered[1][:, :, None, :]
        return blocks[:, 0] & ~blocks[:, 1:].any(axis=1), corners[:, 1:]

    def draw(self, generators: Sequence[np.random.Generator], kept: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Draw the blocks of each image anew until its context has `kept` patches, and keep so many of them at random.

        Args:
            generators (sequence of `np.random.Generator`): One for each of the B images.
            kept (`int`): The number K of patches of a context, which some place of the blocks leaves.
            device (`torch.device`): Where the indices are needed.

        Returns:
            `tuple[Tensor, Tensor]`: Indices in raster order, in increasing order: of the context `(B, K)`, and of the
            patches of each target block `(B, targets, M)`.
        """
        contexts, corners = np.zeros((len(generators), *self.grid), bool), np.zeros((len(generators), self.targets, 2))
        waiting = np.arange(len(generators))
        while len(waiting):
            draws = np.stack([generators[int(image)].random((1 + self.targets, 2)) for image in waiting])
            contexts[waiting], corners[waiting] = self.place(draws)
            waiting = waiting[contexts[waiting].sum(axis=(1, 2)) < kept]
        flat = contexts.reshape(len(generators), -1)
        # Patches of the context in random order come first.
        ranks = np.stack([generator.random(flat.shape[1]) for generator in generators]) + ~flat
        keep = np.sort(np.argsort(ranks, axis=1)[:, :kept], axis=1)
        rows, columns = (np.arange(size) for size in self.target)
        offsets = (rows[:, None] * self.grid[1] + columns).ravel()
        first = (corners[:, :, 0] * self.grid[1] + corners[:, :, 1]).astype(np.int64)
        return torch.from_numpy(keep).to(device), torch.from_numpy(first[:, :, None] + offsets).to(device)


def block_size(
    generator: np.random.Generator,
    grid: tuple[int, int],
    scale: tuple[float, float],
    aspect: tuple[float, float] = (1.0, 1.0),
) -> tuple[int, int]:
    """Draw the height and width in patches of a block.

    Args:
        generator (`np.random.Generator`): The source of randomness.
        grid (`tuple[int, int]`): Rows and columns of patches.
        scale (`tuple[float, float]`): Range of the block's share of all patches.
        aspect (`tuple[float, float]`, defaults to squares): Range of height divided by width.
    """
    area, ratio = int(math.prod(grid) * generator.uniform(*scale)), generator.uniform(*aspect)
    sides = (round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio)))
    return min(max(sides[0], 1), grid[0]), min(max(sides[1], 1), grid[1])
