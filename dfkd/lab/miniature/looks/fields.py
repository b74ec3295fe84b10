"""Random fields, patterns and filters from which grounds, strokes and finishes are made.

Fields are float32 [n, 1, 64, 64], or of a shape that broadcasts to it. Filters keep the shape of
what they change, [n, C, 64, 64]. All randomness comes from the generator that a function is given.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

SIZE = 64
"""Width and height of all drawings and images, in pixels."""

Operation = Callable[[Tensor, torch.Generator], Tensor]
"""A stroke, arrangement, material, ground or finish: changes or paints a batch."""


def uniform(n: int, low: float, high: float, gen: torch.Generator) -> Tensor:
    """One number in [low, high) for each image: [n, 1, 1, 1]."""
    return torch.rand(n, 1, 1, 1, generator=gen) * (high - low) + low


def pixel_x() -> Tensor:
    """The x of each pixel, 0 to 63 from left to right: [1, 1, 1, 64]."""
    return torch.arange(SIZE, dtype=torch.float32).view(1, 1, 1, SIZE)


def pixel_y() -> Tensor:
    """The y of each pixel, 0 to 63 from top to bottom: [1, 1, 64, 1]."""
    return torch.arange(SIZE, dtype=torch.float32).view(1, 1, SIZE, 1)


def pixel_centres() -> tuple[Tensor, Tensor]:
    """x and y [64, 64] of the pixels' centres, from -1 to 1 as in `torch.nn.functional.grid_sample`
    without aligned corners.
    """
    axis = (torch.arange(SIZE, dtype=torch.float32) + 0.5) * 2 / SIZE - 1
    x, y = torch.meshgrid(axis, axis, indexing="xy")
    return x, y


def white_noise(n: int, gen: torch.Generator) -> Tensor:
    """Independent normal values of standard deviation 1."""
    return torch.randn(n, 1, SIZE, SIZE, generator=gen)


def smooth_noise(n: int, cells: int, gen: torch.Generator) -> Tensor:
    """Noise interpolated from `cells` x `cells` normal values; standard deviation about 1."""
    coarse = torch.randn(n, 1, cells, cells, generator=gen)
    return F.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic", align_corners=False)


def stretched_noise(n: int, rows: int, columns: int, gen: torch.Generator) -> Tensor:
    """Noise interpolated from `rows` x `columns` normal values.

    With fewer columns than rows it looks like streaks along x.
    """
    coarse = torch.randn(n, 1, rows, columns, generator=gen)
    return F.interpolate(coarse, size=(SIZE, SIZE), mode="bilinear", align_corners=False)


def stripes(
    n: int, period: tuple[float, float], gen: torch.Generator, share: float = 0.5
) -> Tensor:
    """Parallel stripes of a random direction: 1 in `share` of each period, else 0.

    Args:
        period: the range in pixels from which each image draws its period.
    """
    angle, width = uniform(n, 0, torch.pi, gen), uniform(n, *period, gen)
    along = pixel_x() * angle.cos() + pixel_y() * angle.sin() + uniform(n, 0, 64, gen)
    return ((along / width) % 1 < share).float()


def lines(coordinate: Tensor, period: int, offset: int = 0) -> Tensor:
    """1 at one pixel of each period of a coordinate, else 0: `pixel_y` gives horizontal lines."""
    return ((coordinate + offset) % period < 1).float()


def dot_grid(n: int, period: int, radius: float, gen: torch.Generator) -> Tensor:
    """Discs on a square grid with a random offset: 1 within `radius` pixels of a centre, else
    0.
    """
    x = (pixel_x() + uniform(n, 0, period, gen)) % period - period / 2
    y = (pixel_y() + uniform(n, 0, period, gen)) % period - period / 2
    return (x.square() + y.square() < radius**2).float()


def dilated(x: Tensor, pixels: int = 1) -> Tensor:
    """The maximum of each pixel's neighbourhood of `2 * pixels + 1` pixels a side."""
    return F.max_pool2d(x, 2 * pixels + 1, 1, pixels)


def eroded(x: Tensor, pixels: int = 1) -> Tensor:
    """The minimum of each pixel's neighbourhood of `2 * pixels + 1` pixels a side."""
    return -dilated(-x, pixels)


def blurred(x: Tensor, pixels: int = 1) -> Tensor:
    """The mean of each pixel's neighbourhood of `2 * pixels + 1` pixels a side; the border is
    repeated outwards.
    """
    padded = F.pad(x, (pixels,) * 4, mode="replicate")
    return F.avg_pool2d(padded, 2 * pixels + 1, 1)


def pixelated(x: Tensor, cells: int) -> Tensor:
    """The images as `cells` x `cells` squares of one colour, the mean of their pixels."""
    return F.interpolate(F.adaptive_avg_pool2d(x, cells), size=(SIZE, SIZE), mode="nearest")


def shifted(x: Tensor, right: int, down: int) -> Tensor:
    """The images moved by whole pixels; zeros come in at the border."""
    # A move to the right pads on the left and then cuts on the right, and so on.
    padded = F.pad(x, (max(right, 0), max(-right, 0), max(down, 0), max(-down, 0)))
    top, left = max(-down, 0), max(-right, 0)
    return padded[..., top : top + SIZE, left : left + SIZE]


def warped(x: Tensor, offset: Tensor) -> Tensor:
    """The images sampled at positions moved by `offset` [n, 2, 64, 64] (x, y) in pixels."""
    # `grid_sample` measures in half images: 64 pixels are 2.
    grid = (torch.stack(pixel_centres()) + offset * 2 / SIZE).permute(0, 2, 3, 1)
    return F.grid_sample(x, grid.to(x.dtype), padding_mode="border", align_corners=False)
