"""Batch augmentation of icons in torch: colours, stroke weights, pixel grids and textures.

All functions take an explicit generator and work on whole batches. Expensive operations only run on
random subsets. Images are float32 in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from dfkd.miniature.captions import Look

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.15, 0.18),
    "orange": (0.96, 0.55, 0.12),
    "yellow": (0.98, 0.82, 0.2),
    "green": (0.25, 0.65, 0.27),
    "teal": (0.1, 0.6, 0.6),
    "cyan": (0.3, 0.8, 0.93),
    "blue": (0.16, 0.4, 0.88),
    "purple": (0.5, 0.25, 0.75),
    "pink": (0.95, 0.5, 0.68),
    "brown": (0.5, 0.3, 0.18),
    "beige": (0.93, 0.85, 0.7),
    "grey": (0.55, 0.57, 0.6),
    "black": (0.05, 0.05, 0.06),
    "white": (0.98, 0.98, 0.98),
    "navy": (0.1, 0.13, 0.32),
}
_NAMES = list(COLOURS)
_TABLE = torch.tensor(list(COLOURS.values()))
_GRIDS = (12, 16, 20, 24, 28, 32)
BLACK, WHITE = _NAMES.index("black"), _NAMES.index("white")


@dataclass(frozen=True)
class AugmentationPlan:
    """The operations on each of B images: booleans and colour indices, all of shape [B]."""

    ink: Tensor
    body: Tensor
    ground: Tensor
    filled: Tensor
    bold: Tensor
    thin: Tensor
    edges: Tensor
    grid: Tensor
    wobble: Tensor
    blur: Tensor
    noise: Tensor
    texture: Tensor

    def looks(self, black: int) -> list[Look]:
        """The plan in words, for captions; the first ``black`` images are drawn in a single ink
        colour.
        """
        strokes = {
            "bold": self.bold,
            "thin": self.thin,
            "outline": self.edges,
            "filled": self.filled,
        }
        finishes = {
            "pixel": self.grid > 0,
            "pixel art": self.grid > 0,
            "sketch": self.wobble,
            "hand drawn": self.wobble,
            "soft": self.blur,
            "noisy": self.noise,
            "textured": self.texture,
        }
        lists = {word: flags.tolist() for word, flags in (strokes | finishes).items()}
        looks = []
        for i, ink in enumerate(self.ink.tolist()):
            known = lists if i < black else finishes
            words = [word for word in known if lists[word][i]]
            looks.append(Look((_NAMES[ink], *words) if i < black else tuple(words)))
        return looks


def plan(count: int, gen: torch.Generator, strength: float = 1.0) -> AugmentationPlan:
    """Draw a plan for ``count`` images; with ``strength`` 0 all images stay black on white."""

    def chance(p: float) -> Tensor:
        return torch.rand(count, generator=gen) < p * strength

    def colour() -> Tensor:
        return torch.randint(len(_NAMES), (count,), generator=gen)

    def one_of(values: tuple[int, ...]) -> Tensor:
        return torch.tensor(values)[torch.randint(len(values), (count,), generator=gen)]

    colourful, inverted, filled = chance(0.6), chance(0.08), chance(0.3)
    plain = ~(colourful | inverted)
    ink = torch.where(plain, BLACK, torch.where(inverted, WHITE, colour()))
    ground = torch.where(plain | chance(0.4), WHITE, torch.where(inverted, BLACK, colour()))
    grid = torch.where(chance(0.2), one_of(_GRIDS), 0)
    weight = torch.rand(count, generator=gen) / max(strength, 1e-6)
    return AugmentationPlan(
        ink,
        colour(),
        ground,
        filled & ~(plain & chance(0.6)),
        weight < 0.2,
        (weight > 0.2) & (weight < 0.3),
        (weight > 0.3) & (weight < 0.36),
        grid,
        chance(0.35),
        chance(0.15),
        chance(0.2),
        chance(0.2),
    )


def paint(
    alpha: Tensor,
    coloured: Tensor,
    p: AugmentationPlan,
    gen: torch.Generator,
    strength: float = 1.0,
) -> Tensor:
    """Render a batch: [N, 64, 64] ink coverage and [M, 4, 64, 64] RGBA to [N + M, 3, 64, 64]."""
    n, m = len(alpha), len(coloured)
    mono = warp(alpha.unsqueeze(1), p.wobble[:n], gen, strength)
    body = torch.zeros_like(mono)
    rows = p.filled[:n].nonzero().squeeze(1)
    if len(rows):
        body[rows] = fill_holes(mono[rows])
    # Silhouettes come first: bolder or thinner strokes could open or close their outline.
    mono = _restroke(mono, p, n)
    mono, body = pixelate(mono, p.grid[:n], gen), pixelate(body, p.grid[:n], gen)
    ground = _colour(p.ground, gen)
    inked = ground[:n] * (1 - torch.maximum(mono, body)) + _colour(p.body[:n], gen) * body * (
        1 - mono
    )
    inked = inked + _gradient(p.ink[:n], gen) * torch.minimum(mono, torch.ones(()))
    if m:
        layer = pixelate(warp(coloured, p.wobble[n:], gen, strength), p.grid[n:], gen)
        tint = _recolour(layer[:, :3], gen)
        inked = torch.cat([inked, tint + ground[n:] * (1 - layer[:, 3:])])
    return _degrade(inked, p, gen).clamp_(0, 1)


def warp(x: Tensor, wobble: Tensor, gen: torch.Generator, strength: float = 1.0) -> Tensor:
    """A random affine map, and an elastic one for images with ``wobble``; zeros fill the border."""
    n, size = len(x), x.shape[-1]
    if n == 0:
        return x

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(n, generator=gen) * (high - low) + low

    angle, flip = (
        torch.randn(n, generator=gen) * 0.12 * strength,
        torch.rand(n, generator=gen) < 0.3,
    )
    sx, sy = (
        uniform(1 - 0.1 * strength, 1 + 0.35 * strength),
        uniform(1 - 0.1 * strength, 1 + 0.35 * strength),
    )
    # Most images keep their aspect ratio; a third are mirrored.
    sy = torch.where(torch.rand(n, generator=gen) < 0.7, sx, sy)
    sx = torch.where(flip, -sx, sx)
    shear = torch.randn(n, generator=gen) * 0.06 * strength
    far = 0.12 * strength
    theta = torch.stack(
        [
            torch.stack([sx * angle.cos(), -sy * (angle + shear).sin(), uniform(-far, far)], 1),
            torch.stack([sx * angle.sin(), sy * angle.cos(), uniform(-far, far)], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta, [n, 1, size, size], align_corners=False)
    coarse = torch.randn(n, 2, 6, 6, generator=gen) * (wobble * 0.035).view(-1, 1, 1, 1)
    bend = F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)
    return F.grid_sample(x, grid + bend.permute(0, 2, 3, 1), align_corners=False)


def fill_holes(ink: Tensor) -> Tensor:
    """Silhouettes [N, 1, S, S] (0 or 1) of drawings: the ink and everything that it encloses."""
    empty = np.pad(ink.squeeze(1).numpy() < 0.4, ((0, 0), (1, 1), (1, 1)), constant_values=True)
    in_plane = np.zeros((3, 3, 3), bool)
    in_plane[1] = ndimage.generate_binary_structure(2, 1)
    labels, _ = ndimage.label(empty, in_plane)
    # The border was padded as empty, so the component of the corner is the outside.
    outside = labels == labels[:, :1, :1]
    return torch.from_numpy(~outside[:, 1:-1, 1:-1]).unsqueeze(1).to(ink.dtype)


def pixelate(x: Tensor, grid: Tensor, gen: torch.Generator) -> Tensor:
    """Images with ``grid`` > 0 reduced to that many cells a side; most single-channel ones get
    hard edges.
    """
    for cells in grid.unique().tolist():
        if cells == 0:
            continue
        rows = (grid == cells).nonzero().squeeze(1)
        coarse = F.adaptive_avg_pool2d(x[rows], int(cells))
        if x.shape[1] == 1:
            hard = torch.rand(len(rows), 1, 1, 1, generator=gen) < 0.7
            coarse = torch.where(hard, (coarse > 0.35).to(x.dtype), coarse)
        x = x.index_copy(0, rows, F.interpolate(coarse, size=x.shape[-2:], mode="nearest"))
    return x


def _restroke(x: Tensor, p: AugmentationPlan, n: int) -> Tensor:
    for flags, kind in ((p.bold[:n], "bold"), (p.thin[:n], "thin"), (p.edges[:n], "edges")):
        rows = flags.nonzero().squeeze(1)
        if not len(rows):
            continue
        part = x[rows]
        grown, shrunk = F.max_pool2d(part, 3, 1, 1), -F.max_pool2d(-part, 3, 1, 1)
        new = {"bold": grown, "thin": 0.5 * (part + shrunk), "edges": grown - shrunk}[kind]
        x = x.index_copy(0, rows, new)
    return x


def _colour(numbers: Tensor, gen: torch.Generator) -> Tensor:
    base = _TABLE[numbers]
    extreme = ((numbers == BLACK) | (numbers == WHITE)).unsqueeze(1)
    jitter = torch.randn(base.shape, generator=gen) * torch.where(extreme, 0.02, 0.08)
    return (base + jitter).clamp_(0, 1).view(-1, 3, 1, 1)


def _gradient(numbers: Tensor, gen: torch.Generator) -> Tensor:
    """Ink colours [N, 3, 64, 64]; about a third of those not black or white blend into another
    colour.
    """
    first = _colour(numbers, gen)
    second = _colour(torch.randint(len(_NAMES), numbers.shape, generator=gen), gen)
    plain = (
        (numbers == BLACK) | (numbers == WHITE) | (torch.rand(len(numbers), generator=gen) > 0.35)
    )
    second = torch.where(plain.view(-1, 1, 1, 1), first, second)
    angle = torch.rand(len(numbers), 1, 1, 1, generator=gen) * 6.2832
    axis = torch.linspace(-1, 1, 64)
    slope = axis.view(1, 1, 1, 64) * angle.cos() + axis.view(1, 1, 64, 1) * angle.sin()
    return torch.lerp(first.expand(-1, -1, 64, 64), second.expand(-1, -1, 64, 64), slope.sigmoid())


def _recolour(rgb: Tensor, gen: torch.Generator) -> Tensor:
    """Premultiplied colours; some images get permuted channels, some fade to grey."""
    n = len(rgb)
    order = torch.stack([torch.randperm(3, generator=gen) for _ in range(n)])
    order = torch.where(torch.rand(n, 1, generator=gen) < 0.2, order, torch.arange(3))
    rgb = rgb.gather(1, order.view(n, 3, 1, 1).expand_as(rgb))
    fade = torch.rand(n, 1, 1, 1, generator=gen) * (torch.rand(n, 1, 1, 1, generator=gen) < 0.25)
    return torch.lerp(rgb, rgb.mean(1, keepdim=True).expand_as(rgb), fade)


def _degrade(x: Tensor, p: AugmentationPlan, gen: torch.Generator) -> Tensor:
    """Blurred, noisy and textured versions, similar to a generator's mistakes."""
    rows = p.blur.nonzero().squeeze(1)
    soft = F.avg_pool2d(F.pad(x[rows], (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = x.index_copy(0, rows, soft)
    rows = p.texture.nonzero().squeeze(1)
    coarse = torch.randn(len(rows), 3, 9, 9, generator=gen)
    coarse = coarse * torch.rand(len(rows), 1, 1, 1, generator=gen) * 0.2
    x = x.index_add(0, rows, F.interpolate(coarse, size=(64, 64), mode="bilinear"))
    rows = p.noise.nonzero().squeeze(1)
    level = torch.rand(len(rows), 1, 1, 1, generator=gen) * 0.12
    return x.index_add(0, rows, torch.randn(len(rows), 3, 64, 64, generator=gen) * level)
