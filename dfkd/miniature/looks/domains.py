"""The looks of the bundled evaluation domains: the default one, and others far from it.

Some use words that no training caption has (`look.EVALUATION_ONLY`). The others combine parts that
training images have; only their drawings are new to the models.
"""

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


def _default_look(gen: torch.Generator) -> Look:
    """Black ink on white, or a drawing in its own colours on white."""
    return Look()


def _light_on_dark(gen: torch.Generator) -> Look:
    return Look(ink=_one_of(_PALE, gen), ground_colour=_one_of(_DEEP, gen))


def _pixel_art(gen: torch.Generator) -> Look:
    return Look(
        ink=_one_of(_DEEP, gen),
        body=_one_of(_BRIGHT, gen),
        ground_colour=_one_of(("beige", "cyan", "lime"), gen),
        finish="pixelated",
    )


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


DOMAINS: dict[str, Callable[[torch.Generator], Look]] = {
    "black_on_white": _default_look,
    "blueprint": _blueprint,
    "chalk": _chalk,
    "clipart": _default_look,
    "color_emoji": _default_look,
    "light_on_dark": _light_on_dark,
    "mosaic": _mosaic,
    "neon": _neon,
    "pixel_art": _pixel_art,
}
"""Domain -> draws a look of the domain."""
SPARSE = frozenset({"clipart"})
"""Domains with too few drawings of the official classes to be scored on them."""
