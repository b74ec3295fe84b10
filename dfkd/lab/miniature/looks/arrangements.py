"""Where a drawing stands in the image: each arrangement moves layers [n, 4, 64, 64].

A layer is premultiplied RGBA, so zeros outside of it are empty. Maps give for each pixel of the
result the position where the layer is sampled: a factor above 1 therefore makes the drawing
smaller.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dfkd.lab.miniature.looks.fields import (
    SIZE,
    Operation,
    pixel_centres,
    pixel_x,
    pixel_y,
    uniform,
)
from dfkd.lab.miniature.looks.layers import flat, mean_colour, over


def _mapped(layer: Tensor, theta: Tensor) -> Tensor:
    """The layer under affine maps `theta` [n, 2, 3] from the result to the layer."""
    grid = F.affine_grid(theta, list(layer.shape), align_corners=False)
    return F.grid_sample(layer, grid, align_corners=False)


def _turned(layer: Tensor, angle: Tensor, scale: float) -> Tensor:
    """The layer turned by `angle` [n, 1, 1, 1] in radians and divided by `scale`."""
    c, s = scale * angle.flatten().cos(), scale * angle.flatten().sin()
    zero = torch.zeros_like(c)
    rows = [torch.stack([c, -s, zero], 1), torch.stack([s, c, zero], 1)]
    return _mapped(layer, torch.stack(rows, 1))


def _zoomed(layer: Tensor, scale: float, reach: float, gen: torch.Generator) -> Tensor:
    """The layer divided by `scale`, moved at random by at most `reach` half images."""
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
    x, y = pixel_centres()
    # Like a sheet that leans back: the higher a pixel, the more the drawing shrinks.
    lean = uniform(n, 0.45, 0.65, gen).view(n, 1, 1)
    depth = 1 + lean * (1 - y) / 2
    grid = torch.stack([x * depth, (y + 0.25 * lean) * depth], 3)
    return F.grid_sample(layer, grid, align_corners=False)


def _with_band(layer: Tensor, band: Tensor) -> Tensor:
    """A smaller layer within a band (1 on it, else 0; [1, 1, 64, 64]) of its mean colour."""
    small = _turned(layer, torch.zeros(len(layer), 1, 1, 1), 1.45)
    frame = flat(mean_colour(layer), band.expand(len(layer), 1, SIZE, SIZE))
    return over(small, frame)


def _badge(layer: Tensor, gen: torch.Generator) -> Tensor:
    radius = ((pixel_x() - 31.5).square() + (pixel_y() - 31.5).square()).sqrt()
    return _with_band(layer, ((radius > 26) & (radius < 30)).float())


def _framed(layer: Tensor, gen: torch.Generator) -> Tensor:
    edge = torch.maximum((pixel_x() - 31.5).abs(), (pixel_y() - 31.5).abs())
    return _with_band(layer, ((edge > 25) & (edge < 29)).float())


ARRANGEMENTS: dict[str, Operation] = {
    "tiled": _tiled,
    "small": _small,
    "close": _close,
    "tilted": _tilted,
    "upside down": _upside_down,
    "perspective": _perspective,
    "badge": _badge,
    "framed": _framed,
}
"""Word -> arrangement."""
