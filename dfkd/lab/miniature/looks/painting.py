"""Painting of drawings in their looks, a batch at a time.

A drawing in one ink begins as coverage, a drawing in its own colours as premultiplied RGBA. Both
become layers, [n, 4, 64, 64] premultiplied RGBA, and layers on grounds become images.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dfkd.lab.miniature.looks.arrangements import ARRANGEMENTS
from dfkd.lab.miniature.looks.colours import shades
from dfkd.lab.miniature.looks.fields import SIZE, Operation, blurred, smooth_noise, warped
from dfkd.lab.miniature.looks.finishes import FINISHES
from dfkd.lab.miniature.looks.grounds import GROUNDS
from dfkd.lab.miniature.looks.layers import flat, over
from dfkd.lab.miniature.looks.look import Look
from dfkd.lab.miniature.looks.materials import MATERIALS
from dfkd.lab.miniature.looks.strokes import STROKES, silhouette


def paint(
    inks: Tensor,
    coloured: Tensor,
    looks: Sequence[Look],
    gen: torch.Generator,
    pose: float = 1.0,
) -> Tensor:
    """Paint drawings; returns images float32 [N + M, 3, 64, 64] in [0, 1].

    Args:
        inks: coverage [N, 64, 64] in [0, 1] of drawings in one ink.
        coloured: premultiplied RGBA [M, 4, 64, 64] of drawings in their own colours.
        looks: one for each drawing, first those of `inks`.
        pose: the `strength` of `posed`.
    """
    # The steps and the random numbers they take have a fixed order, which is part of the recipe:
    # poses of ink, strokes, colours, poses of coloured drawings, arrangements, materials, grounds,
    # finishes.
    n = len(inks)
    ink = posed(inks.unsqueeze(1), gen, pose)
    layers = torch.cat([_inked(ink, looks[:n], gen), posed(coloured, gen, pose)])
    layers = _each(layers, [look.arrangement for look in looks], ARRANGEMENTS, gen)
    layers = _each(layers, [look.material for look in looks], MATERIALS, gen)
    ground = _grounds(looks, gen)
    images = (layers[:, :3] + ground * (1 - layers[:, 3:])).clamp_(0, 1)
    return _each(images, [look.finish for look in looks], FINISHES, gen)


def smudged(images: Tensor, gen: torch.Generator, share: float) -> Tensor:
    """Images [n, 3, 64, 64], of which a random `share` is slightly warped, blurred and stained.

    The generator's decoder makes such errors. No caption mentions them, so the teacher learns to
    ignore them.
    """
    rows = (torch.rand(len(images), generator=gen) < share).nonzero().squeeze(1)
    part = images[rows]
    n = len(part)
    part = warped(part, torch.cat([smooth_noise(n, 8, gen), smooth_noise(n, 8, gen)], 1) * 0.8)
    part = torch.lerp(part, blurred(part), torch.rand(n, 1, 1, 1, generator=gen))
    stains = torch.randn(n, 3, 8, 8, generator=gen) * 0.06
    part = part + F.interpolate(stains, size=(SIZE, SIZE), mode="bilinear")
    return images.index_copy(0, rows, part.clamp(0, 1))


def posed(x: Tensor, gen: torch.Generator, strength: float) -> Tensor:
    """The drawings [n, C, 64, 64] under random affine maps; zeros come in at the border.

    They are turned, scaled, sheared and moved, and a third is mirrored.

    Args:
        strength: factor of all ranges; 0 changes nothing and takes no random numbers.
    """
    n = len(x)
    if n == 0 or strength == 0:
        return x

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(n, generator=gen) * (high - low) + low

    angle = torch.randn(n, generator=gen) * 0.1 * strength
    x_scale = uniform(1 - 0.06 * strength, 1 + 0.35 * strength)
    # Factors from the image to the drawing, so those above 1 make it smaller. Seven of ten drawings
    # keep their aspect ratio.
    other_scale = uniform(1 - 0.06 * strength, 1 + 0.35 * strength)
    y_scale = torch.where(torch.rand(n, generator=gen) < 0.7, x_scale, other_scale)
    x_scale = torch.where(torch.rand(n, generator=gen) < 0.33, -x_scale, x_scale)
    shear = torch.randn(n, generator=gen) * 0.05 * strength
    # In half images, the unit of `affine_grid`.
    far = 0.12 * strength
    x_move, y_move = uniform(-far, far), uniform(-far, far)
    x_row = [x_scale * angle.cos(), -y_scale * (angle + shear).sin(), x_move]
    y_row = [x_scale * angle.sin(), y_scale * angle.cos(), y_move]
    theta = torch.stack([torch.stack(x_row, 1), torch.stack(y_row, 1)], 1)
    grid = F.affine_grid(theta, [n, 1, SIZE, SIZE], align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def _inked(ink: Tensor, looks: Sequence[Look], gen: torch.Generator) -> Tensor:
    """Layers [N, 4, 64, 64] of coverage [N, 1, 64, 64], with the looks' inks, bodies and
    strokes.
    """
    # What the ink encloses is found before the stroke, which could open or close the outline.
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
    base = shades(torch.tensor([look.ground_colour for look in looks], dtype=torch.long), gen)
    table = {name: ground.paint for name, ground in GROUNDS.items()}
    return _each(base.expand(-1, -1, SIZE, SIZE), [look.ground for look in looks], table, gen)


def _each(
    x: Tensor, names: Sequence[str], table: Mapping[str, Operation], gen: torch.Generator
) -> Tensor:
    """Apply to each row the operation with its name, and clamp it to [0, 1]; "" changes nothing.

    Rows with the same name are one batch, because an operation is faster on a batch.
    """
    x = x.clone()
    # Sorted, so that random numbers do not depend on the order of the names in the batch.
    for name in sorted(set(names) - {""}):
        rows = [i for i, other in enumerate(names) if other == name]
        x[rows] = table[name](x[rows], gen).clamp(0, 1)
    return x
