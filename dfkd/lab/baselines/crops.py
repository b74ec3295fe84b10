"""CMI's two views: random shifts and crops, drawn for each image and differentiable in the pixels.

The published code uses kornia's RandomCrop with a padding of 4 pixels and RandomResizedCrop. Here
both are an affine map with numbers from an explicit generator.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_SHIFT = 1 / 8
"""Largest shift of `random_shift`, as a share of the side: 4 of 32 pixels."""
AREA_RANGE, RATIO_RANGE = (0.25, 1.0), (3 / 4, 4 / 3)
"""Ranges of `random_crop`: share of the image's area, and ratio of width to height."""


def random_shift(images: Tensor, rng: torch.Generator) -> Tensor:
    """Shift images [N, C, S, S] by whole pixels with black outside, and mirror half of them."""
    count, side = len(images), images.shape[-1]
    limit = int(MAX_SHIFT * side)
    # Whole pixels, so that bilinear sampling only copies values and does not blur them.
    shifts = torch.randint(-limit, limit + 1, (count, 2), generator=rng)
    ones = torch.ones(count)
    return _sampled(images, _matrices(ones, ones, 2 * shifts / side, rng), "zeros")


def random_crop(images: Tensor, rng: torch.Generator) -> Tensor:
    """Crop at least a quarter of images [N, C, S, S], resize it to S, and mirror half of them."""
    count = len(images)
    area, ratio = (
        low + (high - low) * torch.rand(count, generator=rng)
        for low, high in (AREA_RANGE, RATIO_RANGE)
    )
    width, height = ((area * r).sqrt().clamp(max=1) for r in (ratio, 1 / ratio))
    # In coordinates from -1 to 1 a window of relative size w may lie within +-(1 - w).
    margin = torch.stack([1 - width, 1 - height], dim=1)
    centres = (2 * torch.rand(count, 2, generator=rng) - 1) * margin
    return _sampled(images, _matrices(width, height, centres, rng), "border")


def _matrices(width: Tensor, height: Tensor, centres: Tensor, rng: torch.Generator) -> Tensor:
    """Affine matrices [N, 2, 3] of windows, half of which are mirrored.

    Args:
        width: of each window [N], as a share of the side.
        height: of each window [N], as a share of the side.
        centres: [N, 2], in coordinates from -1 to 1.
        rng: source of the mirroring.
    """
    mirror = torch.where(torch.rand(len(width), generator=rng) < 0.5, -1.0, 1.0)
    matrices = torch.zeros(len(width), 2, 3)
    matrices[:, 0, 0], matrices[:, 1, 1] = width * mirror, height
    matrices[:, :, 2] = centres
    return matrices


def _sampled(images: Tensor, matrices: Tensor, outside: str) -> Tensor:
    """Images [N, C, S, S] seen through the windows of affine matrices [N, 2, 3].

    Args:
        outside: padding mode of `grid_sample`, for positions outside an image.
    """
    grid = F.affine_grid(matrices.to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=outside, align_corners=False)
