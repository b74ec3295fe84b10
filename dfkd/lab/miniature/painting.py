"""Operations on pixels from which looks are made, each with the word that captions use.

Each kind has a table from words to functions:

    STROKES       how the ink of a drawing is drawn       coverage [n, 1, 64, 64]
    ARRANGEMENTS  where the drawing stands                RGBA [n, 4, 64, 64]
    MATERIALS     what the drawing is made of             RGBA [n, 4, 64, 64]
    GROUNDS       what the drawing stands on              RGB [n, 3, 64, 64]
    FINISHES      what happens to the whole image         RGB [n, 3, 64, 64]

Coverage is 0 without ink and 1 with full ink. RGBA is a layer: premultiplied colour and coverage.
All values are float32 in [0, 1]; `looks.paint` clamps what an operation returns. All randomness
comes from the generator that a function is given, in an order that is part of the recipe.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
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


SIZE = 64
"""Width and height of all drawings and images, in pixels."""

Operation = Callable[[Tensor, torch.Generator], Tensor]
"""A stroke, arrangement, material, ground or finish: changes or paints a batch. A ground paints on
areas of one colour.
"""
STROKES: dict[str, Operation] = {}
ARRANGEMENTS: dict[str, Operation] = {}
MATERIALS: dict[str, Operation] = {}
GROUNDS: dict[str, Operation] = {}
FINISHES: dict[str, Operation] = {}
GROUND_COLOURS: dict[str, tuple[str, ...]] = {}
"""Names of the base colours that a ground may have, by its word."""
_PASTEL = ("beige", "pink", "yellow", "cyan", "lime")
"""Base colours of white patterns."""
_GRIDS = (10, 12, 14, 16, 20)
"""Widths of pixel art, in its large pixels."""


def _entered(table: dict[str, Operation], word: str) -> Callable[[Operation], Operation]:
    """Enter the decorated operation in a table, under the word that captions use."""

    def enter(operation: Operation) -> Operation:
        table[word] = operation
        return operation

    return enter


def _ground(word: str, *colours: str) -> Callable[[Operation], Operation]:
    """Enter the decorated ground, with its base colours."""
    GROUND_COLOURS[word] = colours
    return _entered(GROUNDS, word)


def uniform(n: int, low: float, high: float, gen: torch.Generator) -> Tensor:
    """One number in [low, high) for each image: [n, 1, 1, 1]."""
    return torch.rand(n, 1, 1, 1, generator=gen) * (high - low) + low


def pixel_x() -> Tensor:
    """The x of each pixel, 0 to 63 from left to right: [1, 1, 1, 64]."""
    return torch.arange(SIZE, dtype=torch.float32).view(1, 1, 1, SIZE)


def pixel_y() -> Tensor:
    """The y of each pixel, 0 to 63 from top to bottom: [1, 1, 64, 1]."""
    return torch.arange(SIZE, dtype=torch.float32).view(1, 1, SIZE, 1)


def pixel_centres() -> tuple[Tensor, Tensor]:
    """x and y [64, 64] of the pixels' centres, from -1 to 1 as in `torch.nn.functional.grid_sample`
    without aligned corners.
    """
    axis = (torch.arange(SIZE, dtype=torch.float32) + 0.5) * 2 / SIZE - 1
    x, y = torch.meshgrid(axis, axis, indexing="xy")
    return x, y


def white_noise(n: int, gen: torch.Generator) -> Tensor:
    """Independent normal values of standard deviation 1."""
    return torch.randn(n, 1, SIZE, SIZE, generator=gen)


def smooth_noise(n: int, cells: int, gen: torch.Generator) -> Tensor:
    """Noise interpolated from `cells` x `cells` normal values; standard deviation about 1."""
    coarse = torch.randn(n, 1, cells, cells, generator=gen)
    return F.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic", align_corners=False)


def stretched_noise(n: int, rows: int, columns: int, gen: torch.Generator) -> Tensor:
    """Noise interpolated from `rows` x `columns` normal values.

    With fewer columns than rows it looks like streaks along x.
    """
    coarse = torch.randn(n, 1, rows, columns, generator=gen)
    return F.interpolate(coarse, size=(SIZE, SIZE), mode="bilinear", align_corners=False)


def stripes(
    n: int, period: tuple[float, float], gen: torch.Generator, share: float = 0.5
) -> Tensor:
    """Parallel stripes of a random direction: 1 in `share` of each period, else 0.

    Args:
        period: the range in pixels from which each image draws its period.
    """
    angle, width = uniform(n, 0, torch.pi, gen), uniform(n, *period, gen)
    along = pixel_x() * angle.cos() + pixel_y() * angle.sin() + uniform(n, 0, 64, gen)
    return ((along / width) % 1 < share).float()


def lines(coordinate: Tensor, period: int, offset: int = 0) -> Tensor:
    """1 at one pixel of each period of a coordinate, else 0: `pixel_y` gives horizontal lines."""
    return ((coordinate + offset) % period < 1).float()


def dot_grid(n: int, period: int, radius: float, gen: torch.Generator) -> Tensor:
    """Discs on a square grid with a random offset: 1 within `radius` pixels of a centre, else
    0.
    """
    x = (pixel_x() + uniform(n, 0, period, gen)) % period - period / 2
    y = (pixel_y() + uniform(n, 0, period, gen)) % period - period / 2
    return (x.square() + y.square() < radius**2).float()


def dilated(x: Tensor, pixels: int = 1) -> Tensor:
    """The maximum of each pixel's neighbourhood of `2 * pixels + 1` pixels a side."""
    return F.max_pool2d(x, 2 * pixels + 1, 1, pixels)


