"""Random fields and stripes from which grounds, strokes and finishes are drawn.

Everything is float32 of shape [n, 1, 64, 64] and takes an explicit generator.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SIZE = 64


def uniform(n: int, low: float, high: float, gen: torch.Generator) -> Tensor:
    """One number in [low, high] for each image: [n, 1, 1, 1]."""
    return torch.rand(n, 1, 1, 1, generator=gen) * (high - low) + low


def horizontal() -> Tensor:
    """The x of each pixel, 0 to 63: [1, 1, 1, 64]."""
    return torch.arange(SIZE, dtype=torch.float32).view(1, 1, 1, SIZE)


def vertical() -> Tensor:
    """The y of each pixel, 0 to 63: [1, 1, 64, 1]."""
    return torch.arange(SIZE, dtype=torch.float32).view(1, 1, SIZE, 1)


def grain(n: int, gen: torch.Generator) -> Tensor:
    """White noise of standard deviation 1."""
    return torch.randn(n, 1, SIZE, SIZE, generator=gen)


def clouds(n: int, cells: int, gen: torch.Generator) -> Tensor:
    """Smooth noise of about standard deviation 1, with ``cells`` x ``cells`` independent values."""
    coarse = torch.randn(n, 1, cells, cells, generator=gen)
    return F.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic", align_corners=False)


def streaks(n: int, long: int, short: int, gen: torch.Generator) -> Tensor:
    """Noise stretched along x: ``short`` independent values in a row, ``long`` in a column."""
    coarse = torch.randn(n, 1, long, short, generator=gen)
    return F.interpolate(coarse, size=(SIZE, SIZE), mode="bilinear", align_corners=False)


def stripes(
    n: int, period: tuple[float, float], gen: torch.Generator, share: float = 0.5
) -> Tensor:
    """Parallel stripes of a random direction: 1 in ``share`` of each period, else 0.

    Args:
        period: the range of the period, in pixels.
    """
    angle, width = uniform(n, 0, torch.pi, gen), uniform(n, *period, gen)
    along = horizontal() * angle.cos() + vertical() * angle.sin() + uniform(n, 0, 64, gen)
    return ((along / width) % 1 < share).float()


def lines(axis: Tensor, period: int, offset: int = 0) -> Tensor:
    """One-pixel lines along the other axis, one in each period: 1 on a line, else 0."""
    return ((axis + offset) % period < 1).float()


def blobs(n: int, period: int, radius: float, gen: torch.Generator) -> Tensor:
    """Round dots on a square grid: 1 within ``radius`` pixels of a centre, else 0."""
    x = (horizontal() + uniform(n, 0, period, gen)) % period - period / 2
    y = (vertical() + uniform(n, 0, period, gen)) % period - period / 2
    return (x.square() + y.square() < radius**2).float()


def grown(x: Tensor, pixels: int = 1) -> Tensor:
    """The maximum of each pixel's neighbourhood of ``2 * pixels + 1`` pixels a side."""
    return F.max_pool2d(x, 2 * pixels + 1, 1, pixels)


def shrunk(x: Tensor, pixels: int = 1) -> Tensor:
    """The minimum of each pixel's neighbourhood."""
    return -grown(-x, pixels)


def blurred(x: Tensor, pixels: int = 1) -> Tensor:
    """The mean of each pixel's neighbourhood; the border is repeated outwards."""
    padded = F.pad(x, (pixels,) * 4, mode="replicate")
    return F.avg_pool2d(padded, 2 * pixels + 1, 1)


def shifted(x: Tensor, right: int, down: int) -> Tensor:
    """The images moved by whole pixels; zeros come in at the border."""
    padded = F.pad(x, (max(right, 0), max(-right, 0), max(down, 0), max(-down, 0)))
    top, left = max(-down, 0), max(-right, 0)
    return padded[..., top : top + SIZE, left : left + SIZE]


def bent(x: Tensor, offset: Tensor) -> Tensor:
    """The images sampled at positions moved by ``offset`` [n, 2, 64, 64] (x, y) in pixels."""
    axis = (torch.arange(SIZE, dtype=torch.float32) + 0.5) * 2 / SIZE - 1
    base = torch.stack(torch.meshgrid(axis, axis, indexing="xy"))
    grid = (base + offset * 2 / SIZE).permute(0, 2, 3, 1)
    return F.grid_sample(x, grid.to(x.dtype), padding_mode="border", align_corners=False)
