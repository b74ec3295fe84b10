"""What a drawing is made of: each material changes its layer before it lies on the ground.

A layer is RGBA with premultiplied colours, float32 [n, 4, 64, 64] in [0, 1].
"""

import torch
from torch import Tensor

from dfkd.lab.miniature.looks.colours import rgb
from dfkd.lab.miniature.looks.fields import (
    Operation,
    blurred,
    dilated,
    dot_grid,
    pixel_x,
    pixel_y,
    shifted,
    smooth_noise,
    stripes,
    uniform,
    white_noise,
)
from dfkd.lab.miniature.looks.layers import flat, mean_colour, over


def _shadow(layer: Tensor, gen: torch.Generator) -> Tensor:
    cast = blurred(shifted(layer[:, 3:], 4, 4), 1)
    return over(layer, flat(rgb("black"), 0.55 * cast))


def _glow(layer: Tensor, gen: torch.Generator) -> Tensor:
    halo = blurred(dilated(layer[:, 3:], 3), 3)
    return over(layer, flat(rgb("yellow"), 0.9 * halo))


def _neon(layer: Tensor, gen: torch.Generator) -> Tensor:
    alpha = layer[:, 3:]
    colour = mean_colour(layer)
    # Without its middle, a line becomes the edges of a tube.
    tube = alpha - 0.8 * blurred(alpha, 2)
    core = torch.lerp(colour, rgb("white"), 0.75)
    halo = flat(colour, 0.75 * blurred(dilated(alpha, 2), 3))
    return over(flat(core, tube.clamp(0, 1)), halo)


def _sticker(layer: Tensor, gen: torch.Generator) -> Tensor:
    cut = dilated(layer[:, 3:], 3)
    sheet = over(flat(rgb("white"), cut), flat(rgb("black"), 0.35 * shifted(cut, 2, 2)))
    return over(layer, sheet)


def _chalk(layer: Tensor, gen: torch.Generator) -> Tensor:
    dust = (0.75 + 0.45 * white_noise(len(layer), gen)).clamp(0, 1)
    return torch.lerp(layer, dilated(layer), 0.5) * dust


def _crayon(layer: Tensor, gen: torch.Generator) -> Tensor:
    n = len(layer)
    wax = (0.9 + 0.9 * smooth_noise(n, 30, gen) + 0.5 * stripes(n, (3, 5), gen)).clamp(0, 1)
    return dilated(layer) * wax


def _watercolour(layer: Tensor, gen: torch.Generator) -> Tensor:
    n = len(layer)
    wash = (0.55 + 0.3 * smooth_noise(n, 6, gen)).clamp(0.15, 1)
    # Pigment gathers at the rim of a wash, which therefore is more opaque than its middle.
    soft = blurred(layer, 1)
    rim = (soft[:, 3:] - blurred(layer[:, 3:], 3)).clamp(min=0)
    return soft * (wash + rim).clamp(0, 1)


def _spray(layer: Tensor, gen: torch.Generator) -> Tensor:
    # Drops are likelier where the spray is denser.
    mist = blurred(dilated(layer, 2), 3)
    spots = (torch.rand(len(layer), 1, 64, 64, generator=gen) < 0.55 * mist[:, 3:] ** 1.5).float()
    colour = mist[:, :3] / mist[:, 3:].clamp(min=1e-3)
    return over(flat(colour, spots), 0.8 * blurred(layer, 1))


def _glossy(layer: Tensor, gen: torch.Generator) -> Tensor:
    curve = 24 + 6 * ((pixel_x() - 32) / 20).square()
    shine = 0.55 * (pixel_y() < curve).float()
    colours, alpha = layer[:, :3], layer[:, 3:]
    return torch.cat([colours + (alpha - colours) * shine, alpha], 1)


def _banded(layer: Tensor, gen: torch.Generator) -> Tensor:
    bands = stripes(len(layer), (5, 8), gen)
    colours, alpha = layer[:, :3], layer[:, 3:]
    return torch.cat([torch.lerp(colours, alpha * rgb("white"), 0.75 * bands), alpha], 1)


def _speckled(layer: Tensor, gen: torch.Generator) -> Tensor:
    dots = dot_grid(len(layer), 6, 1.7, gen)
    colours, alpha = layer[:, :3], layer[:, 3:]
    return torch.cat([torch.lerp(colours, alpha * rgb("yellow"), 0.8 * dots), alpha], 1)


def _rainbow(layer: Tensor, gen: torch.Generator) -> Tensor:
    angle = uniform(len(layer), 0, 2 * torch.pi, gen)
    along = (pixel_x() * angle.cos() + pixel_y() * angle.sin()) / 64 * 2 * torch.pi
    # Red, green and blue are a third of a turn apart, so the hue runs around the circle.
    phases = torch.tensor([0.0, 2.1, 4.2]).view(1, 3, 1, 1)
    alpha = layer[:, 3:]
    return torch.cat([alpha * (0.55 + 0.45 * (1.4 * along + phases).sin()), alpha], 1)


def _extruded(layer: Tensor, gen: torch.Generator) -> Tensor:
    # Darker copies below the drawing, each a pixel further, look like its thickness.
    dark = torch.cat([0.45 * layer[:, :3], layer[:, 3:]], 1)
    block = layer
    for step in range(1, 6):
        block = over(block, shifted(dark, step, step))
    return block


def _worn(layer: Tensor, gen: torch.Generator) -> Tensor:
    n = len(layer)
    return layer * (smooth_noise(n, 20, gen) + 0.4 * white_noise(n, gen) > -0.55).float()


def _glass(layer: Tensor, gen: torch.Generator) -> Tensor:
    rim = layer - 0.75 * blurred(layer, 2)
    return (0.35 * layer + rim.clamp(min=0)).clamp(0, 1)


def _papercut(layer: Tensor, gen: torch.Generator) -> Tensor:
    # From top to bottom: the paper of the drawing's colours, its shadow, a white sheet.
    cut = (dilated(layer[:, 3:]) > 0.3).float()
    colour = layer[:, :3] / layer[:, 3:].clamp(min=0.05)
    sheet = flat(dilated(colour, 2).clamp(0, 1), cut)
    back = flat(rgb("white"), dilated(cut, 2))
    return over(over(sheet, flat(rgb("black"), 0.4 * shifted(cut, 2, 2) * dilated(cut, 2))), back)


MATERIALS: dict[str, Operation] = {
    "shadow": _shadow,
    "glowing": _glow,
    "neon": _neon,
    "sticker": _sticker,
    "chalk": _chalk,
    "crayon": _crayon,
    "watercolour": _watercolour,
    "spray paint": _spray,
    "glossy": _glossy,
    "banded": _banded,
    "speckled": _speckled,
    "rainbow": _rainbow,
    "solid": _extruded,
    "worn": _worn,
    "glass": _glass,
    "papercut": _papercut,
}
"""Word -> material."""