def eroded(x: Tensor, pixels: int = 1) -> Tensor:
    """The minimum of each pixel's neighbourhood of `2 * pixels + 1` pixels a side."""
    return -dilated(-x, pixels)


def blurred(x: Tensor, pixels: int = 1) -> Tensor:
    """The mean of each pixel's neighbourhood of `2 * pixels + 1` pixels a side; the border is
    repeated outwards.
    """
    padded = F.pad(x, (pixels,) * 4, mode="replicate")
    return F.avg_pool2d(padded, 2 * pixels + 1, 1)


def pixelated(x: Tensor, cells: int) -> Tensor:
    """The images as `cells` x `cells` squares of one colour, the mean of their pixels."""
    return F.interpolate(F.adaptive_avg_pool2d(x, cells), size=(SIZE, SIZE), mode="nearest")


def shifted(x: Tensor, right: int, down: int) -> Tensor:
    """The images moved by whole pixels; zeros come in at the border."""
    # A move to the right pads on the left and then cuts on the right, and so on.
    padded = F.pad(x, (max(right, 0), max(-right, 0), max(down, 0), max(-down, 0)))
    top, left = max(-down, 0), max(-right, 0)
    return padded[..., top : top + SIZE, left : left + SIZE]


def warped(x: Tensor, offset: Tensor) -> Tensor:
    """The images sampled at positions moved by `offset` [n, 2, 64, 64] (x, y) in pixels."""
    # `grid_sample` measures in half images: 64 pixels are 2.
    grid = (torch.stack(pixel_centres()) + offset * 2 / SIZE).permute(0, 2, 3, 1)
    return F.grid_sample(x, grid.to(x.dtype), padding_mode="border", align_corners=False)


def over(top: Tensor, bottom: Tensor) -> Tensor:
    """One premultiplied layer on another: [n, 4, 64, 64] (the "over" of Porter and Duff, 1984)."""
    return top + bottom * (1 - top[:, 3:])


def flat(colour: Tensor, alpha: Tensor) -> Tensor:
    """A layer of one colour [n or 1, 3, 1, 1] with coverage `alpha` [n, 1, 64, 64]."""
    return torch.cat([colour * alpha, alpha], 1)


def mean_colour(layer: Tensor) -> Tensor:
    """The mean colour of each layer [n, 4, 64, 64], weighted by coverage: [n, 3, 1, 1]."""
    total = layer.sum((2, 3), keepdim=True)
    return total[:, :3] / total[:, 3:].clamp(min=1e-3)


def silhouette(ink: Tensor) -> Tensor:
    """The ink and everything that it encloses: 1 inside, else 0; [n, 1, 64, 64] like `ink`."""
    # What is not enclosed is the empty area connected with a margin around the image.
    empty = np.pad(ink.squeeze(1).numpy() < 0.4, ((0, 0), (1, 1), (1, 1)), constant_values=True)
    # One call labels the whole batch: pixels of two images are never neighbours.
    in_plane = np.zeros((3, 3, 3), bool)
    in_plane[1] = ndimage.generate_binary_structure(2, 1)
    labels, _ = ndimage.label(empty, in_plane)
    # The corner lies in the margin, so its component is the outside.
    outside = labels == labels[:, :1, :1]
    return torch.from_numpy(~outside[:, 1:-1, 1:-1]).unsqueeze(1).to(ink.dtype)


@_entered(STROKES, "thin")
def _thin(ink: Tensor, gen: torch.Generator) -> Tensor:
    # Erosion alone would erase lines of one or two pixels.
    return 0.45 * (ink + eroded(ink))


