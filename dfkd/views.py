"""Augmented views: what the teacher sees of an image at each step of its synthesis.

Every random number of an image comes from its own seed: its views do not depend on the batch.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

SHIFT, TURN, ZOOM = 0.1, math.radians(10), 0.15
"""Ranges of the affine views: share of the side, radians, and relative scale, each + or -."""


class Views:
    """Affine views of a batch of images, drawn once for all steps."""

    def __init__(
        self, seeds: Sequence[int], steps: int, count: int, noise: float, size: int
    ) -> None:
        """`count` views of `size` pixels a side for each of B seeds at each of `steps` steps."""
        self.count, self.noise, self.size = count, noise, size
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        drawn = [torch.rand(steps, max(count, 1), 4, generator=g) for g in self.generators]
        self.numbers = torch.stack(drawn, dim=1) * 2 - 1

    def select(self, active: Tensor) -> None:
        """Keep only the images where `active` [B] is true."""
        keep = active.nonzero().flatten().tolist()
        self.numbers = self.numbers[:, keep]
        self.generators = [self.generators[i] for i in keep]

    def show(self, pixels: Tensor, step: int) -> Tensor:
        """Views [B * count, 3, size, size] of pixels [B, 3, H, W], image-major; or the pixels."""
        if self.count == 0:
            return pixels
        numbers = self.numbers[step].reshape(-1, 4)
        matrices = _matrices(numbers).to(pixels)
        repeated = pixels.repeat_interleave(self.count, dim=0)
        shape = [len(repeated), 3, self.size, self.size]
        grid = F.affine_grid(matrices, shape, align_corners=False)
        seen = F.grid_sample(
            repeated, grid, mode="bilinear", padding_mode="border", align_corners=False
        )
        if self.noise:
            grains = [torch.randn(self.count, *shape[1:], generator=g) for g in self.generators]
            seen = seen + self.noise * torch.cat(grains).to(seen)
        return seen


def _matrices(numbers: Tensor) -> Tensor:
    """Affine matrices [N, 2, 3] from N rows of four numbers in [-1, 1]."""
    angle, scale = numbers[:, 0] * TURN, 1 + numbers[:, 1] * ZOOM
    shift = numbers[:, 2:] * 2 * SHIFT
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    rows = [
        torch.stack([cosine, -sine, shift[:, 0]], dim=1),
        torch.stack([sine, cosine, shift[:, 1]], dim=1),
    ]
    return torch.stack(rows, dim=1)
