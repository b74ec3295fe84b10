"""How a drawing in one ink is drawn: each stroke changes its coverage [n, 1, 64, 64] in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from dfkd.miniature.looks.fields import (
    bent,
    blobs,
    blurred,
    clouds,
    grain,
    grown,
    horizontal,
    lines,
    shifted,
    shrunk,
    stripes,
    uniform,
    vertical,
)


def silhouette(ink: Tensor) -> Tensor:
    """The ink and everything that it encloses, as 0 and 1."""
    empty = np.pad(ink.squeeze(1).numpy() < 0.4, ((0, 0), (1, 1), (1, 1)), constant_values=True)
    in_plane = np.zeros((3, 3, 3), bool)
    in_plane[1] = ndimage.generate_binary_structure(2, 1)
    labels, _ = ndimage.label(empty, in_plane)
    # The border was padded as empty, so the component of the corner is the outside.
    outside = labels == labels[:, :1, :1]
    return torch.from_numpy(~outside[:, 1:-1, 1:-1]).unsqueeze(1).to(ink.dtype)


def _outline(ink: Tensor, gen: torch.Generator) -> Tensor:
    return grown(ink) - shrunk(ink)


def _bold(ink: Tensor, gen: torch.Generator) -> Tensor:
    return grown(ink)


def _thin(ink: Tensor, gen: torch.Generator) -> Tensor:
    return 0.45 * (ink + shrunk(ink))


def _filled(ink: Tensor, gen: torch.Generator) -> Tensor:
    return torch.maximum(ink, silhouette(ink))


def _dashed(ink: Tensor, gen: torch.Generator) -> Tensor:
    return grown(ink) * stripes(len(ink), (6, 9), gen, 0.6)


def _dotted(ink: Tensor, gen: torch.Generator) -> Tensor:
    return grown(ink, 1) * blobs(len(ink), 4, 1.6, gen)


def _hatched(ink: Tensor, gen: torch.Generator) -> Tensor:
    body = silhouette(ink)
    edge = body - shrunk(body)
    return torch.maximum(edge, body * stripes(len(ink), (4, 5), gen, 0.45))


def _double(ink: Tensor, gen: torch.Generator) -> Tensor:
    body = silhouette(ink)
    outer = grown(body, 3) - grown(body, 2)
    return torch.maximum(ink, outer)


def _stencil(ink: Tensor, gen: torch.Generator) -> Tensor:
    body = torch.maximum(ink, silhouette(ink))
    bars = lines(horizontal() // 2, 10, 5) + lines(vertical() // 2, 13, 8)
    return body * (1 - bars.clamp(max=1))


def _rough(ink: Tensor, gen: torch.Generator) -> Tensor:
    noise = 0.22 * clouds(len(ink), 24, gen)
    return ((blurred(ink) + noise > 0.35) & (grown(ink, 2) > 0.3)).float()


def _sketchy(ink: Tensor, gen: torch.Generator) -> Tensor:
    n = len(ink)
    copies = [
        bent(ink, torch.cat([clouds(n, 6, gen), clouds(n, 6, gen)], 1) * 1.4) for _ in range(3)
    ]
    return torch.stack(copies).mean(0) ** 0.7


def _wavy(ink: Tensor, gen: torch.Generator) -> Tensor:
    period = uniform(len(ink), 8, 12, gen)
    wave = 1.5 * (vertical() * 2 * torch.pi / period).sin().expand(len(ink), 1, 64, 64)
    return bent(ink, torch.cat([wave, torch.zeros_like(wave)], 1))


def _brushed(ink: Tensor, gen: torch.Generator) -> Tensor:
    bristles = 0.6 + 0.4 * stripes(len(ink), (3, 4), gen, 0.6)
    return torch.maximum(grown(ink), shifted(ink, 1, 1)) * (bristles + 0.25 * grain(len(ink), gen))


def _contour(ink: Tensor, gen: torch.Generator) -> Tensor:
    body = grown(silhouette(ink))
    return body - shrunk(body, 2)


STROKES: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
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