@_entered(STROKES, "hatched")
def _hatched(ink: Tensor, gen: torch.Generator) -> Tensor:
    body = silhouette(ink)
    edge = body - eroded(body)
    return torch.maximum(edge, body * stripes(len(ink), (4, 5), gen, 0.45))


@_entered(STROKES, "doubled")
def _double(ink: Tensor, gen: torch.Generator) -> Tensor:
    body = silhouette(ink)
    outer = dilated(body, 3) - dilated(body, 2)
    return torch.maximum(ink, outer)


@_entered(STROKES, "stencil")
def _stencil(ink: Tensor, gen: torch.Generator) -> Tensor:
    body = torch.maximum(ink, silhouette(ink))
    bars = lines(pixel_x() // 2, 10, 5) + lines(pixel_y() // 2, 13, 8)
    return body * (1 - bars.clamp(max=1))


@_entered(STROKES, "rough")
def _rough(ink: Tensor, gen: torch.Generator) -> Tensor:
    # Noise before the threshold frays the edge; the second condition allows no spots away from it.
    noise = 0.22 * smooth_noise(len(ink), 24, gen)
    return ((blurred(ink) + noise > 0.35) & (dilated(ink, 2) > 0.3)).float()


@_entered(STROKES, "sketchy")
def _sketchy(ink: Tensor, gen: torch.Generator) -> Tensor:
    n = len(ink)
    copies = [
        warped(ink, torch.cat([smooth_noise(n, 6, gen), smooth_noise(n, 6, gen)], 1) * 1.4)
        for _ in range(3)
    ]
    # The exponent darkens what only one of the three copies covers.
    return torch.stack(copies).mean(0) ** 0.7


@_entered(STROKES, "wavy")
def _wavy(ink: Tensor, gen: torch.Generator) -> Tensor:
    period = uniform(len(ink), 8, 12, gen)
    wave = 1.5 * (pixel_y() * 2 * torch.pi / period).sin().expand(len(ink), 1, 64, 64)
    return warped(ink, torch.cat([wave, torch.zeros_like(wave)], 1))


@_entered(STROKES, "brush")
def _brushed(ink: Tensor, gen: torch.Generator) -> Tensor:
    bristles = 0.6 + 0.4 * stripes(len(ink), (3, 4), gen, 0.6)
    trail = torch.maximum(dilated(ink), shifted(ink, 1, 1))
    return trail * (bristles + 0.25 * white_noise(len(ink), gen))


@_entered(STROKES, "contour")
def _contour(ink: Tensor, gen: torch.Generator) -> Tensor:
    body = dilated(silhouette(ink))
    return body - eroded(body, 2)


@_entered(STROKES, "outline")
def _outline(ink: Tensor, gen: torch.Generator) -> Tensor:
    return dilated(ink) - eroded(ink)


@_entered(STROKES, "bold")
def _bold(ink: Tensor, gen: torch.Generator) -> Tensor:
    return dilated(ink)


@_entered(STROKES, "filled")
def _filled(ink: Tensor, gen: torch.Generator) -> Tensor:
    return torch.maximum(ink, silhouette(ink))


@_entered(STROKES, "dashed")
def _dashed(ink: Tensor, gen: torch.Generator) -> Tensor:
    return dilated(ink) * stripes(len(ink), (6, 9), gen, 0.6)


@_entered(STROKES, "dotted")
def _dotted(ink: Tensor, gen: torch.Generator) -> Tensor:
    return dilated(ink, 1) * dot_grid(len(ink), 4, 1.6, gen)


def _mapped(layer: Tensor, theta: Tensor) -> Tensor:
    """The layer under affine maps `theta` [n, 2, 3] from the result to the layer."""
    grid = F.affine_grid(theta, list(layer.shape), align_corners=False)
    return F.grid_sample(layer, grid, align_corners=False)


def _turned(layer: Tensor, angle: Tensor, scale: float) -> Tensor:
    """The layer turned by `angle` [n, 1, 1, 1] in radians and divided by `scale`."""
    c, s = scale * angle.flatten().cos(), scale * angle.flatten().sin()
    zero = torch.zeros_like(c)
    rows = [torch.stack([c, -s, zero], 1), torch.stack([s, c, zero], 1)]
    return _mapped(layer, torch.stack(rows, 1))


def _zoomed(layer: Tensor, scale: float, reach: float, gen: torch.Generator) -> Tensor:
    """The layer divided by `scale`, moved at random by at most `reach` half images."""
    n = len(layer)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, :, 2] = torch.rand(n, 2, generator=gen) * 2 * reach - reach
    return _mapped(layer, theta)


