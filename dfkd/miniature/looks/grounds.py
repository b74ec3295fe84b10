"""What a drawing stands on: each ground paints [n, 3, 64, 64] in [0, 1] around a base colour."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dfkd.miniature.looks.colours import rgb
from dfkd.miniature.looks.fields import (
    blobs,
    blurred,
    clouds,
    grain,
    horizontal,
    lines,
    streaks,
    stripes,
    uniform,
    vertical,
)

Paint = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Ground:
    """A ground that captions name: how it is painted, and whether it is dark or light."""

    paint: Paint
    dark: bool
    base: tuple[str, ...]
    """Names of the colours that it may have."""


def _full(base: Tensor) -> Tensor:
    return base.expand(-1, -1, 64, 64)


def _paper(base: Tensor, gen: torch.Generator) -> Tensor:
    n = len(base)
    return _full(base) + 0.05 * clouds(n, 5, gen) + 0.04 * grain(n, gen)


def _lined(base: Tensor, gen: torch.Generator) -> Tensor:
    rule = lines(vertical(), 8, 3) * torch.ones(1, 1, 1, 64)
    margin = lines(horizontal(), 64, 54) * torch.ones(1, 1, 64, 1)
    page = torch.lerp(_full(base), rgb("blue"), 0.5 * rule)
    return torch.lerp(page, rgb("red"), 0.6 * margin)


def _squared(base: Tensor, gen: torch.Generator) -> Tensor:
    grid = (lines(vertical(), 6) + lines(horizontal(), 6)).clamp(max=1)
    return torch.lerp(_full(base), rgb("teal"), 0.35 * grid)


def _wood(base: Tensor, gen: torch.Generator) -> Tensor:
    n = len(base)
    rings = (vertical() * 0.7 + 4 * clouds(n, 3, gen) + uniform(n, 0, 9, gen)).sin()
    return _full(base) * (1 + 0.14 * rings + 0.1 * streaks(n, 32, 5, gen))


def _bricks(base: Tensor, gen: torch.Generator) -> Tensor:
    n = len(base)
    course = (vertical() // 8) % 2
    joints = (lines(vertical(), 8) + lines(horizontal() + 8 * course, 16)).clamp(max=1)
    wall = _full(base) * (1 + 0.12 * clouds(n, 8, gen)) + 0.04 * grain(n, gen)
    return torch.lerp(wall, rgb("beige"), 0.8 * joints)


def _checks(base: Tensor, gen: torch.Generator) -> Tensor:
    field = ((horizontal() // 8 + vertical() // 8) % 2).expand(len(base), 1, 64, 64)
    return torch.lerp(_full(base), rgb("white"), 0.45 * field)


def _striped(base: Tensor, gen: torch.Generator) -> Tensor:
    return torch.lerp(_full(base), rgb("white"), 0.5 * stripes(len(base), (8, 14), gen))


def _spotted(base: Tensor, gen: torch.Generator) -> Tensor:
    return torch.lerp(_full(base), rgb("white"), 0.6 * blobs(len(base), 12, 3.2, gen))


def _night(base: Tensor, gen: torch.Generator) -> Tensor:
    n = len(base)
    stars = (torch.rand(n, 1, 64, 64, generator=gen) > 0.985).float()
    sky = _full(base) * (0.7 + 0.5 * vertical() / 64)
    return torch.lerp(sky, rgb("white"), stars)


def _grass(base: Tensor, gen: torch.Generator) -> Tensor:
    n = len(base)
    blades = streaks(n, 64, 10, gen).transpose(2, 3)
    return _full(base) * (1 + 0.25 * blades) + 0.05 * grain(n, gen)


def _sand(base: Tensor, gen: torch.Generator) -> Tensor:
    n = len(base)
    dunes = (vertical() * 0.5 + 3 * clouds(n, 3, gen)).sin()
    return _full(base) * (1 + 0.06 * dunes) + 0.08 * grain(n, gen)


def _water(base: Tensor, gen: torch.Generator) -> Tensor:
    n = len(base)
    waves = (vertical() * 1.1 + 2.5 * (horizontal() * 0.25 + uniform(n, 0, 6, gen)).sin()).sin()
    return torch.lerp(_full(base), rgb("white"), 0.28 * (waves + clouds(n, 6, gen)).clamp(0, 1))


def _stone(base: Tensor, gen: torch.Generator) -> Tensor:
    n = len(base)
    return _full(base) * (1 + 0.16 * clouds(n, 10, gen) + 0.1 * clouds(n, 24, gen))


def _fabric(base: Tensor, gen: torch.Generator) -> Tensor:
    weave = ((horizontal() + vertical()) % 4 < 2).float() - 0.5
    return _full(base) * (1 + 0.3 * weave + 0.06 * grain(len(base), gen))


def _marble(base: Tensor, gen: torch.Generator) -> Tensor:
    n = len(base)
    veins = 1 - (clouds(n, 5, gen) + 0.3 * clouds(n, 12, gen)).abs().mul(4).clamp(max=1)
    return _full(base) * (1 - 0.35 * veins)


def _metal(base: Tensor, gen: torch.Generator) -> Tensor:
    n = len(base)
    shine = (horizontal() / 64 * 2 * torch.pi + uniform(n, 0, 6, gen)).sin()
    return _full(base) * (1 + 0.15 * shine + 0.1 * streaks(n, 64, 2, gen))


def _sunset(base: Tensor, gen: torch.Generator) -> Tensor:
    height = vertical().expand(len(base), 1, 64, 64) / 63
    low = torch.lerp(rgb("pink"), rgb("yellow"), ((height - 0.5) * 2).clamp(0, 1))
    return torch.lerp(rgb("purple").expand_as(low), low, (height * 2).clamp(0, 1))


def _rays(base: Tensor, gen: torch.Generator) -> Tensor:
    n = len(base)
    angle = torch.atan2(vertical() - 32, horizontal() - 32) + uniform(n, 0, 6, gen)
    return torch.lerp(_full(base), rgb("white"), 0.45 * ((angle * 8).sin() > 0).float())


def _board(base: Tensor, gen: torch.Generator) -> Tensor:
    n = len(base)
    smears = blurred(streaks(n, 12, 4, gen), 2).clamp(0, 2)
    return _full(base) + 0.06 * smears + 0.02 * grain(n, gen)


def _blueprint(base: Tensor, gen: torch.Generator) -> Tensor:
    grid = (lines(vertical(), 8, 4) + lines(horizontal(), 8, 4)).clamp(max=1)
    return torch.lerp(_full(base), rgb("cyan"), 0.35 * grid)


def _leaves(base: Tensor, gen: torch.Generator) -> Tensor:
    n = len(base)
    patches = (clouds(n, 12, gen) > 0.3).float() + (clouds(n, 12, gen) > 0.6).float()
    return _full(base) * (0.75 + 0.3 * patches)


_PASTEL = ("white", "beige", "pink", "yellow", "cyan", "lime")
GROUNDS: dict[str, Ground] = {
    "paper": Ground(_paper, False, ("white", "beige")),
    "lined paper": Ground(_lined, False, ("white",)),
    "squared paper": Ground(_squared, False, ("white",)),
    "wood": Ground(_wood, False, ("brown", "gold", "beige")),
    "brick": Ground(_bricks, True, ("maroon", "red", "brown")),
    "checks": Ground(_checks, False, _PASTEL[1:]),
    "stripes": Ground(_striped, False, _PASTEL[1:]),
    "spots": Ground(_spotted, False, _PASTEL[1:]),
    "night": Ground(_night, True, ("navy", "black", "purple")),
    "grass": Ground(_grass, True, ("green", "olive")),
    "sand": Ground(_sand, False, ("beige", "gold")),
    "water": Ground(_water, True, ("blue", "teal")),
    "stone": Ground(_stone, False, ("grey",)),
    "fabric": Ground(_fabric, True, ("navy", "maroon", "teal", "purple")),
    "marble": Ground(_marble, False, ("white", "grey")),
    "metal": Ground(_metal, False, ("grey",)),
    "sunset": Ground(_sunset, False, ("purple",)),
    "rays": Ground(_rays, False, ("yellow", "orange", "cyan", "pink")),
    "blackboard": Ground(_board, True, ("black", "green")),
    "blueprint": Ground(_blueprint, True, ("blue", "navy")),
    "leaves": Ground(_leaves, True, ("green", "olive", "teal")),
}
