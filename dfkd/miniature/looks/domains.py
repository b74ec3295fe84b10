"""The looks of the bundled evaluation domains: the default one, and others far from it.

Some use words that no training caption has (`look.EVALUATION_ONLY`). The others combine parts that
training images have; only their drawings are new to the models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from dfkd.miniature.looks.colours import NAMES, WHITE
from dfkd.miniature.looks.look import Look

_PALE = ("white", "beige", "yellow", "lime", "cyan", "pink")
_DEEP = ("black", "maroon", "navy", "purple", "teal")
_BRIGHT = ("red", "orange", "yellow", "lime", "cyan", "magenta", "pink")


def _one_of(names: Sequence[str], gen: torch.Generator) -> int:
    """The number of a random one of these colours."""
    return NAMES.index(names[int(torch.randint(len(names), (), generator=gen))])


def _black_on_white(gen: torch.Generator) -> Look:
    return Look()


def _own_colours_on_white(gen: torch.Generator) -> Look:
    # For drawings in their own colours, ink and ground of the default look mean a white ground.
    return Look()


def _light_on_dark(gen: torch.Generator) -> Look:
    return Look(ink=_one_of(_PALE, gen), ground_colour=_one_of(_DEEP, gen))


def _pixel_art(gen: torch.Generator) -> Look:
    ink, body, ground = (
        _one_of(_DEEP, gen),
        _one_of(_BRIGHT, gen),
        _one_of(("beige", "cyan", "lime"), gen),
    )
    return Look(ink=ink, body=body, ground_colour=ground, finish="pixelated")


def _chalk(gen: torch.Generator) -> Look:
    ground = _one_of(("black", "green"), gen)
    return Look(
        ink=_one_of(_PALE, gen), ground_colour=ground, ground="blackboard", material="chalk"
    )


def _neon(gen: torch.Generator) -> Look:
    return Look(
        ink=_one_of(("cyan", "lime", "magenta", "orange"), gen),
        ground_colour=_one_of(("maroon", "brown"), gen),
        ground="brick",
        material="neon",
    )


def _mosaic(gen: torch.Generator) -> Look:
    return Look(
        ink=_one_of(("navy", "purple", "maroon", "black"), gen),
        body=_one_of(("orange", "yellow", "cyan"), gen),
        ground_colour=_one_of(("beige", "lime", "pink", "white"), gen),
        finish="mosaic",
    )


def _blueprint(gen: torch.Generator) -> Look:
    ground = _one_of(("blue", "navy"), gen)
    return Look(ink=WHITE, ground_colour=ground, ground="blueprint", stroke="outline")


#: Domain -> draws a look of the domain.
DOMAINS: dict[str, Callable[[torch.Generator], Look]] = {
    "black_on_white": _black_on_white,
    "blueprint": _blueprint,
    "chalk": _chalk,
    "clipart": _own_colours_on_white,
    "color_emoji": _own_colours_on_white,
    "light_on_dark": _light_on_dark,
    "mosaic": _mosaic,
    "neon": _neon,
    "pixel_art": _pixel_art,
}
#: Domains with too few drawings of the official classes to be scored on them.
SPARSE = frozenset({"clipart"})