@_entered(ARRANGEMENTS, "tiled")
def _tiled(layer: Tensor, gen: torch.Generator) -> Tensor:
    half = F.avg_pool2d(layer, 2)
    return half.repeat(1, 1, 2, 2)


@_entered(ARRANGEMENTS, "tilted")
def _tilted(layer: Tensor, gen: torch.Generator) -> Tensor:
    n = len(layer)
    side = (torch.rand(n, 1, 1, 1, generator=gen) < 0.5).float() * 2 - 1
    return _turned(layer, side * uniform(n, 0.45, 0.85, gen), 1.15)


@_entered(ARRANGEMENTS, "perspective")
def _perspective(layer: Tensor, gen: torch.Generator) -> Tensor:
    n = len(layer)
    x, y = pixel_centres()
    # Like a sheet that leans back: the higher a pixel, the more the drawing shrinks.
    lean = uniform(n, 0.45, 0.65, gen).view(n, 1, 1)
    depth = 1 + lean * (1 - y) / 2
    grid = torch.stack([x * depth, (y + 0.25 * lean) * depth], 3)
    return F.grid_sample(layer, grid, align_corners=False)


def _with_band(layer: Tensor, band: Tensor) -> Tensor:
    """A smaller layer within a band (1 on it, else 0; [1, 1, 64, 64]) of its mean colour."""
    small = _turned(layer, torch.zeros(len(layer), 1, 1, 1), 1.45)
    frame = flat(mean_colour(layer), band.expand(len(layer), 1, SIZE, SIZE))
    return over(small, frame)


@_entered(ARRANGEMENTS, "badge")
def _badge(layer: Tensor, gen: torch.Generator) -> Tensor:
    radius = ((pixel_x() - 31.5).square() + (pixel_y() - 31.5).square()).sqrt()
    return _with_band(layer, ((radius > 26) & (radius < 30)).float())


@_entered(ARRANGEMENTS, "framed")
def _framed(layer: Tensor, gen: torch.Generator) -> Tensor:
    edge = torch.maximum((pixel_x() - 31.5).abs(), (pixel_y() - 31.5).abs())
    return _with_band(layer, ((edge > 25) & (edge < 29)).float())


@_entered(ARRANGEMENTS, "small")
def _small(layer: Tensor, gen: torch.Generator) -> Tensor:
    return _zoomed(layer, 2.0, 0.8, gen)


@_entered(ARRANGEMENTS, "close")
def _close_up(layer: Tensor, gen: torch.Generator) -> Tensor:
    return _zoomed(layer, 0.65, 0.2, gen)


@_entered(ARRANGEMENTS, "upside down")
def _upside_down(layer: Tensor, gen: torch.Generator) -> Tensor:
    return layer.flip(2)


@_entered(MATERIALS, "shadow")
def _shadow(layer: Tensor, gen: torch.Generator) -> Tensor:
    cast = blurred(shifted(layer[:, 3:], 4, 4), 1)
    return over(layer, flat(rgb("black"), 0.55 * cast))


@_entered(MATERIALS, "glowing")
def _glow(layer: Tensor, gen: torch.Generator) -> Tensor:
    halo = blurred(dilated(layer[:, 3:], 3), 3)
    return over(layer, flat(rgb("yellow"), 0.9 * halo))


@_entered(MATERIALS, "neon")
def _neon(layer: Tensor, gen: torch.Generator) -> Tensor:
    alpha = layer[:, 3:]
    colour = mean_colour(layer)
    # Without its middle, a line becomes the edges of a tube.
    tube = alpha - 0.8 * blurred(alpha, 2)
    core = torch.lerp(colour, rgb("white"), 0.75)
    halo = flat(colour, 0.75 * blurred(dilated(alpha, 2), 3))
    return over(flat(core, tube.clamp(0, 1)), halo)


@_entered(MATERIALS, "sticker")
def _sticker(layer: Tensor, gen: torch.Generator) -> Tensor:
    cut = dilated(layer[:, 3:], 3)
    sheet = over(flat(rgb("white"), cut), flat(rgb("black"), 0.35 * shifted(cut, 2, 2)))
    return over(layer, sheet)


@_entered(MATERIALS, "chalk")
def _chalk(layer: Tensor, gen: torch.Generator) -> Tensor:
    dust = (0.75 + 0.45 * white_noise(len(layer), gen)).clamp(0, 1)
    return torch.lerp(layer, dilated(layer), 0.5) * dust


@_entered(MATERIALS, "crayon")
def _crayon(layer: Tensor, gen: torch.Generator) -> Tensor:
    n = len(layer)
    wax = (0.9 + 0.9 * smooth_noise(n, 30, gen) + 0.5 * stripes(n, (3, 5), gen)).clamp(0, 1)
    return dilated(layer) * wax


