"""The looks of the bundled evaluation domains: the default one, and others far from it.

Some use words that no training caption has (`look.EVALUATION_ONLY`). The others combine parts that
training images have; only their drawings are new to the models.
"""

from typing import Any

import torch

from dfkd.lab.miniature.looks.colours import NAMES, WHITE
from dfkd.lab.miniature.looks.look import Look

_PALE = ("white", "beige", "yellow", "lime", "cyan", "pink")
_DEEP = ("black", "maroon", "navy", "purple", "teal")
_BRIGHT = ("red", "orange", "yellow", "lime", "cyan", "magenta", "pink")

DOMAINS: dict[str, dict[str, Any]] = {
    "black_on_white": {},
    "blueprint": {
        "ink": WHITE,
        "ground_colour": ("blue", "navy"),
        "ground": "blueprint",
        "stroke": "outline",
    },
    "chalk": {
        "ground_colour": ("black", "green"),
        "ink": _PALE,
        "ground": "blackboard",
        "material": "chalk",
    },
    "clipart": {},
    "color_emoji": {},
    "light_on_dark": {"ink": _PALE, "ground_colour": _DEEP},
    "mosaic": {
        "ink": ("navy", "purple", "maroon", "black"),
        "body": ("orange", "yellow", "cyan"),
        "ground_colour": ("beige", "lime", "pink", "white"),
        "finish": "mosaic",
    },
    "neon": {
        "ink": ("cyan", "lime", "magenta", "orange"),
        "ground_colour": ("maroon", "brown"),
        "ground": "brick",
        "material": "neon",
    },
    "pixel_art": {
        "ink": _DEEP,
        "body": _BRIGHT,
        "ground_colour": ("beige", "cyan", "lime"),
        "finish": "pixelated",
    },
}
"""Domain -> the fields of its looks that are not those of the default one (black ink on white, or a
drawing in its own colours). Of several colours one is drawn; the order of the draws is part of the
recipe."""
SPARSE = frozenset({"clipart"})
"""Domains with too few drawings of the official classes to be scored on them."""


def domain_look(domain: str, gen: torch.Generator) -> Look:
    """A random look of a domain."""
    fields = {}
    for field, value in DOMAINS[domain].items():
        if isinstance(value, tuple):
            value = NAMES.index(value[int(torch.randint(len(value), (), generator=gen))])
        fields[field] = value
    return Look(**fields)
