"""What this machine can do at best, measured beside what is compared with it."""

import torch
from torch.nn import functional as F

from dfkd.benchmarks.measure import Call
from dfkd.device import multiplies_bfloat16
from dfkd.fields import Precision

SIDE = {"cpu": 1024, "cuda": 8192}
"""Rows and columns of the matrices that are multiplied."""
IMAGES = {"cpu": 8, "cuda": 64}
CHANNELS, CELLS = 128, 32
"""Of the convolution: channels in and out, and a side of its maps."""


def product(device: torch.device, precision: Precision = "float32") -> Call:
    """A matrix product; its units are floating-point operations."""
    side, dtype = SIDE[device.type], _dtype(device, precision)
    left, right = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(2))

    def call() -> float:
        torch.mm(left, right)
        return 2.0 * side**3

    return call


def convolution(device: torch.device, precision: Precision = "float32") -> Call:
    """A 3 x 3 convolution, forward; its units are floating-point operations."""
    images, dtype = IMAGES[device.type], _dtype(device, precision)
    maps = torch.ones(images, CHANNELS, CELLS, CELLS, dtype=dtype, device=device)
    kernel = torch.ones(CHANNELS, CHANNELS, 3, 3, dtype=dtype, device=device)
    if device.type == "cuda":
        maps = maps.contiguous(memory_format=torch.channels_last)

    def call() -> float:
        with torch.no_grad():
            F.conv2d(maps, kernel, padding=1)
        return 2.0 * images * CELLS**2 * 9 * CHANNELS**2

    return call


def _dtype(device: torch.device, precision: Precision) -> torch.dtype:
    mixed = precision == "bfloat16" and multiplies_bfloat16(device)
    return torch.bfloat16 if mixed else torch.float32
