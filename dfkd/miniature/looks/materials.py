"""What a drawing is made of: each material changes its layer before it lies on the ground.

A layer is RGBA with premultiplied colours, float32 [n, 4, 64, 64] in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dfkd.miniature.looks.colours import rgb
from dfkd.miniature.looks.fields import (
    blobs,
    blurred,
    clouds,
    grain,
    grown,
    horizontal,
    shifted,
    stripes,
    uniform,
    vertical,
)


def over(top: Tensor, bottom: Tensor) -> Tensor:
    """One premultiplied layer on another."""
    return top + bottom * (1 - top[:, 3:])


def flat(colour: Tensor, alpha: Tensor) -> Tensor:
    """A layer of one colour [n or 1, 3, 1, 1] with coverage ``alpha`` [n, 1, 64, 64]."""
    return torch.cat([colour * alpha, alpha], 1)


def _shadow(layer: Tensor, gen: torch.Generator) -> Tensor:
    cast = blurred(shifted(layer[:, 3:], 4, 4), 1)
    return over(layer, flat(rgb("black"), 0.55 * cast))


def _glow(layer: Tensor, gen: torch.Generator) -> Tensor:
    halo = blurred(grown(layer[:, 3:], 3), 3)
    return over(layer, flat(rgb("yellow"), 0.9 * halo))


def _neon(layer: Tensor, gen: torch.Generator) -> Tensor:
    alpha = layer[:, 3:]
    colour = (layer[:, :3].sum((2, 3)) / alpha.sum((2, 3)).clamp(min=1e-3))[..., None, None]
    tube = alpha - 0.8 * blurred(alpha, 2)
    core = torch.lerp(colour, rgb("white"), 0.75)
    halo = flat(colour, 0.75 * blurred(grown(alpha, 2), 3))
    return over(flat(core, tube.clamp(0, 1)), halo)


def _sticker(layer: Tensor, gen: torch.Generator) -> Tensor:
    cut = grown(layer[:, 3:], 3)
    sheet = over(flat(rgb("white"), cut), flat(rgb("black"), 0.35 * shifted(cut, 2, 2)))
    return over(layer, sheet)


def _chalk(layer: Tensor, gen: torch.Generator) -> Tensor:
    dust = (0.75 + 0.45 * grain(len(layer), gen)).clamp(0, 1)
    return torch.lerp(layer, grown(layer), 0.5) * dust


def _crayon(layer: Tensor, gen: torch.Generator) -> Tensor:
    n = len(layer)
    wax = (0.9 + 0.9 * clouds(n, 30, gen) + 0.5 * stripes(n, (3, 5), gen)).clamp(0, 1)
    return grown(layer) * wax


def _watercolour(layer: Tensor, gen: torch.Generator) -> Tensor:
    n = len(layer)
    wash = (0.55 + 0.3 * clouds(n, 6, gen)).clamp(0.15, 1)
    soft = blurred(layer, 1)
    rim = (soft[:, 3:] - blurred(layer[:, 3:], 3)).clamp(min=0)
    return soft * (wash + rim).clamp(0, 1)


def _spray(layer: Tensor, gen: torch.Generator) -> Tensor:
    mist = blurred(grown(layer, 2), 3)
    spots = (torch.rand(len(layer), 1, 64, 64, generator=gen) < 0.55 * mist[:, 3:] ** 1.5).float()
    colour = mist[:, :3] / mist[:, 3:].clamp(min=1e-3)
    return over(flat(colour, spots), 0.8 * blurred(layer, 1))


def _glossy(layer: Tensor, gen: torch.Generator) -> Tensor:
    curve = 24 + 6 * ((horizontal() - 32) / 20).square()
    shine = 0.55 * (vertical() < curve).float()
    colours, alpha = layer[:, :3], layer[:, 3:]
    return torch.cat([colours + (alpha - colours) * shine, alpha], 1)


def _banded(layer: Tensor, gen: torch.Generator) -> Tensor:
    bands = stripes(len(layer), (5, 8), gen)
    colours, alpha = layer[:, :3], layer[:, 3:]
    return torch.cat([torch.lerp(colours, alpha * rgb("white"), 0.75 * bands), alpha], 1)


def _speckled(layer: Tensor, gen: torch.Generator) -> Tensor:
    dots = blobs(len(layer), 6, 1.7, gen)
    colours, alpha = layer[:, :3], layer[:, 3:]
    return torch.cat([torch.lerp(colours, alpha * rgb("yellow"), 0.8 * dots), alpha], 1)


def _rainbow(layer: Tensor, gen: torch.Generator) -> Tensor:
    angle = uniform(len(layer), 0, 2 * torch.pi, gen)
    along = (horizontal() * angle.cos() + vertical() * angle.sin()) / 64 * 2 * torch.pi
    phases = torch.tensor([0.0, 2.1, 4.2]).view(1, 3, 1, 1)
    alpha = layer[:, 3:]
    return torch.cat([alpha * (0.55 + 0.45 * (1.4 * along + phases).sin()), alpha], 1)


def _solid(layer: Tensor, gen: torch.Generator) -> Tensor:
    side = layer
    for step in range(1, 6):
        dark = torch.cat([0.45 * layer[:, :3], layer[:, 3:]], 1)
        side = over(side, shifted(dark, step, step))
    return side


def _worn(layer: Tensor, gen: torch.Generator) -> Tensor:
    n = len(layer)
    return layer * (clouds(n, 20, gen) + 0.4 * grain(n, gen) > -0.55).float()


def _glass(layer: Tensor, gen: torch.Generator) -> Tensor:
    rim = layer - 0.75 * blurred(layer, 2)
    return (0.35 * layer + rim.clamp(min=0)).clamp(0, 1)


def _papercut(layer: Tensor, gen: torch.Generator) -> Tensor:
    cut = (grown(layer[:, 3:]) > 0.3).float()
    colour = layer[:, :3] / layer[:, 3:].clamp(min=0.05)
    sheet = flat(grown(colour, 2).clamp(0, 1), cut)
    back = flat(rgb("white"), grown(cut, 2))
    return over(over(sheet, flat(rgb("black"), 0.4 * shifted(cut, 2, 2) * grown(cut, 2))), back)


MATERIALS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
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
    "solid": _solid,
    "worn": _worn,
    "glass": _glass,
    "papercut": _papercut,
}
