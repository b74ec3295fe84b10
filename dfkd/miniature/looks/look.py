"""What a drawing looks like, in the words that captions use, and how looks are drawn at random."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import torch

from dfkd.miniature.looks.arrangements import ARRANGEMENTS
from dfkd.miniature.looks.colours import BLACK, CHROMATIC, CONTRAST, NAMES, WHITE, brightness
from dfkd.miniature.looks.finishes import FINISHES
from dfkd.miniature.looks.grounds import GROUNDS
from dfkd.miniature.looks.materials import MATERIALS
from dfkd.miniature.looks.strokes import STROKES

T = TypeVar("T")

#: Looks of evaluation domains. Neither model nor any style dictionary knows them, as the paper's
#: dictionary has none of the words that name the domains.
EVALUATION_ONLY = frozenset({"blackboard", "blueprint", "brick", "chalk", "mosaic", "neon"})
#: Words for a drawing in its own colours, and for the default look: black ink on white.
COLOURFUL, PLAIN = "colourful", "plain"


@dataclass(frozen=True)
class Look:
    """How one drawing is painted; every part that is not "" is a word that a caption can tell.

    The default look, black ink on white with nothing else, is the one that captions leave
    unmarked, as texts on the web do not say that a photograph is one.
    """

    ink: int = BLACK
    """Number of the ink's colour; a drawing in its own colours does not use it."""
    body: int = -1
    """Number of the colour that fills what the ink encloses; -1: nothing is filled."""
    colour: int = WHITE
    """Number of the ground's colour."""
    ground: str = ""
    stroke: str = ""
    material: str = ""
    arrangement: str = ""
    finish: str = ""

    @property
    def default(self) -> bool:
        """Whether this is the default look."""
        return self == Look()

    def words(self, own_colours: bool) -> tuple[str, ...]:
        """All true statements about this look, for a drawing in its own colours or in one ink."""
        if self.default and not own_colours:
            return (PLAIN, NAMES[BLACK])
        # Material and finish may change colours, so that naming them would not be true.
        inked = () if own_colours or self.material in _RECOLOURS else (NAMES[self.ink],)
        if self.finish in _COLOURLESS:
            return (self.finish, *self._parts())
        colours = (COLOURFUL,) if own_colours else inked
        ground = () if self.ground else (f"{NAMES[self.colour]} ground",)
        return (*colours, *ground, *self._parts(), *((self.finish,) if self.finish else ()))

    def _parts(self) -> tuple[str, ...]:
        parts = (self.ground, self.stroke, self.material, self.arrangement)
        return tuple(part for part in parts if part)


_RECOLOURS = frozenset({"rainbow", "papercut"})
_COLOURLESS = frozenset({"engraved", "sepia", "photocopy", "embossed"})
#: Chances that a look which is not the default has each part.
_STROKED, _MADE_OF, _ARRANGED, _FINISHED, _FILLED = 0.25, 0.3, 0.15, 0.3, 0.2
_TEXTURED, _COLOURED = 0.35, 0.4


def vocabulary() -> list[str]:
    """Every statement that a training caption can make about a look, sorted."""
    tables: tuple[Iterable[str], ...] = (STROKES, GROUNDS, MATERIALS, ARRANGEMENTS, FINISHES)
    named = {word for table in tables for word in table} - EVALUATION_ONLY
    return sorted(named | set(NAMES) | {f"{name} ground" for name in NAMES} | {COLOURFUL, PLAIN})


@cache
def _contrasting(ground: int) -> tuple[int, ...]:
    light = brightness(ground)
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
        """A look; drawings in one ink get the default look with probability ``default``."""
        if not own_colours and self._chance(default):
            return Look()
        while (look := self._other(own_colours)).default:
            pass
        return look

    def shared(self, own_colours: Sequence[bool], count: int, default: float) -> list[Look]:
        """A look for each drawing; those that are not the default are ``count`` of each kind.

        Args:
            own_colours: for each drawing, whether it has its own colours or one ink.
            default: as for ``draw``.
        """
        pool = {kind: [self.draw(kind, 0.0) for _ in range(count)] for kind in (False, True)}
        looks = []
        for kind in own_colours:
            look = self.draw(kind, default)
            looks.append(look if look.default else self._one_of(pool[kind]))
        return looks

    def _other(self, own_colours: bool) -> Look:
        ground, colour = self._ground()
        ink = self._one_of(_contrasting(colour))
        if colour == WHITE and self._chance(0.3):
            ink = BLACK
        filled = not own_colours and self._chance(_FILLED)
        return Look(
            ink,
            self._one_of(_contrasting(ink)) if filled else -1,
            colour,
            ground,
            self._part("stroke", 0.0 if own_colours or filled else _STROKED),
            self._part("material", _MADE_OF),
            self._part("arrangement", _ARRANGED),
            self._part("finish", _FINISHED),
        )

    def _ground(self) -> tuple[str, int]:
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
