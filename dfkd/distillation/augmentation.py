"""Augmented views: random parameters for each image, computed for the whole batch at once.

The geometric augmentations (flip, crop, affine, turn) are composed into one matrix for each image
and sampled once; the colour augmentations (colour, grey, invert) are composed into another matrix.
A view therefore costs about the same for any combination.
"""

import functools
import math
from collections.abc import Collection
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from dfkd.config.distillation import Augmentation

CROP_AREA = (0.5, 1.0)
"""Area of a crop relative to the image."""
ROTATION, SHEAR, SHIFT, SCALE = math.radians(20), 0.15, 0.1, (0.8, 1.2)
"""Largest rotation in radians, largest shear and shift (in half image sides), and size factors."""
TURN = math.radians(90)
"""Largest angle of `turn`, in radians, for pictures of things that may lie in any direction."""
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.3, (0.6, 1.4), (0.2, 1.8), math.pi / 6
"""Largest brightness offset, factors of contrast and saturation, largest hue angle in radians."""
GREY, INVERT, BLUR, ERASE = 0.25, 0.15, 0.3, 0.3
"""Probability of each augmentation for an image."""
NOISE = 0.08
"""Largest standard deviation of the pixel noise."""

LUMA = (0.299, 0.587, 0.114)
"""Weights of R, G and B in the luma (ITU-R BT.601)."""
CROSS = ((0.0, -1.0, 1.0), (1.0, 0.0, -1.0), (-1.0, 1.0, 0.0))
"""The cross product with (1, 1, 1), the direction of greys."""


class _Draws:
    """Random numbers, one for each image of a batch, on the generator's device."""

    def __init__(self, batch: int, generator: Generator) -> None:
        """For `batch` images; every call advances `generator`."""
        self.batch, self.generator = batch, generator

    def uniform(self, low: float, high: float) -> Tensor:
        """float32 [N], uniform in [low, high)."""
        return (
            torch.rand(self.batch, generator=self.generator, device=self.generator.device)
            .mul_(high - low)
            .add_(low)
        )

    def bernoulli(self, probability: float) -> Tensor:
        """bool [N], true with the given probability."""
        return self.uniform(0, 1) < probability


def augment(pixels: Tensor, options: Collection[Augmentation], generator: Generator) -> Tensor:
    """Views of `pixels` [N, 3, H, W] float32 in [0, 1], of the same shape and range.

    `generator` must be on the device of `pixels`; the same state gives the same views.
    """
    draws = _Draws(len(pixels), generator)
    # Geometry comes first, so that noise and erased rectangles are not interpolated.
    if not {"crop", "affine", "turn"}.isdisjoint(options):
        pixels = _sample(pixels, _geometry(options, draws))
    elif "flip" in options:  # exact, without interpolation
        mirrored = draws.bernoulli(0.5).view(-1, 1, 1, 1)
        pixels = torch.where(mirrored, pixels.flip(-1), pixels)
    if not {"colour", "grey", "invert"}.isdisjoint(options):
        pixels = _colours(pixels, options, draws)
    if "blur" in options:
        pixels = _blur(pixels, draws)
    if "noise" in options:
        noise = torch.randn(
            pixels.shape, generator=generator, device=pixels.device, dtype=pixels.dtype
        )
        pixels = torch.addcmul(pixels, noise, draws.uniform(0, NOISE).view(-1, 1, 1, 1))
    if "erase" in options:
        pixels = _erase(pixels, draws)
    return pixels.clamp(0, 1)


def _geometry(options: Collection[Augmentation], draws: _Draws) -> Tensor:
    """Affine matrices float32 [N, 2, 3] from view to image coordinates, both in [-1, 1]."""
    device = draws.generator.device
    linear = torch.eye(2, device=device).expand(draws.batch, 2, 2)
    shift = torch.zeros(draws.batch, 2, device=device)
    if "affine" in options:
        # Rotation x shear, divided by the size: the map from view to image enlarges inversely.
        angle = draws.uniform(-ROTATION, ROTATION)
        size = draws.uniform(*SCALE)
        shear = draws.uniform(-SHEAR, SHEAR)
        cos, sin = angle.cos() / size, angle.sin() / size
        linear = torch.stack(
            [torch.stack([cos, cos * shear - sin], 1), torch.stack([sin, sin * shear + cos], 1)], 1
        )
        shift = torch.stack([draws.uniform(-SHIFT, SHIFT), draws.uniform(-SHIFT, SHIFT)], 1)
    if "turn" in options:
        angle = draws.uniform(-TURN, TURN)
        cos, sin = angle.cos(), angle.sin()
        linear = linear @ torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    if "crop" in options:
        side = draws.uniform(*CROP_AREA).sqrt()
        slack = 1 - side  # how far the centre of the crop may move
        corner = torch.stack([draws.uniform(-1, 1), draws.uniform(-1, 1)], 1) * slack[:, None]
        # The crop comes before the affine map, so its corner goes through `linear`.
        shift = shift + (linear @ corner[:, :, None])[:, :, 0]
        linear = linear * side[:, None, None]
    if "flip" in options:
        # Mirroring the view comes first of all: it negates the column of x.
        sign = 1 - 2 * draws.bernoulli(0.5).float()
        linear = linear * torch.stack([sign, torch.ones_like(sign)], 1)[:, None, :]
    return torch.cat([linear, shift[:, :, None]], 2)


