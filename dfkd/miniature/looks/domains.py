"""The looks of the bundled evaluation domains: the default one, and others far from it.

Some of them use words that no training caption has (``EVALUATION_ONLY``); the others combine looks
that training has seen, on drawings that it has not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from dfkd.miniature.looks.colours import NAMES, WHITE
from dfkd.miniature.looks.look import Look

_PALE = ("white", "beige", "yellow", "lime", "cyan", "pink")
_DEEP = ("black", "maroon", "navy", "purple", "teal")
_BRIGHT = ("red", "orange", "yellow", "lime", "cyan", "magenta", "pink")


def _one(names: Sequence[str], gen: torch.Generator) -> int:
    return NAMES.index(names[int(torch.randint(len(names), (), generator=gen))])


def _black_on_white(gen: torch.Generator) -> Look:
    return Look()


def _in_colour(gen: torch.Generator) -> Look:
    return Look(colour=WHITE)


def _light_on_dark(gen: torch.Generator) -> Look:
    return Look(ink=_one(_PALE, gen), colour=_one(_DEEP, gen))


def _pixel_art(gen: torch.Generator) -> Look:
    ink, body, ground = _one(_DEEP, gen), _one(_BRIGHT, gen), _one(("beige", "cyan", "lime"), gen)
    return Look(ink=ink, body=body, colour=ground, finish="pixelated")


def _chalk(gen: torch.Generator) -> Look:
    ground = _one(("black", "green"), gen)
    return Look(ink=_one(_PALE, gen), colour=ground, ground="blackboard", material="chalk")


def _neon(gen: torch.Generator) -> Look:
    return Look(
        ink=_one(("cyan", "lime", "magenta", "orange"), gen),
        colour=_one(("maroon", "brown"), gen),
        ground="brick",
        material="neon",
    )


def _mosaic(gen: torch.Generator) -> Look:
    return Look(
        ink=_one(("navy", "purple", "maroon", "black"), gen),
        body=_one(("orange", "yellow", "cyan"), gen),
        colour=_one(("beige", "lime", "pink", "white"), gen),
        finish="mosaic",
    )


def _blueprint(gen: torch.Generator) -> Look:
    ground = _one(("blue", "navy"), gen)
    return Look(ink=WHITE, colour=ground, ground="blueprint", stroke="outline")


#: Domain -> how it draws its looks.
DOMAINS: dict[str, Callable[[torch.Generator], Look]] = {
    "black_on_white": _black_on_white,
    "blueprint": _blueprint,
    "chalk": _chalk,
    "clipart": _in_colour,
    "color_emoji": _in_colour,
    "light_on_dark": _light_on_dark,
    "mosaic": _mosaic,
    "neon": _neon,
    "pixel_art": _pixel_art,
}
#: The domain of the default look.
DEFAULT = "black_on_white"
#: Domains that have too few drawings of the official classes.
SPARSE = frozenset({"clipart"})
