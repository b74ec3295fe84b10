"""Looks of drawings: some eighty ways to paint a drawing, each with the word that captions use.

A `Look` combines colours with up to five operations of `painting.py`. `LookSampler` draws the looks
of training images, `domain_look` those of the evaluation set, and `paint` applies them to a batch.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from dfkd.lab.miniature.painting import (
    ARRANGEMENTS,
    BLACK,
    CHROMATIC,
    CONTRAST,
    FINISHES,
    GROUND_COLOURS,
    GROUNDS,
    MATERIALS,
    NAMES,
    SIZE,
    STROKES,
    WHITE,
    Operation,
    blurred,
    brightness,
    flat,
    over,
    shades,
    silhouette,
    smooth_noise,
    warped,
)

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
        ground, ground_colour = "", WHITE
        draw = self._uniform()
        if draw < _TEXTURED:
            ground = self._one_of(self.tables["ground"])
            ground_colour = NAMES.index(self._one_of(GROUND_COLOURS[ground]))
        elif draw < _TEXTURED + _COLOURED:
            ground_colour = self._one_of((BLACK, *CHROMATIC))
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

    def _part(self, kind: str, chance: float) -> str:
        return self._one_of(self.tables[kind]) if self._chance(chance) else ""

    def _uniform(self) -> float:
        return float(torch.rand((), generator=self.gen))

    def _chance(self, p: float) -> bool:
        return self._uniform() < p

    def _one_of(self, values: Sequence[T]) -> T:
        return values[int(torch.randint(len(values), (), generator=self.gen))]


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


def paint(
    inks: Tensor,
    coloured: Tensor,
    looks: Sequence[Look],
    gen: torch.Generator,
    pose: float = 1.0,
) -> Tensor:
    """Paint drawings; returns images float32 [N + M, 3, 64, 64] in [0, 1].

    Args:
        inks: coverage [N, 64, 64] in [0, 1] of drawings in one ink.
        coloured: premultiplied RGBA [M, 4, 64, 64] of drawings in their own colours.
        looks: one for each drawing, first those of `inks`.
        pose: the `strength` of `posed`.
    """
    # The steps and the random numbers they take have a fixed order, which is part of the recipe:
    # poses of ink, strokes, colours, poses of coloured drawings, arrangements, materials, grounds,
    # finishes.
    n = len(inks)
    ink = posed(inks.unsqueeze(1), gen, pose)
    # What the ink encloses is found before the stroke, which could open or close the outline.
    bodies = torch.tensor([look.body for look in looks[:n]], dtype=torch.long)
    filled = (bodies >= 0).nonzero().squeeze(1)
    inside = silhouette(ink[filled]) if len(filled) else ink[filled]
    ink = _each(ink, [look.stroke for look in looks[:n]], STROKES, gen)
    colours = torch.tensor([look.ink for look in looks[:n]], dtype=torch.long)
    layer = flat(shades(colours, gen), ink)
    body = flat(shades(bodies[filled], gen), inside)
    layer = layer.index_copy(0, filled, over(layer[filled], body))
    layers = torch.cat([layer, posed(coloured, gen, pose)])
    layers = _each(layers, [look.arrangement for look in looks], ARRANGEMENTS, gen)
    layers = _each(layers, [look.material for look in looks], MATERIALS, gen)
    base = shades(torch.tensor([look.ground_colour for look in looks], dtype=torch.long), gen)
    areas = base.expand(-1, -1, SIZE, SIZE)
    ground = _each(areas, [look.ground for look in looks], GROUNDS, gen)
    images = (layers[:, :3] + ground * (1 - layers[:, 3:])).clamp_(0, 1)
    return _each(images, [look.finish for look in looks], FINISHES, gen)


def smudged(images: Tensor, gen: torch.Generator, share: float) -> Tensor:
    """Images [n, 3, 64, 64], of which a random `share` is slightly warped, blurred and stained.

    The generator's decoder makes such errors. No caption mentions them, so the teacher learns to
    ignore them.
    """
    rows = (torch.rand(len(images), generator=gen) < share).nonzero().squeeze(1)
    part = images[rows]
    n = len(part)
    part = warped(part, torch.cat([smooth_noise(n, 8, gen), smooth_noise(n, 8, gen)], 1) * 0.8)
    part = torch.lerp(part, blurred(part), torch.rand(n, 1, 1, 1, generator=gen))
    stains = torch.randn(n, 3, 8, 8, generator=gen) * 0.06
    part = part + F.interpolate(stains, size=(SIZE, SIZE), mode="bilinear")
    return images.index_copy(0, rows, part.clamp(0, 1))


def posed(x: Tensor, gen: torch.Generator, strength: float) -> Tensor:
    """The drawings [n, C, 64, 64] under random affine maps; zeros come in at the border.

    They are turned, scaled, sheared and moved, and a third is mirrored.

    Args:
        strength: factor of all ranges; 0 changes nothing and takes no random numbers.
    """
    n = len(x)
    if n == 0 or strength == 0:
        return x

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(n, generator=gen) * (high - low) + low

    angle = torch.randn(n, generator=gen) * 0.1 * strength
    x_scale = uniform(1 - 0.06 * strength, 1 + 0.35 * strength)
    # Factors from the image to the drawing, so those above 1 make it smaller. Seven of ten drawings
    # keep their aspect ratio.
    other_scale = uniform(1 - 0.06 * strength, 1 + 0.35 * strength)
    y_scale = torch.where(torch.rand(n, generator=gen) < 0.7, x_scale, other_scale)
    x_scale = torch.where(torch.rand(n, generator=gen) < 0.33, -x_scale, x_scale)
    shear = torch.randn(n, generator=gen) * 0.05 * strength
    # In half images, the unit of `affine_grid`.
    far = 0.12 * strength
    x_move, y_move = uniform(-far, far), uniform(-far, far)
    x_row = [x_scale * angle.cos(), -y_scale * (angle + shear).sin(), x_move]
    y_row = [x_scale * angle.sin(), y_scale * angle.cos(), y_move]
    theta = torch.stack([torch.stack(x_row, 1), torch.stack(y_row, 1)], 1)
    grid = F.affine_grid(theta, [n, 1, SIZE, SIZE], align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def _each(
    x: Tensor, names: Sequence[str], table: Mapping[str, Operation], gen: torch.Generator
) -> Tensor:
    """Apply to each row the operation with its name, and clamp it to [0, 1]; "" changes nothing.

    Rows with the same name are one batch, because an operation is faster on a batch.
    """
    x = x.clone()
    # Sorted, so that random numbers do not depend on the order of the names in the batch.
    for name in sorted(set(names) - {""}):
        rows = [i for i, other in enumerate(names) if other == name]
        x[rows] = table[name](x[rows], gen).clamp(0, 1)
    return x
