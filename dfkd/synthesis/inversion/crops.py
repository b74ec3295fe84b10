"""Random views of a batch of images, each with its own draw: differentiable in the pixels."""

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_SHIFT = 1 / 8
"""Of `random_shift`, as a share of the side: 4 of 32 pixels."""
AREA_RANGE, RATIO_RANGE = (0.25, 1.0), (3 / 4, 4 / 3)
"""Ranges of `random_crop`: share of the image, and width to height."""


def random_shift(images: Tensor, draws: torch.Generator) -> Tensor:
    """Shifted by whole pixels, an eighth of the side at most, black outside; half are mirrored."""
    count, side = len(images), images.shape[-1]
    reach = int(MAX_SHIFT * side)
    steps = torch.randint(-reach, reach + 1, (count, 2), generator=draws)
    ones = torch.ones(count)
    return _sampled(images, _matrices(ones, ones, 2 * steps / side, draws), "zeros")


def random_crop(images: Tensor, draws: torch.Generator) -> Tensor:
    """A quarter of the image or more, enlarged to its size; half are mirrored."""
    count = len(images)
    area, ratio = (
        low + (high - low) * torch.rand(count, generator=draws)
        for low, high in (AREA_RANGE, RATIO_RANGE)
    )
    width, height = ((area * r).sqrt().clamp(max=1) for r in (ratio, 1 / ratio))
    room = torch.stack([1 - width, 1 - height], dim=1)
    centres = (2 * torch.rand(count, 2, generator=draws) - 1) * room
    return _sampled(images, _matrices(width, height, centres, draws), "border")


def _matrices(width: Tensor, height: Tensor, centres: Tensor, draws: torch.Generator) -> Tensor:
    """Of windows: sizes [N] as shares of the side, centres [N, 2] in -1..1; half are mirrored."""
    mirror = torch.where(torch.rand(len(width), generator=draws) < 0.5, -1.0, 1.0)
    matrices = torch.zeros(len(width), 2, 3)
    matrices[:, 0, 0], matrices[:, 1, 1] = width * mirror, height
    matrices[:, :, 2] = centres
    return matrices


def _sampled(images: Tensor, matrices: Tensor, outside: str) -> Tensor:
    grid = F.affine_grid(matrices.to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=outside, align_corners=False)
