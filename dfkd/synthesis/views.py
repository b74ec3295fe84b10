"""Augmented views: the random transformations of an image that the teacher sees at each step.

All random numbers of an image come from its own seed, so its views do not depend on the batch.

The views correspond to the cutouts of VQGAN-CLIP (nerdyrodent's default, 32 per step), which also
show the whole image. Both use new draws at each step, affine maps with shifts of up to a tenth of
the side, Gaussian noise, and the mean distance over all views. The differences are:

- Our affine maps rotate by up to 10 degrees, zoom by up to 15 % and repeat the border. Theirs
  rotate by up to 15 degrees, shear by up to 5, do not zoom, fill with black, and are applied to
  70 % of the cutouts.
- Theirs also distort the perspective, jitter colours and erase a rectangle, each in 70 % of the
  cutouts.
- Their noise has a random strength between 0 and 0.1 for each cutout; ours is `view_noise` for all.
- They first pool the image to the teacher's size, by mean and maximum; we sample it directly.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_SHIFT, MAX_ROTATION, MAX_ZOOM = 0.1, math.radians(10), 0.15
"""Limits of the affine maps in both directions: share of the side, radians, relative scale."""


class ViewParameters(NamedTuple):
    """The views of one step: V views of each of B images; the views of an image are adjacent."""

    matrices: Tensor
    """Affine matrices, float32 [B * V, 2, 3]."""
    noise: Tensor | None
    """Noise for the pixels of the views, float32 [B * V, 3, S, S]; None adds nothing."""
    size: int
    """S, the side of a view in pixels."""


class Views:
    """Random views of a batch of images; the affine maps of all steps are drawn in advance."""

    def __init__(
        self,
        seeds: Sequence[int],
        steps: int,
        count: int,
        noise: float,
        size: int,
        device: torch.device,
    ) -> None:
        """Draw the affine maps.

        Args:
            seeds: one for each of B images.
            steps: number of steps.
            count: views per image and step; 0 shows the images themselves.
            noise: standard deviation of the noise, for pixels in [0, 1].
            size: side of a view in pixels.
            device: where the matrices and the noise are needed.
        """
        self.count, self.noise, self.size = count, noise, size
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        # Drawn on the CPU for all steps at once: every device gets the same numbers, and the loop
        # of a GPU does not wait for a copy at each step.
        drawn = [torch.rand(steps, count, 4, generator=g) for g in self.generators]
        numbers = torch.stack(drawn, dim=1) * 2 - 1
        matrices = _matrices(numbers.flatten(0, 2)).to(device)
        self.matrices = matrices.view(steps, len(seeds), count, 2, 3)

    def draw(self, step: int) -> ViewParameters | None:
        """The views of a step, or None without views; call it once per step, in order."""
        if self.count == 0:
            return None
        matrices, noise = self.matrices[step].flatten(0, 1), None
        if self.noise:
            shape = (self.count, 3, self.size, self.size)
            # Noise for all steps would not fit into memory, so it is drawn step by step.
            samples = [torch.randn(shape, generator=g) for g in self.generators]
            noise = self.noise * torch.cat(samples).to(matrices.device)
        return ViewParameters(matrices, noise, self.size)


def apply_views(pixels: Tensor, parameters: ViewParameters | None) -> Tensor:
    """The views [B * V, 3, S, S] of pixels [B, 3, H, W]; without parameters the pixels."""
    if parameters is None:
        return pixels
    repeated = pixels.repeat_interleave(len(parameters.matrices) // len(pixels), dim=0)
    shape = [len(repeated), 3, parameters.size, parameters.size]
    grid = F.affine_grid(parameters.matrices, shape, align_corners=False)
    views = F.grid_sample(
        repeated, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return views if parameters.noise is None else views + parameters.noise


def _matrices(numbers: Tensor) -> Tensor:
    """Affine matrices [N, 2, 3] from N rows of four numbers in [-1, 1]."""
    angle, scale = numbers[:, 0] * MAX_ROTATION, 1 + numbers[:, 1] * MAX_ZOOM
    # `affine_grid` has coordinates from -1 to 1, so a side is 2 long.
    shift = numbers[:, 2:] * 2 * MAX_SHIFT
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    rows = [
        torch.stack([cosine, -sine, shift[:, 0]], dim=1),
        torch.stack([sine, cosine, shift[:, 1]], dim=1),
    ]
    return torch.stack(rows, dim=1)
