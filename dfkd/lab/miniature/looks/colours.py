"""The colours that captions name.

A colour is a number, its index in `NAMES`; images have it as RGB in [0, 1].
"""

import torch
from torch import Tensor

COLOURS: dict[str, tuple[float, float, float]] = {
    "black": (0.04, 0.04, 0.05),
    "white": (0.98, 0.98, 0.98),
    "grey": (0.55, 0.56, 0.58),
    "red": (0.86, 0.13, 0.15),
    "maroon": (0.45, 0.06, 0.14),
    "orange": (0.97, 0.52, 0.1),
    "brown": (0.48, 0.28, 0.14),
    "beige": (0.93, 0.85, 0.7),
    "gold": (0.83, 0.65, 0.18),
    "yellow": (0.98, 0.86, 0.16),
    "olive": (0.47, 0.47, 0.12),
    "lime": (0.6, 0.85, 0.2),
    "green": (0.16, 0.6, 0.25),
    "teal": (0.06, 0.52, 0.52),
    "cyan": (0.25, 0.82, 0.92),
    "blue": (0.14, 0.37, 0.88),
    "navy": (0.07, 0.1, 0.34),
    "purple": (0.46, 0.2, 0.7),
    "magenta": (0.86, 0.14, 0.66),
    "pink": (0.97, 0.6, 0.74),
}
"""RGB in [0, 1] by name."""
NAMES = tuple(COLOURS)
_TABLE = torch.tensor(list(COLOURS.values()))
"""RGB [colours, 3] by number, and weights of the channels in luma (ITU-R BT.601)."""
_LUMA = torch.tensor((0.299, 0.587, 0.114))
BLACK, WHITE = NAMES.index("black"), NAMES.index("white")
CHROMATIC = range(NAMES.index("red"), len(NAMES))
"""Numbers of all colours but black, white and grey."""
CONTRAST = 0.28
"""Ink can be seen on a ground if their brightness differs by at least this much."""


def brightness(number: int) -> float:
    """The luma of a colour, in [0, 1]."""
    return float(_TABLE[number] @ _LUMA)


def shades(numbers: Tensor, gen: torch.Generator) -> Tensor:
    """Random shades [n, 3, 1, 1] of the colours with numbers [n]; black and white vary less."""
    extreme = ((numbers == BLACK) | (numbers == WHITE)).unsqueeze(1)
    jitter = torch.randn(len(numbers), 3, generator=gen) * torch.where(extreme, 0.015, 0.035)
    return (_TABLE[numbers] + jitter).clamp_(0, 1).view(-1, 3, 1, 1)


def rgb(name: str) -> Tensor:
    """The exact colour of a name: [1, 3, 1, 1]."""
    return _TABLE[NAMES.index(name)].view(1, 3, 1, 1)