@_entered(MATERIALS, "watercolour")
def _watercolour(layer: Tensor, gen: torch.Generator) -> Tensor:
    n = len(layer)
    wash = (0.55 + 0.3 * smooth_noise(n, 6, gen)).clamp(0.15, 1)
    # Pigment gathers at the rim of a wash, which therefore is more opaque than its middle.
    soft = blurred(layer, 1)
    rim = (soft[:, 3:] - blurred(layer[:, 3:], 3)).clamp(min=0)
    return soft * (wash + rim).clamp(0, 1)


@_entered(MATERIALS, "spray paint")
def _spray(layer: Tensor, gen: torch.Generator) -> Tensor:
    # Drops are likelier where the spray is denser.
    mist = blurred(dilated(layer, 2), 3)
    spots = (torch.rand(len(layer), 1, 64, 64, generator=gen) < 0.55 * mist[:, 3:] ** 1.5).float()
    colour = mist[:, :3] / mist[:, 3:].clamp(min=1e-3)
    return over(flat(colour, spots), 0.8 * blurred(layer, 1))


@_entered(MATERIALS, "glossy")
def _glossy(layer: Tensor, gen: torch.Generator) -> Tensor:
    curve = 24 + 6 * ((pixel_x() - 32) / 20).square()
    shine = 0.55 * (pixel_y() < curve).float()
    colours, alpha = layer[:, :3], layer[:, 3:]
    return torch.cat([colours + (alpha - colours) * shine, alpha], 1)


@_entered(MATERIALS, "banded")
def _banded(layer: Tensor, gen: torch.Generator) -> Tensor:
    bands = stripes(len(layer), (5, 8), gen)
    colours, alpha = layer[:, :3], layer[:, 3:]
    return torch.cat([torch.lerp(colours, alpha * rgb("white"), 0.75 * bands), alpha], 1)


@_entered(MATERIALS, "speckled")
def _speckled(layer: Tensor, gen: torch.Generator) -> Tensor:
    dots = dot_grid(len(layer), 6, 1.7, gen)
    colours, alpha = layer[:, :3], layer[:, 3:]
    return torch.cat([torch.lerp(colours, alpha * rgb("yellow"), 0.8 * dots), alpha], 1)


@_entered(MATERIALS, "rainbow")
def _rainbow(layer: Tensor, gen: torch.Generator) -> Tensor:
    angle = uniform(len(layer), 0, 2 * torch.pi, gen)
    along = (pixel_x() * angle.cos() + pixel_y() * angle.sin()) / 64 * 2 * torch.pi
    # Red, green and blue are a third of a turn apart, so the hue runs around the circle.
    phases = torch.tensor([0.0, 2.1, 4.2]).view(1, 3, 1, 1)
    alpha = layer[:, 3:]
    return torch.cat([alpha * (0.55 + 0.45 * (1.4 * along + phases).sin()), alpha], 1)


@_entered(MATERIALS, "solid")
def _extruded(layer: Tensor, gen: torch.Generator) -> Tensor:
    # Darker copies below the drawing, each a pixel further, look like its thickness.
    dark = torch.cat([0.45 * layer[:, :3], layer[:, 3:]], 1)
    block = layer
    for step in range(1, 6):
        block = over(block, shifted(dark, step, step))
    return block


@_entered(MATERIALS, "glass")
def _glass(layer: Tensor, gen: torch.Generator) -> Tensor:
    rim = layer - 0.75 * blurred(layer, 2)
    return (0.35 * layer + rim.clamp(min=0)).clamp(0, 1)


@_entered(MATERIALS, "papercut")
def _papercut(layer: Tensor, gen: torch.Generator) -> Tensor:
    # From top to bottom: the paper of the drawing's colours, its shadow, a white sheet.
    cut = (dilated(layer[:, 3:]) > 0.3).float()
    colour = layer[:, :3] / layer[:, 3:].clamp(min=0.05)
    sheet = flat(dilated(colour, 2).clamp(0, 1), cut)
    back = flat(rgb("white"), dilated(cut, 2))
    return over(over(sheet, flat(rgb("black"), 0.4 * shifted(cut, 2, 2) * dilated(cut, 2))), back)


@_entered(MATERIALS, "worn")
def _worn(layer: Tensor, gen: torch.Generator) -> Tensor:
    noise = smooth_noise(len(layer), 20, gen) + 0.4 * white_noise(len(layer), gen)
    return layer * (noise > -0.55).float()


