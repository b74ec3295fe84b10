"""What happens to the whole image: each finish changes images [n, 3, 64, 64] in [0, 1].

`painting.paint` clamps what a finish returns.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dfkd.lab.miniature.looks.colours import rgb
from dfkd.lab.miniature.looks.fields import (
    SIZE,
    Operation,
    blurred,
    lines,
    pixel_x,
    pixel_y,
    pixelated,
    shifted,
    smooth_noise,
    uniform,
    warped,
    white_noise,
)

_GRIDS = (10, 12, 14, 16, 20)
"""Widths of pixel art, in its large pixels."""


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


def _pixelated(x: Tensor, gen: torch.Generator) -> Tensor:
    return pixelated(x, _GRIDS[int(torch.randint(len(_GRIDS), (), generator=gen))])


def _blurry(x: Tensor, gen: torch.Generator) -> Tensor:
    return blurred(blurred(x, 2), 1)


def _embossed(x: Tensor, gen: torch.Generator) -> Tensor:
    light = _grey(x)
    # The difference to a moved copy lights edges from one side. 1 is taken away for the shift and
    # added again, so that what comes in at the border is white.
    relief = light - shifted(light - 1, 2, 2) - 1
    return 0.6 + 0.14 * (x - 0.5) + 0.5 * relief


def _grainy(x: Tensor, gen: torch.Generator) -> Tensor:
    return x + 0.16 * white_noise(len(x), gen)


def _halftone(x: Tensor, gen: torch.Generator) -> Tensor:
    # A grid of dots, turned by 45 degrees, is the threshold of each pixel and colour.
    u, v = (pixel_x() + pixel_y()) * 0.7071, (pixel_x() - pixel_y()) * 0.7071
    screen = 0.5 + 0.25 * ((u * 1.55).sin() + (v * 1.55).sin())
    return ((blurred(x, 1) - screen) * 5 + 0.5).clamp(0, 1)


def _mosaic(x: Tensor, gen: torch.Generator) -> Tensor:
    tiles = pixelated(x, 16)
    tint = 0.1 * F.interpolate(torch.randn(len(x), 1, 16, 16, generator=gen), size=(SIZE, SIZE))
    joints = (lines(pixel_y(), 4) + lines(pixel_x(), 4)).clamp(max=1)
    return torch.lerp(tiles + tint, rgb("grey"), 0.75 * joints)


def _engraved(x: Tensor, gen: torch.Generator) -> Tensor:
    # Wavy lines that are thicker where the image is darker.
    dark = blurred(1 - _dark_on_light(x), 1)
    wave = ((pixel_y() + 1.5 * (pixel_x() * 0.15).sin()) * 1.9).sin()
    return ((wave - 2.4 * dark + 1.3) * 2).clamp(0, 1).expand_as(x)


def _faded(x: Tensor, gen: torch.Generator) -> Tensor:
    return 0.62 + 0.32 * (x - 0.5)


def _sepia(x: Tensor, gen: torch.Generator) -> Tensor:
    corner = ((pixel_x() - 31.5).square() + (pixel_y() - 31.5).square()) / 2000
    tone = torch.lerp(rgb("black"), torch.tensor((0.96, 0.86, 0.66)).view(1, 3, 1, 1), _grey(x))
    return tone * (1.05 - 0.3 * corner)


def _screen(x: Tensor, gen: torch.Generator) -> Tensor:
    # Every second pair of rows is dark, and red and blue are a pixel off.
    rows = 1 - 0.55 * ((pixel_y() // 2) % 2)
    ghost = torch.cat([shifted(x[:, :1], 1, 0), x[:, 1:2], shifted(x[:, 2:], -1, 0)], 1)
    return 1.1 * ghost * rows


def _posterised(x: Tensor, gen: torch.Generator) -> Tensor:
    vivid = _grey(x) + 1.8 * (x - _grey(x))
    return (vivid * 2.5).round() / 2.5


def _stitched(x: Tensor, gen: torch.Generator) -> Tensor:
    cells = pixelated(x, 16)
    # A cross in each cell of 4 x 4 pixels.
    u, v = pixel_x() % 4, pixel_y() % 4
    cross = ((u == v) | (u + v == 3)).float()
    return cells * (0.62 + 0.45 * cross)


def _oil(x: Tensor, gen: torch.Generator) -> Tensor:
    n = len(x)
    strokes = torch.cat([smooth_noise(n, 20, gen), smooth_noise(n, 20, gen)], 1) * 1.2
    return warped(blurred(x, 1), strokes) * (1 + 0.12 * smooth_noise(n, 28, gen))


def _photocopy(x: Tensor, gen: torch.Generator) -> Tensor:
    n = len(x)
    copy = ((_dark_on_light(x) - 0.6) * 4 + 0.5 + 0.25 * smooth_noise(n, 16, gen)).clamp(0.05, 0.95)
    return (copy + 0.08 * white_noise(n, gen)).expand_as(x)


def _glitch(x: Tensor, gen: torch.Generator) -> Tensor:
    n = len(x)
    bands = F.interpolate(torch.randn(n, 1, 10, 1, generator=gen), size=(SIZE, SIZE))
    # Only bands with large values move, by three pixels or more.
    offset = 4 * bands * (bands.abs() > 0.7)
    return warped(x, torch.cat([offset, torch.zeros_like(offset)], 1))


def _fog(x: Tensor, gen: torch.Generator) -> Tensor:
    mist = (0.45 + 0.25 * smooth_noise(len(x), 4, gen)).clamp(0, 0.8)
    return torch.lerp(blurred(x, 1), rgb("white"), mist)


def _ripples(x: Tensor, gen: torch.Generator) -> Tensor:
    n = len(x)
    u, v = pixel_x() - uniform(n, 20, 44, gen), pixel_y() - uniform(n, 20, 44, gen)
    radius = (u.square() + v.square()).sqrt() + 1e-3
    wave = 1.6 * (radius * 0.75).sin() / radius
    return warped(x, torch.cat([u * wave, v * wave], 1))


FINISHES: dict[str, Operation] = {
    "pixelated": _pixelated,
    "blurred": _blurry,
    "embossed": _embossed,
    "grainy": _grainy,
    "halftone": _halftone,
    "mosaic": _mosaic,
    "engraved": _engraved,
    "faded": _faded,
    "sepia": _sepia,
    "television": _screen,
    "poster": _posterised,
    "stitched": _stitched,
    "oil painting": _oil,
    "photocopy": _photocopy,
    "glitch": _glitch,
    "foggy": _fog,
    "rippled": _ripples,
}
"""Word -> finish."""
