"""Painting of drawings in their looks, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dfkd.miniature.looks.arrangements import ARRANGEMENTS
from dfkd.miniature.looks.colours import shades
from dfkd.miniature.looks.fields import SIZE, bent, blurred, clouds
from dfkd.miniature.looks.finishes import FINISHES
from dfkd.miniature.looks.grounds import GROUNDS
from dfkd.miniature.looks.look import Look
from dfkd.miniature.looks.materials import MATERIALS, flat, over
from dfkd.miniature.looks.strokes import STROKES, silhouette

Operation = Callable[[Tensor, torch.Generator], Tensor]


def paint(
    inks: Tensor,
    coloured: Tensor,
    looks: Sequence[Look],
    gen: torch.Generator,
    pose: float = 1.0,
) -> Tensor:
    """Images [N + M, 3, 64, 64] in [0, 1].

    Args:
        inks: coverage [N, 64, 64] of drawings in one ink.
        coloured: premultiplied RGBA [M, 4, 64, 64] of drawings in their own colours.
        looks: one for each image, first those of ``inks``.
        pose: how far images are moved, turned and scaled at random; 0: not at all.
    """
    n = len(inks)
    ink = posed(inks.unsqueeze(1), gen, pose)
    layers = torch.cat([_inked(ink, looks[:n], gen), posed(coloured, gen, pose)])
    layers = _each(layers, [look.arrangement for look in looks], ARRANGEMENTS, gen)
    layers = _each(layers, [look.material for look in looks], MATERIALS, gen)
    ground = _grounds(looks, gen)
    images = (layers[:, :3] + ground * (1 - layers[:, 3:])).clamp_(0, 1)
    return _each(images, [look.finish for look in looks], FINISHES, gen)


def smudged(images: Tensor, gen: torch.Generator, share: float) -> Tensor:
    """Images of which a ``share`` is a little soft, stained or bent, as a decoder's are.

    No caption tells of it, so the teacher learns to see past a generator's mistakes.
    """
    rows = (torch.rand(len(images), generator=gen) < share).nonzero().squeeze(1)
    part = images[rows]
    n = len(part)
    part = bent(part, torch.cat([clouds(n, 8, gen), clouds(n, 8, gen)], 1) * 0.8)
    part = torch.lerp(part, blurred(part), torch.rand(n, 1, 1, 1, generator=gen))
    stains = torch.randn(n, 3, 8, 8, generator=gen) * 0.06
    part = part + F.interpolate(stains, size=(SIZE, SIZE), mode="bilinear")
    return images.index_copy(0, rows, part.clamp(0, 1))


def posed(x: Tensor, gen: torch.Generator, strength: float) -> Tensor:
    """The drawings under a random affine map; a third is mirrored. Zeros fill the border."""
    n = len(x)
    if n == 0 or strength == 0:
        return x

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(n, generator=gen) * (high - low) + low

    angle = torch.randn(n, generator=gen) * 0.1 * strength
    wide = uniform(1 - 0.06 * strength, 1 + 0.35 * strength)
    # Most drawings keep their aspect ratio.
    narrow = uniform(1 - 0.06 * strength, 1 + 0.35 * strength)
    high = torch.where(torch.rand(n, generator=gen) < 0.7, wide, narrow)
    wide = torch.where(torch.rand(n, generator=gen) < 0.33, -wide, wide)
    shear = torch.randn(n, generator=gen) * 0.05 * strength
    far = 0.12 * strength
    theta = torch.stack(
        [
            torch.stack([wide * angle.cos(), -high * (angle + shear).sin(), uniform(-far, far)], 1),
            torch.stack([wide * angle.sin(), high * angle.cos(), uniform(-far, far)], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta, [n, 1, SIZE, SIZE], align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def _inked(ink: Tensor, looks: Sequence[Look], gen: torch.Generator) -> Tensor:
    """Layers [N, 4, 64, 64] of drawings in the inks and with the strokes of their looks."""
    # Silhouettes come first: other strokes could open or close the outline.
    bodies = torch.tensor([look.body for look in looks], dtype=torch.long)
    filled = (bodies >= 0).nonzero().squeeze(1)
    inside = silhouette(ink[filled]) if len(filled) else ink[filled]
    ink = _each(ink, [look.stroke for look in looks], STROKES, gen)
    inks = torch.tensor([look.ink for look in looks], dtype=torch.long)
    layer = flat(shades(inks, gen), ink)
    body = flat(shades(bodies[filled], gen), inside)
    return layer.index_copy(0, filled, over(layer[filled], body))


def _grounds(looks: Sequence[Look], gen: torch.Generator) -> Tensor:
    """The grounds of the looks: [B, 3, 64, 64] in [0, 1]."""
    base = shades(torch.tensor([look.colour for look in looks], dtype=torch.long), gen)
    ground = base.expand(-1, -1, SIZE, SIZE).contiguous()
    for name, rows in _rows_by_name([look.ground for look in looks]).items():
        ground[rows] = GROUNDS[name].paint(base[rows], gen).clamp(0, 1)
    return ground


def _each(
    x: Tensor, names: Sequence[str], table: Mapping[str, Operation], gen: torch.Generator
) -> Tensor:
    """The images after the operations with their names; "" changes nothing."""
    x = x.clone()
    for name, rows in _rows_by_name(names).items():
        x[rows] = table[name](x[rows], gen).clamp(0, 1)
    return x


def _rows_by_name(names: Sequence[str]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        if name:
            rows.setdefault(name, []).append(i)
    # Sorted, so that the order of random numbers depends on the names alone.
    return dict(sorted(rows.items()))
