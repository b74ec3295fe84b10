"""Augmented views: what the teacher sees of an image at each step of its synthesis.

Every random number of an image comes from its own seed: its views do not depend on the batch.

They stand for the cutouts of VQGAN-CLIP (nerdyrodent's default, 32 a step), which show
the whole image too. The same are: new draws at each step, affine maps with shifts of up to a tenth
of the side, Gaussian noise, and the mean distance over all views. Different are:

- Our affine maps turn by up to 10 degrees, zoom by up to 15 % and repeat the border. Theirs turn by
  up to 15, shear by up to 5, do not zoom, fill with black, and leave out 30 % of the cutouts.
- Theirs also distort the perspective, jitter colours, erase a rectangle, each in 70 % of cutouts.
- Their noise has a strength between 0 and 0.1 that each cutout draws; ours is `view_noise` for all.
- They first pool the image to the teacher's size, by mean and maximum; we sample it once.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_SHIFT, MAX_ROTATION, MAX_ZOOM = 0.1, math.radians(10), 0.15
"""Ranges of the affine views: share of the side, radians, and relative scale, each + or -."""


class ViewParameters(NamedTuple):
    """The views of one step: B images with V views each, image-major."""

    matrices: Tensor
    """Affine, [B * V, 2, 3] float32."""
    noise: Tensor | None
    """What is added to their pixels, [B * V, 3, S, S]; None adds nothing."""
    size: int
    """S, pixels a side."""


class Views:
    """Affine views of a batch of images, drawn once for all steps."""

    def __init__(
        self,
        seeds: Sequence[int],
        steps: int,
        count: int,
        noise: float,
        size: int,
        device: torch.device,
    ) -> None:
        """`count` views of `size` pixels a side for each of B seeds at each of `steps` steps."""
        self.count, self.noise, self.size = count, noise, size
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        drawn = [torch.rand(steps, max(count, 1), 4, generator=g) for g in self.generators]
        numbers = torch.stack(drawn, dim=1) * 2 - 1
        matrices = _matrices(numbers.view(-1, 4)).to(device)
        self.matrices = matrices.view(steps, len(seeds), -1, 2, 3)

    def select(self, active: Tensor) -> None:
        """Keep only the images where `active` [B] is true."""
        keep = active.nonzero().flatten()
        self.matrices = self.matrices[:, keep]
        self.generators = [self.generators[i] for i in keep.tolist()]

    def draw(self, step: int) -> ViewParameters | None:
        """The views of a step; None shows the pictures themselves. Steps are drawn in order."""
        if self.count == 0:
            return None
        matrices, noise = self.matrices[step].flatten(0, 1), None
        if self.noise:
            shape = (self.count, 3, self.size, self.size)
            grains = [torch.randn(shape, generator=g) for g in self.generators]
            noise = self.noise * torch.cat(grains).to(matrices.device)
        return ViewParameters(matrices, noise, self.size)


def apply_views(pixels: Tensor, drawn: ViewParameters | None) -> Tensor:
    """Views [B * V, 3, S, S] of pixels [B, 3, H, W], image-major; or the pixels."""
    if drawn is None:
        return pixels
    repeated = pixels.repeat_interleave(len(drawn.matrices) // len(pixels), dim=0)
    shape = [len(repeated), 3, drawn.size, drawn.size]
    grid = F.affine_grid(drawn.matrices, shape, align_corners=False)
    seen = F.grid_sample(
        repeated, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return seen if drawn.noise is None else seen + drawn.noise


def _matrices(numbers: Tensor) -> Tensor:
    """Affine matrices [N, 2, 3] from N rows of four numbers in [-1, 1]."""
    angle, scale = numbers[:, 0] * MAX_ROTATION, 1 + numbers[:, 1] * MAX_ZOOM
    shift = numbers[:, 2:] * 2 * MAX_SHIFT
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    rows = [
        torch.stack([cosine, -sine, shift[:, 0]], dim=1),
        torch.stack([sine, cosine, shift[:, 1]], dim=1),
    ]
    return torch.stack(rows, dim=1)