@_ground("lined paper", "white")
def _lined(base: Tensor, gen: torch.Generator) -> Tensor:
    rule = lines(pixel_y(), 8, 3)
    margin = lines(pixel_x(), 64, 54)
    page = torch.lerp(base, rgb("blue"), 0.5 * rule)
    return torch.lerp(page, rgb("red"), 0.6 * margin)


@_ground("squared paper", "white")
def _squared(base: Tensor, gen: torch.Generator) -> Tensor:
    grid = (lines(pixel_y(), 6) + lines(pixel_x(), 6)).clamp(max=1)
    return torch.lerp(base, rgb("teal"), 0.35 * grid)


@_ground("wood", "brown", "gold", "beige")
def _wood(base: Tensor, gen: torch.Generator) -> Tensor:
    n = len(base)
    rings = (pixel_y() * 0.7 + 4 * smooth_noise(n, 3, gen) + uniform(n, 0, 9, gen)).sin()
    return base * (1 + 0.14 * rings + 0.1 * stretched_noise(n, 32, 5, gen))


@_ground("brick", "maroon", "red", "brown")
def _bricks(base: Tensor, gen: torch.Generator) -> Tensor:
    n = len(base)
    # Every second course of bricks is moved by half a brick.
    course = (pixel_y() // 8) % 2
    joints = (lines(pixel_y(), 8) + lines(pixel_x() + 8 * course, 16)).clamp(max=1)
    wall = base * (1 + 0.12 * smooth_noise(n, 8, gen)) + 0.04 * white_noise(n, gen)
    return torch.lerp(wall, rgb("beige"), 0.8 * joints)


@_ground("checks", *_PASTEL)
def _checks(base: Tensor, gen: torch.Generator) -> Tensor:
    field = ((pixel_x() // 8 + pixel_y() // 8) % 2).expand(len(base), 1, 64, 64)
    return torch.lerp(base, rgb("white"), 0.45 * field)


@_ground("night", "navy", "black", "purple")
def _night(base: Tensor, gen: torch.Generator) -> Tensor:
    n = len(base)
    stars = (torch.rand(n, 1, 64, 64, generator=gen) > 0.985).float()
    sky = base * (0.7 + 0.5 * pixel_y() / 64)
    return torch.lerp(sky, rgb("white"), stars)


@_ground("grass", "green", "olive")
def _grass(base: Tensor, gen: torch.Generator) -> Tensor:
    n = len(base)
    blades = stretched_noise(n, 64, 10, gen).transpose(2, 3)
    return base * (1 + 0.25 * blades) + 0.05 * white_noise(n, gen)


@_ground("sand", "beige", "gold")
def _sand(base: Tensor, gen: torch.Generator) -> Tensor:
    n = len(base)
    dunes = (pixel_y() * 0.5 + 3 * smooth_noise(n, 3, gen)).sin()
    return base * (1 + 0.06 * dunes) + 0.08 * white_noise(n, gen)


@_ground("water", "blue", "teal")
def _water(base: Tensor, gen: torch.Generator) -> Tensor:
    n = len(base)
    waves = (pixel_y() * 1.1 + 2.5 * (pixel_x() * 0.25 + uniform(n, 0, 6, gen)).sin()).sin()
    return torch.lerp(base, rgb("white"), 0.28 * (waves + smooth_noise(n, 6, gen)).clamp(0, 1))


@_ground("fabric", "navy", "maroon", "teal", "purple")
def _fabric(base: Tensor, gen: torch.Generator) -> Tensor:
    weave = ((pixel_x() + pixel_y()) % 4 < 2).float() - 0.5
    return base * (1 + 0.3 * weave + 0.06 * white_noise(len(base), gen))


@_ground("marble", "white", "grey")
def _marble(base: Tensor, gen: torch.Generator) -> Tensor:
    n = len(base)
    # Veins run where the noise changes its sign.
    veins = 1 - (smooth_noise(n, 5, gen) + 0.3 * smooth_noise(n, 12, gen)).abs().mul(4).clamp(max=1)
    return base * (1 - 0.35 * veins)


@_ground("metal", "grey")
def _metal(base: Tensor, gen: torch.Generator) -> Tensor:
    n = len(base)
    shine = (pixel_x() / 64 * 2 * torch.pi + uniform(n, 0, 6, gen)).sin()
    return base * (1 + 0.15 * shine + 0.1 * stretched_noise(n, 64, 2, gen))


@_ground("sunset", "purple")
def _sunset(base: Tensor, gen: torch.Generator) -> Tensor:
    height = pixel_y().expand(len(base), 1, 64, 64) / 63
    low = torch.lerp(rgb("pink"), rgb("yellow"), ((height - 0.5) * 2).clamp(0, 1))
    return torch.lerp(rgb("purple").expand_as(low), low, (height * 2).clamp(0, 1))


@_ground("rays", "yellow", "orange", "cyan", "pink")
def _rays(base: Tensor, gen: torch.Generator) -> Tensor:
    n = len(base)
    angle = torch.atan2(pixel_y() - 32, pixel_x() - 32) + uniform(n, 0, 6, gen)
    return torch.lerp(base, rgb("white"), 0.45 * ((angle * 8).sin() > 0).float())


@_ground("blackboard", "black", "green")
def _board(base: Tensor, gen: torch.Generator) -> Tensor:
    n = len(base)
    smears = blurred(stretched_noise(n, 12, 4, gen), 2).clamp(0, 2)
    return base + 0.06 * smears + 0.02 * white_noise(n, gen)


@_ground("blueprint", "blue", "navy")
def _blueprint(base: Tensor, gen: torch.Generator) -> Tensor:
    grid = (lines(pixel_y(), 8, 4) + lines(pixel_x(), 8, 4)).clamp(max=1)
    return torch.lerp(base, rgb("cyan"), 0.35 * grid)


@_ground("leaves", "green", "olive", "teal")
def _leaves(base: Tensor, gen: torch.Generator) -> Tensor:
    n = len(base)
    patches = (smooth_noise(n, 12, gen) > 0.3).float() + (smooth_noise(n, 12, gen) > 0.6).float()
    return base * (0.75 + 0.3 * patches)


@_ground("paper", "white", "beige")
def _paper(base: Tensor, gen: torch.Generator) -> Tensor:
    return base + 0.05 * smooth_noise(len(base), 5, gen) + 0.04 * white_noise(len(base), gen)


@_ground("stripes", *_PASTEL)
def _stripes(base: Tensor, gen: torch.Generator) -> Tensor:
    return torch.lerp(base, rgb("white"), 0.5 * stripes(len(base), (8, 14), gen))


@_ground("spots", *_PASTEL)
def _spots(base: Tensor, gen: torch.Generator) -> Tensor:
    return torch.lerp(base, rgb("white"), 0.6 * dot_grid(len(base), 12, 3.2, gen))


@_ground("stone", "grey")
def _stone(base: Tensor, gen: torch.Generator) -> Tensor:
    n = len(base)
    return base * (1 + 0.16 * smooth_noise(n, 10, gen) + 0.1 * smooth_noise(n, 24, gen))


def _grey(x: Tensor) -> Tensor:
    return x.mean(1, keepdim=True)


def _dark_on_light(x: Tensor) -> Tensor:
    """Grey images [n, 1, 64, 64] of full contrast, inverted where the ground is dark."""
    light = _grey(x)
    low, high = light.amin((2, 3), keepdim=True), light.amax((2, 3), keepdim=True)
    light = (light - low) / (high - low).clamp(min=0.1)
    # The upper edge shows mostly ground.
    border = light[..., :4, :].mean((2, 3), keepdim=True)
    return torch.where(border < 0.5, 1 - light, light)


@_entered(FINISHES, "embossed")
def _embossed(x: Tensor, gen: torch.Generator) -> Tensor:
    light = _grey(x)
    # The difference to a moved copy lights edges from one side. 1 is taken away for the shift and
    # added again, so that what comes in at the border is white.
    relief = light - shifted(light - 1, 2, 2) - 1
    return 0.6 + 0.14 * (x - 0.5) + 0.5 * relief


@_entered(FINISHES, "halftone")
def _halftone(x: Tensor, gen: torch.Generator) -> Tensor:
    # A grid of dots, turned by 45 degrees, is the threshold of each pixel and colour.
    u, v = (pixel_x() + pixel_y()) * 0.7071, (pixel_x() - pixel_y()) * 0.7071
    screen = 0.5 + 0.25 * ((u * 1.55).sin() + (v * 1.55).sin())
    return ((blurred(x, 1) - screen) * 5 + 0.5).clamp(0, 1)


@_entered(FINISHES, "mosaic")
def _mosaic(x: Tensor, gen: torch.Generator) -> Tensor:
    tiles = pixelated(x, 16)
    tint = 0.1 * F.interpolate(torch.randn(len(x), 1, 16, 16, generator=gen), size=(SIZE, SIZE))
    joints = (lines(pixel_y(), 4) + lines(pixel_x(), 4)).clamp(max=1)
    return torch.lerp(tiles + tint, rgb("grey"), 0.75 * joints)


@_entered(FINISHES, "engraved")
def _engraved(x: Tensor, gen: torch.Generator) -> Tensor:
    # Wavy lines that are thicker where the image is darker.
    dark = blurred(1 - _dark_on_light(x), 1)
    wave = ((pixel_y() + 1.5 * (pixel_x() * 0.15).sin()) * 1.9).sin()
    return ((wave - 2.4 * dark + 1.3) * 2).clamp(0, 1).expand_as(x)


@_entered(FINISHES, "sepia")
def _sepia(x: Tensor, gen: torch.Generator) -> Tensor:
    corner = ((pixel_x() - 31.5).square() + (pixel_y() - 31.5).square()) / 2000
    tone = torch.lerp(rgb("black"), torch.tensor((0.96, 0.86, 0.66)).view(1, 3, 1, 1), _grey(x))
    return tone * (1.05 - 0.3 * corner)


@_entered(FINISHES, "television")
def _screen(x: Tensor, gen: torch.Generator) -> Tensor:
    # Every second pair of rows is dark, and red and blue are a pixel off.
    rows = 1 - 0.55 * ((pixel_y() // 2) % 2)
    ghost = torch.cat([shifted(x[:, :1], 1, 0), x[:, 1:2], shifted(x[:, 2:], -1, 0)], 1)
    return 1.1 * ghost * rows


@_entered(FINISHES, "poster")
def _posterised(x: Tensor, gen: torch.Generator) -> Tensor:
    vivid = _grey(x) + 1.8 * (x - _grey(x))
    return (vivid * 2.5).round() / 2.5


@_entered(FINISHES, "stitched")
def _stitched(x: Tensor, gen: torch.Generator) -> Tensor:
    cells = pixelated(x, 16)
    # A cross in each cell of 4 x 4 pixels.
    u, v = pixel_x() % 4, pixel_y() % 4
    cross = ((u == v) | (u + v == 3)).float()
    return cells * (0.62 + 0.45 * cross)


@_entered(FINISHES, "oil painting")
def _oil(x: Tensor, gen: torch.Generator) -> Tensor:
    n = len(x)
    strokes = torch.cat([smooth_noise(n, 20, gen), smooth_noise(n, 20, gen)], 1) * 1.2
    return warped(blurred(x, 1), strokes) * (1 + 0.12 * smooth_noise(n, 28, gen))


@_entered(FINISHES, "photocopy")
def _photocopy(x: Tensor, gen: torch.Generator) -> Tensor:
    n = len(x)
    copy = ((_dark_on_light(x) - 0.6) * 4 + 0.5 + 0.25 * smooth_noise(n, 16, gen)).clamp(0.05, 0.95)
    return (copy + 0.08 * white_noise(n, gen)).expand_as(x)


@_entered(FINISHES, "glitch")
def _glitch(x: Tensor, gen: torch.Generator) -> Tensor:
    n = len(x)
    bands = F.interpolate(torch.randn(n, 1, 10, 1, generator=gen), size=(SIZE, SIZE))
    # Only bands with large values move, by three pixels or more.
    offset = 4 * bands * (bands.abs() > 0.7)
    return warped(x, torch.cat([offset, torch.zeros_like(offset)], 1))


@_entered(FINISHES, "foggy")
def _fog(x: Tensor, gen: torch.Generator) -> Tensor:
    mist = (0.45 + 0.25 * smooth_noise(len(x), 4, gen)).clamp(0, 0.8)
    return torch.lerp(blurred(x, 1), rgb("white"), mist)


@_entered(FINISHES, "rippled")
def _ripples(x: Tensor, gen: torch.Generator) -> Tensor:
    n = len(x)
    u, v = pixel_x() - uniform(n, 20, 44, gen), pixel_y() - uniform(n, 20, 44, gen)
    radius = (u.square() + v.square()).sqrt() + 1e-3
    wave = 1.6 * (radius * 0.75).sin() / radius
    return warped(x, torch.cat([u * wave, v * wave], 1))


@_entered(FINISHES, "pixelated")
def _pixelated(x: Tensor, gen: torch.Generator) -> Tensor:
    return pixelated(x, _GRIDS[int(torch.randint(len(_GRIDS), (), generator=gen))])


@_entered(FINISHES, "blurred")
def _blurred(x: Tensor, gen: torch.Generator) -> Tensor:
    return blurred(blurred(x, 2), 1)


@_entered(FINISHES, "grainy")
def _grainy(x: Tensor, gen: torch.Generator) -> Tensor:
    return x + 0.16 * white_noise(len(x), gen)


@_entered(FINISHES, "faded")
def _faded(x: Tensor, gen: torch.Generator) -> Tensor:
    return 0.62 + 0.32 * (x - 0.5)
