"""Where a drawing stands in the picture: each arrangement moves a layer [n, 4, 64, 64]."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dfkd.miniature.looks.fields import SIZE, horizontal, uniform, vertical


def _mapped(layer: Tensor, theta: Tensor) -> Tensor:
    grid = F.affine_grid(theta, list(layer.shape), align_corners=False)
    return F.grid_sample(layer, grid, align_corners=False)


def _turned(layer: Tensor, angle: Tensor, scale: float) -> Tensor:
    """The layer turned by ``angle`` [n, 1, 1, 1] in radians; a scale above 1 makes it smaller."""
    c, s = scale * angle.flatten().cos(), scale * angle.flatten().sin()
    zero = torch.zeros_like(c)
    rows = [torch.stack([c, -s, zero], 1), torch.stack([s, c, zero], 1)]
    return _mapped(layer, torch.stack(rows, 1))


def _zoomed(layer: Tensor, scale: float, reach: float, gen: torch.Generator) -> Tensor:
    """The layer at a place up to ``reach`` from the middle; a larger scale makes it smaller."""
    n = len(layer)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, :, 2] = torch.rand(n, 2, generator=gen) * 2 * reach - reach
    return _mapped(layer, theta)


def _tiled(layer: Tensor, gen: torch.Generator) -> Tensor:
    half = F.avg_pool2d(layer, 2)
    return half.repeat(1, 1, 2, 2)


def _small(layer: Tensor, gen: torch.Generator) -> Tensor:
    return _zoomed(layer, 2.0, 0.8, gen)


def _close(layer: Tensor, gen: torch.Generator) -> Tensor:
    return _zoomed(layer, 0.65, 0.2, gen)


def _tilted(layer: Tensor, gen: torch.Generator) -> Tensor:
    n = len(layer)
    side = (torch.rand(n, 1, 1, 1, generator=gen) < 0.5).float() * 2 - 1
    return _turned(layer, side * uniform(n, 0.45, 0.85, gen), 1.15)


def _upside_down(layer: Tensor, gen: torch.Generator) -> Tensor:
    return layer.flip(2)


def _perspective(layer: Tensor, gen: torch.Generator) -> Tensor:
    n = len(layer)
    axis = (torch.arange(SIZE, dtype=torch.float32) + 0.5) * 2 / SIZE - 1
    x, y = torch.meshgrid(axis, axis, indexing="xy")
    lean = uniform(n, 0.45, 0.65, gen).view(n, 1, 1)
    depth = 1 + lean * (1 - y) / 2
    grid = torch.stack([x * depth, (y + 0.25 * lean) * depth], 3)
    return F.grid_sample(layer, grid, align_corners=False)


def _ring(layer: Tensor, band: Tensor) -> Tensor:
    """A smaller layer within a band [1, 1, 64, 64] of its own mean colour."""
    small = _turned(layer, torch.zeros(len(layer), 1, 1, 1), 1.45)
    weight = layer[:, 3:].sum((2, 3), keepdim=True).clamp(min=1e-3)
    colour = layer[:, :3].sum((2, 3), keepdim=True) / weight
    frame = torch.cat([colour * band, band.expand(len(layer), 1, SIZE, SIZE)], 1)
    return small + frame * (1 - small[:, 3:])


def _badge(layer: Tensor, gen: torch.Generator) -> Tensor:
    radius = ((horizontal() - 31.5).square() + (vertical() - 31.5).square()).sqrt()
    return _ring(layer, ((radius > 26) & (radius < 30)).float())


def _framed(layer: Tensor, gen: torch.Generator) -> Tensor:
    edge = torch.maximum((horizontal() - 31.5).abs(), (vertical() - 31.5).abs())
    return _ring(layer, ((edge > 25) & (edge < 29)).float())


ARRANGEMENTS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "tiled": _tiled,
    "small": _small,
    "close": _close,
    "tilted": _tilted,
    "upside down": _upside_down,
    "perspective": _perspective,
    "badge": _badge,
    "framed": _framed,
}
