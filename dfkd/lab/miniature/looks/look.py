"""How a drawing is painted, in the words that captions use, and random looks for training."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import torch

from dfkd.lab.miniature.looks.arrangements import ARRANGEMENTS
from dfkd.lab.miniature.looks.colours import BLACK, CHROMATIC, CONTRAST, NAMES, WHITE, brightness
from dfkd.lab.miniature.looks.finishes import FINISHES
from dfkd.lab.miniature.looks.grounds import GROUNDS
from dfkd.lab.miniature.looks.materials import MATERIALS
from dfkd.lab.miniature.looks.strokes import STROKES

T = TypeVar("T")

EVALUATION_ONLY = frozenset({"blackboard", "blueprint", "brick", "chalk", "mosaic", "neon"})
"""Words of evaluation domains. No training image and no style of the miniature's dictionary has
them, as the paper's dictionary has none of the words that name its domains."""
COLOURFUL, PLAIN = "colourful", "plain"
"""Words for a drawing in its own colours, and for the default look: black ink on white."""


@dataclass(frozen=True)
class Look:
    """How one drawing is painted.

    Colours are indices of `colours.NAMES`. The other parts are words of the tables `GROUNDS`,
    `STROKES`, `MATERIALS`, `ARRANGEMENTS` and `FINISHES`; "" leaves the part out.

    `Look()` is the default look: black ink on white and nothing else. Captions do not mention it,
    as texts on the web do not say that a photograph is one.
    """

    ink: int = BLACK
    """Colour of the ink; drawings in their own colours have no ink."""
    body: int = -1
    """Colour that fills what the ink encloses; -1: nothing is filled."""
    ground_colour: int = WHITE
    """Colour of the ground: the whole ground if `ground` is "", else its base colour."""
    ground: str = ""
    stroke: str = ""
    """Only drawings in ink have a stroke."""
    material: str = ""
    arrangement: str = ""
    finish: str = ""

    @property
    def default(self) -> bool:
        """Whether this is the default look."""
        return self == Look()

    def words(self, own_colours: bool) -> tuple[str, ...]:
        """All true statements about this look, such as `("red", "wood", "faded")`.

        Args:
            own_colours: whether the drawing has colours of its own instead of one ink.
        """
        if self.default and not own_colours:
            return (PLAIN, NAMES[BLACK])
        # Some materials and finishes change colours, so naming the colours would not be true.
        if self.finish in _COLOURLESS:
            return (self.finish, *self._parts())
        inked = () if self.material in _RECOLOURS else (NAMES[self.ink],)
        colours = (COLOURFUL,) if own_colours else inked
        ground = () if self.ground else (f"{NAMES[self.ground_colour]} ground",)
        return (*colours, *ground, *self._parts(), *((self.finish,) if self.finish else ()))

    def _parts(self) -> tuple[str, ...]:
        parts = (self.ground, self.stroke, self.material, self.arrangement)
        return tuple(part for part in parts if part)


_RECOLOURS = frozenset({"rainbow", "papercut"})
"""Materials that replace the ink's colour, and finishes after which no colour can be named."""
_COLOURLESS = frozenset({"engraved", "sepia", "photocopy", "embossed"})
_STROKE, _MATERIAL, _ARRANGEMENT, _FINISH, _BODY = 0.25, 0.3, 0.15, 0.3, 0.2
"""Probability of each part in a look that is not the default one."""
_TEXTURED, _COLOURED = 0.35, 0.4
"""Probability of a ground with a texture, and of a plain one in a colour; the rest are white."""
_BLACK_ON_WHITE = 0.3
"""Probability of black ink on plain white, in addition to the black among random colours."""


def vocabulary() -> list[str]:
    """Every statement that a training caption can make about a look, sorted."""
    tables: tuple[Iterable[str], ...] = (STROKES, GROUNDS, MATERIALS, ARRANGEMENTS, FINISHES)
    named = {word for table in tables for word in table} - EVALUATION_ONLY
    return sorted(named | set(NAMES) | {f"{name} ground" for name in NAMES} | {COLOURFUL, PLAIN})


@cache
def _contrasting(colour: int) -> tuple[int, ...]:
    """The colours that can be seen on a colour."""
    light = brightness(colour)
    return tuple(i for i in range(len(NAMES)) if abs(brightness(i) - light) >= CONTRAST)


class LookSampler:
    """Draws looks of training images; the same generator state gives the same looks."""

    def __init__(self, gen: torch.Generator) -> None:
        self.gen = gen
        self.tables = {
            name: tuple(sorted(set(table) - EVALUATION_ONLY))
            for name, table in (
                ("ground", GROUNDS),
                ("stroke", STROKES),
                ("material", MATERIALS),
                ("arrangement", ARRANGEMENTS),
                ("finish", FINISHES),
            )
        }

    def draw(self, own_colours: bool, default: float) -> Look:
        """A random look.

        Args:
            own_colours: whether the drawing has colours of its own; it never gets the default look.
            default: probability of the default look for a drawing in one ink.
        """
        if not own_colours and self._chance(default):
            return Look()
        # Captions take the default look for granted, so `default` alone must decide on it.
        while (look := self._other(own_colours)).default:
            pass
        return look

    def shared(self, own_colours: Sequence[bool], count: int, default: float) -> list[Look]:
        """A random look for each drawing, from a pool of `count` looks for each kind of drawing.

        Args:
            own_colours: for each drawing, whether it has its own colours or one ink.
            default: probability of the default look, which is not in the pool, as for `draw`.
        """
        pool = {kind: [self.draw(kind, 0.0) for _ in range(count)] for kind in (False, True)}
        looks = []
        for kind in own_colours:
            # Drawn also where the pool replaces it, to decide about the default look.
            look = self.draw(kind, default)
            looks.append(look if look.default else self._one_of(pool[kind]))
        return looks

    def _other(self, own_colours: bool) -> Look:
        """A look of random parts, which may happen to be the default one.

        The order of the draws is part of the recipe: another order gives other training images.
        """
        ground, ground_colour = self._ground()
        ink = self._one_of(_contrasting(ground_colour))
        if ground_colour == WHITE and self._chance(_BLACK_ON_WHITE):
            ink = BLACK
        # A stroke could open the outline of a body, so a look has one of the two at most.
        filled = not own_colours and self._chance(_BODY)
        return Look(
            ink,
            self._one_of(_contrasting(ink)) if filled else -1,
            ground_colour,
            ground,
            self._part("stroke", 0.0 if own_colours or filled else _STROKE),
            self._part("material", _MATERIAL),
            self._part("arrangement", _ARRANGEMENT),
            self._part("finish", _FINISH),
        )

    def _ground(self) -> tuple[str, int]:
        """The ground's word, "" for a plain one, and its colour."""
        draw = self._uniform()
        if draw < _TEXTURED:
            name = self._one_of(self.tables["ground"])
            return name, NAMES.index(self._one_of(GROUNDS[name].base))
        if draw < _TEXTURED + _COLOURED:
            return "", self._one_of((BLACK, *CHROMATIC))
        return "", WHITE

    def _part(self, kind: str, chance: float) -> str:
        return self._one_of(self.tables[kind]) if self._chance(chance) else ""

    def _uniform(self) -> float:
        return float(torch.rand((), generator=self.gen))

    def _chance(self, p: float) -> bool:
        return self._uniform() < p

    def _one_of(self, values: Sequence[T]) -> T:
        return values[int(torch.randint(len(values), (), generator=self.gen))]
