"""What a drawing stands on: each ground paints on areas [n, 3, 64, 64] of one base colour each.

`painting.paint` clamps the result to [0, 1].
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dfkd.lab.miniature.looks.colours import rgb
from dfkd.lab.miniature.looks.fields import (
    Operation,
    blurred,
    dot_grid,
    lines,
    pixel_x,
    pixel_y,
    smooth_noise,
    stretched_noise,
    stripes,
    uniform,
    white_noise,
)


@dataclass(frozen=True)
class Ground:
    """A ground that captions name."""

    paint: Operation
    """Gives [n, 3, 64, 64] for areas of one colour, of the same shape."""
    base: tuple[str, ...]
    """Names of the base colours that it may have."""


def _paper(base: Tensor, gen: torch.Generator) -> Tensor:
    n = len(base)
    return base + 0.05 * smooth_noise(n, 5, gen) + 0.04 * white_noise(n, gen)


def _lined(base: Tensor, gen: torch.Generator) -> Tensor:
    rule = lines(pixel_y(), 8, 3)
    margin = lines(pixel_x(), 64, 54)
    page = torch.lerp(base, rgb("blue"), 0.5 * rule)
    return torch.lerp(page, rgb("red"), 0.6 * margin)


def _squared(base: Tensor, gen: torch.Generator) -> Tensor:
    grid = (lines(pixel_y(), 6) + lines(pixel_x(), 6)).clamp(max=1)
    return torch.lerp(base, rgb("teal"), 0.35 * grid)


def _wood(base: Tensor, gen: torch.Generator) -> Tensor:
    n = len(base)
    rings = (pixel_y() * 0.7 + 4 * smooth_noise(n, 3, gen) + uniform(n, 0, 9, gen)).sin()
    return base * (1 + 0.14 * rings + 0.1 * stretched_noise(n, 32, 5, gen))


def _bricks(base: Tensor, gen: torch.Generator) -> Tensor:
    n = len(base)
    # Every second course of bricks is moved by half a brick.
    course = (pixel_y() // 8) % 2
    joints = (lines(pixel_y(), 8) + lines(pixel_x() + 8 * course, 16)).clamp(max=1)
    wall = base * (1 + 0.12 * smooth_noise(n, 8, gen)) + 0.04 * white_noise(n, gen)
    return torch.lerp(wall, rgb("beige"), 0.8 * joints)


def _checks(base: Tensor, gen: torch.Generator) -> Tensor:
    field = ((pixel_x() // 8 + pixel_y() // 8) % 2).expand(len(base), 1, 64, 64)
    return torch.lerp(base, rgb("white"), 0.45 * field)


def _striped(base: Tensor, gen: torch.Generator) -> Tensor:
    return torch.lerp(base, rgb("white"), 0.5 * stripes(len(base), (8, 14), gen))


def _spotted(base: Tensor, gen: torch.Generator) -> Tensor:
    return torch.lerp(base, rgb("white"), 0.6 * dot_grid(len(base), 12, 3.2, gen))


def _night(base: Tensor, gen: torch.Generator) -> Tensor:
    n = len(base)
    stars = (torch.rand(n, 1, 64, 64, generator=gen) > 0.985).float()
    sky = base * (0.7 + 0.5 * pixel_y() / 64)
    return torch.lerp(sky, rgb("white"), stars)


def _grass(base: Tensor, gen: torch.Generator) -> Tensor:
    n = len(base)
    blades = stretched_noise(n, 64, 10, gen).transpose(2, 3)
    return base * (1 + 0.25 * blades) + 0.05 * white_noise(n, gen)


def _sand(base: Tensor, gen: torch.Generator) -> Tensor:
    n = len(base)
    dunes = (pixel_y() * 0.5 + 3 * smooth_noise(n, 3, gen)).sin()
    return base * (1 + 0.06 * dunes) + 0.08 * white_noise(n, gen)


def _water(base: Tensor, gen: torch.Generator) -> Tensor:
    n = len(base)
    waves = (pixel_y() * 1.1 + 2.5 * (pixel_x() * 0.25 + uniform(n, 0, 6, gen)).sin()).sin()
    return torch.lerp(base, rgb("white"), 0.28 * (waves + smooth_noise(n, 6, gen)).clamp(0, 1))


def _stone(base: Tensor, gen: torch.Generator) -> Tensor:
    n = len(base)
    return base * (1 + 0.16 * smooth_noise(n, 10, gen) + 0.1 * smooth_noise(n, 24, gen))


def _fabric(base: Tensor, gen: torch.Generator) -> Tensor:
    weave = ((pixel_x() + pixel_y()) % 4 < 2).float() - 0.5
    return base * (1 + 0.3 * weave + 0.06 * white_noise(len(base), gen))


def _marble(base: Tensor, gen: torch.Generator) -> Tensor:
    n = len(base)
    # Veins run where the noise changes its sign.
    veins = 1 - (smooth_noise(n, 5, gen) + 0.3 * smooth_noise(n, 12, gen)).abs().mul(4).clamp(max=1)
    return base * (1 - 0.35 * veins)


def _metal(base: Tensor, gen: torch.Generator) -> Tensor:
    n = len(base)
    shine = (pixel_x() / 64 * 2 * torch.pi + uniform(n, 0, 6, gen)).sin()
    return base * (1 + 0.15 * shine + 0.1 * stretched_noise(n, 64, 2, gen))


def _sunset(base: Tensor, gen: torch.Generator) -> Tensor:
    height = pixel_y().expand(len(base), 1, 64, 64) / 63
    low = torch.lerp(rgb("pink"), rgb("yellow"), ((height - 0.5) * 2).clamp(0, 1))
    return torch.lerp(rgb("purple").expand_as(low), low, (height * 2).clamp(0, 1))


def _rays(base: Tensor, gen: torch.Generator) -> Tensor:
    n = len(base)
    angle = torch.atan2(pixel_y() - 32, pixel_x() - 32) + uniform(n, 0, 6, gen)
    return torch.lerp(base, rgb("white"), 0.45 * ((angle * 8).sin() > 0).float())


def _board(base: Tensor, gen: torch.Generator) -> Tensor:
    n = len(base)
    smears = blurred(stretched_noise(n, 12, 4, gen), 2).clamp(0, 2)
    return base + 0.06 * smears + 0.02 * white_noise(n, gen)


def _blueprint(base: Tensor, gen: torch.Generator) -> Tensor:
    grid = (lines(pixel_y(), 8, 4) + lines(pixel_x(), 8, 4)).clamp(max=1)
    return torch.lerp(base, rgb("cyan"), 0.35 * grid)


def _leaves(base: Tensor, gen: torch.Generator) -> Tensor:
    n = len(base)
    patches = (smooth_noise(n, 12, gen) > 0.3).float() + (smooth_noise(n, 12, gen) > 0.6).float()
    return base * (0.75 + 0.3 * patches)


_PASTEL = ("beige", "pink", "yellow", "cyan", "lime")
"""Base colours of white patterns."""
GROUNDS: dict[str, Ground] = {
    "paper": Ground(_paper, ("white", "beige")),
    "lined paper": Ground(_lined, ("white",)),
    "squared paper": Ground(_squared, ("white",)),
    "wood": Ground(_wood, ("brown", "gold", "beige")),
    "brick": Ground(_bricks, ("maroon", "red", "brown")),
    "checks": Ground(_checks, _PASTEL),
    "stripes": Ground(_striped, _PASTEL),
    "spots": Ground(_spotted, _PASTEL),
    "night": Ground(_night, ("navy", "black", "purple")),
    "grass": Ground(_grass, ("green", "olive")),
    "sand": Ground(_sand, ("beige", "gold")),
    "water": Ground(_water, ("blue", "teal")),
    "stone": Ground(_stone, ("grey",)),
    "fabric": Ground(_fabric, ("navy", "maroon", "teal", "purple")),
    "marble": Ground(_marble, ("white", "grey")),
    "metal": Ground(_metal, ("grey",)),
    "sunset": Ground(_sunset, ("purple",)),
    "rays": Ground(_rays, ("yellow", "orange", "cyan", "pink")),
    "blackboard": Ground(_board, ("black", "green")),
    "blueprint": Ground(_blueprint, ("blue", "navy")),
    "leaves": Ground(_leaves, ("green", "olive", "teal")),
}
"""Word -> ground."""