def _sample(pixels: Tensor, geometry: Tensor) -> Tensor:
    """The views of `pixels` under affine matrices from `_geometry`; borders are repeated."""
    grid = F.affine_grid(geometry, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)


def _colours(pixels: Tensor, options: Collection[Augmentation], draws: _Draws) -> Tensor:
    """x' = A x + b with random A [3, 3] and b [3] for each image; returns x' in [0, 1]."""
    batch, device = draws.batch, pixels.device
    matrix = torch.eye(3, device=device).expand(batch, 3, 3)
    offset = torch.zeros(batch, 3, device=device)
    luma = _constant(LUMA, device).expand(3, 3)
    if "colour" in options:
        saturation = draws.uniform(*SATURATION)[:, None, None]
        # Saturation interpolates between the hue-rotated colour and the original one's luma.
        matrix = saturation * _hue(draws.uniform(-HUE, HUE)) + (1 - saturation) * luma
        contrast = draws.uniform(*CONTRAST)
        matrix = matrix * contrast[:, None, None]
        # Contrast is about mid-grey: c * x + (1 - c) / 2.
        brightness = (1 - contrast) / 2 + draws.uniform(-BRIGHTNESS, BRIGHTNESS)
        offset = offset + brightness[:, None]
    if "grey" in options:
        # luma @ matrix: the luma of the colour that the matrix gives, in all three channels.
        grey = draws.bernoulli(GREY)[:, None, None]
        matrix = torch.where(grey, luma @ matrix, matrix)
    if "invert" in options:
        # 1 - (A x + b) = -A x + (1 - b)
        invert = draws.bernoulli(INVERT)
        matrix = torch.where(invert[:, None, None], -matrix, matrix)
        offset = torch.where(invert[:, None], 1 - offset, offset)
    flat = torch.baddbmm(offset[:, :, None], matrix, pixels.flatten(2))
    return flat.view_as(pixels).clamp(0, 1)


@functools.cache
def _constant(values: tuple[Any, ...], device: torch.device) -> Tensor:
    """Constants on a device; copied once, because to copy from the CPU is to wait for a GPU."""
    return torch.tensor(values, device=device)


def _hue(angle: Tensor) -> Tensor:
    """Rotations float32 [N, 3, 3] about the grey axis (Rodrigues' formula); greys stay the same."""
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    mean = torch.full((3, 3), 1 / 3, device=angle.device)
    cross = _constant(CROSS, angle.device) / 3**0.5
    return cos * torch.eye(3, device=angle.device) + (1 - cos) * mean + sin * cross


def _blur(pixels: Tensor, draws: _Draws) -> Tensor:
    """Mix a random part of the images with their blur (two box filters), each to its own degree."""
    reach = max(1, pixels.shape[-1] // 64)
    blurred = pixels
    for padding in (reach, reach - 1):  # an even filter adds a pixel, the next one removes it
        blurred = F.avg_pool2d(blurred, 2 * reach, 1, padding, count_include_pad=False)
    degree = draws.bernoulli(BLUR) * draws.uniform(0.3, 1)
    return torch.lerp(pixels, blurred, degree.view(-1, 1, 1, 1))


def _erase(pixels: Tensor, draws: _Draws) -> Tensor:
    """Fill a rectangle with a random colour in a random part of the images."""
    rows, columns = (_stripe(length, draws) for length in pixels.shape[-2:])
    colour = torch.stack([draws.uniform(0, 1) for _ in range(3)], 1)[:, :, None, None]
    hole = rows[:, None, :, None] & columns[:, None, None, :]
    hole = hole & draws.bernoulli(ERASE).view(-1, 1, 1, 1)
    return torch.where(hole, colour, pixels)


def _stripe(length: int, draws: _Draws) -> Tensor:
    """bool [N, length]: one interval for each image, 1/5 to 1/2 of the length."""
    size = draws.uniform(0.2, 0.5)
    start = draws.uniform(0, 1) * (1 - size)
    position = (torch.arange(length, device=size.device) + 0.5) / length
    return (position >= start[:, None]) & (position < (start + size)[:, None])
