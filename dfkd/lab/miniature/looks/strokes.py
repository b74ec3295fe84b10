"""How a drawing in one ink is drawn: each stroke changes its coverage, float32 [n, 1, 64, 64].

Coverage is 0 without ink and 1 with full ink. `painting.paint` clamps what a stroke returns.
"""

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from dfkd.lab.miniature.looks.fields import (
    Operation,
    blurred,
    dilated,
    dot_grid,
    eroded,
    lines,
    pixel_x,
    pixel_y,
    shifted,
    smooth_noise,
    stripes,
    uniform,
    warped,
    white_noise,
)


def silhouette(ink: Tensor) -> Tensor:
    """The ink and everything that it encloses: 1 inside, else 0; [n, 1, 64, 64] like `ink`."""
    # What is not enclosed is the empty area connected with a margin around the image.
    empty = np.pad(ink.squeeze(1).numpy() < 0.4, ((0, 0), (1, 1), (1, 1)), constant_values=True)
    # One call labels the whole batch: pixels of two images are never neighbours.
    in_plane = np.zeros((3, 3, 3), bool)
    in_plane[1] = ndimage.generate_binary_structure(2, 1)
    labels, _ = ndimage.label(empty, in_plane)
    # The corner lies in the margin, so its component is the outside.
    outside = labels == labels[:, :1, :1]
    return torch.from_numpy(~outside[:, 1:-1, 1:-1]).unsqueeze(1).to(ink.dtype)


def _outline(ink: Tensor, gen: torch.Generator) -> Tensor:
    return dilated(ink) - eroded(ink)


def _bold(ink: Tensor, gen: torch.Generator) -> Tensor:
    return dilated(ink)


def _thin(ink: Tensor, gen: torch.Generator) -> Tensor:
    # Erosion alone would erase lines of one or two pixels.
    return 0.45 * (ink + eroded(ink))


def _filled(ink: Tensor, gen: torch.Generator) -> Tensor:
    return torch.maximum(ink, silhouette(ink))


def _dashed(ink: Tensor, gen: torch.Generator) -> Tensor:
    return dilated(ink) * stripes(len(ink), (6, 9), gen, 0.6)


def _dotted(ink: Tensor, gen: torch.Generator) -> Tensor:
    return dilated(ink, 1) * dot_grid(len(ink), 4, 1.6, gen)


def _hatched(ink: Tensor, gen: torch.Generator) -> Tensor:
    body = silhouette(ink)
    edge = body - eroded(body)
    return torch.maximum(edge, body * stripes(len(ink), (4, 5), gen, 0.45))


def _double(ink: Tensor, gen: torch.Generator) -> Tensor:
    body = silhouette(ink)
    outer = dilated(body, 3) - dilated(body, 2)
    return torch.maximum(ink, outer)


def _stencil(ink: Tensor, gen: torch.Generator) -> Tensor:
    body = torch.maximum(ink, silhouette(ink))
    bars = lines(pixel_x() // 2, 10, 5) + lines(pixel_y() // 2, 13, 8)
    return body * (1 - bars.clamp(max=1))


def _rough(ink: Tensor, gen: torch.Generator) -> Tensor:
    # Noise before the threshold frays the edge; the second condition allows no spots away from it.
    noise = 0.22 * smooth_noise(len(ink), 24, gen)
    return ((blurred(ink) + noise > 0.35) & (dilated(ink, 2) > 0.3)).float()


def _sketchy(ink: Tensor, gen: torch.Generator) -> Tensor:
    n = len(ink)
    copies = [
        warped(ink, torch.cat([smooth_noise(n, 6, gen), smooth_noise(n, 6, gen)], 1) * 1.4)
        for _ in range(3)
    ]
    # The exponent darkens what only one of the three copies covers.
    return torch.stack(copies).mean(0) ** 0.7


def _wavy(ink: Tensor, gen: torch.Generator) -> Tensor:
    period = uniform(len(ink), 8, 12, gen)
    wave = 1.5 * (pixel_y() * 2 * torch.pi / period).sin().expand(len(ink), 1, 64, 64)
    return warped(ink, torch.cat([wave, torch.zeros_like(wave)], 1))


def _brushed(ink: Tensor, gen: torch.Generator) -> Tensor:
    bristles = 0.6 + 0.4 * stripes(len(ink), (3, 4), gen, 0.6)
    trail = torch.maximum(dilated(ink), shifted(ink, 1, 1))
    return trail * (bristles + 0.25 * white_noise(len(ink), gen))


def _contour(ink: Tensor, gen: torch.Generator) -> Tensor:
    body = dilated(silhouette(ink))
    return body - eroded(body, 2)


STROKES: dict[str, Operation] = {
    "outline": _outline,
    "bold": _bold,
    "thin": _thin,
    "filled": _filled,
    "dashed": _dashed,
    "dotted": _dotted,
    "hatched": _hatched,
    "doubled": _double,
    "stencil": _stencil,
    "rough": _rough,
    "sketchy": _sketchy,
    "wavy": _wavy,
    "brush": _brushed,
    "contour": _contour,
}
"""Word -> stroke."""
