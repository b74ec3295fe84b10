"""Convolutions of small maps on a CPU, as matrix products.

Where a map has a few places and a layer many channels, as at the end of a ResNet that is shown 64
pixels, oneDNN spends nearly all of its time on bringing the weights into an order of its own, again
at every step. On a Xeon, 3 x 3 on 2 x 2 places with 512 channels takes three times as long as the
product in float32, and six times in bfloat16.
"""

from collections.abc import Callable, Iterable, Mapping
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

MAX_POSITIONS = 16
"""Of the map that comes out, at the most: as a product, larger ones are slower."""

MIN_WEIGHTS = 1 << 19
"""Of the layer, at the least: where there are fewer, their order costs little."""


class SmallMaps(TorchFunctionMode):
    """While entered, `torch.conv2d` is a matrix product where that is faster; else as it was.

    The results are the same up to rounding, and so are the gradients.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.conv2d and not kwargs and _small(*args):
            return convolve(*args[:5])
        return func(*args, **(kwargs or {}))


def _small(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] | str = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> bool:
    """Whether a convolution with these arguments, those of `torch.conv2d`, is worth a product."""
    plain = groups == 1 and tuple(dilation) == (1, 1) and not isinstance(padding, str)
    if not plain or weight.numel() < MIN_WEIGHTS or images.device.type != "cpu":
        return False
    height, width = _sides(images, weight, stride, padding)  # type: ignore[arg-type]
    return 0 < height * width <= MAX_POSITIONS


def _sides(
    images: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> tuple[int, int]:
    """Height and width of the map that comes out."""
    height, width = (
        (images.shape[2 + i] + 2 * padding[i] - weight.shape[2 + i]) // stride[i] + 1
        for i in range(2)
    )
    return height, width


def convolve(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
) -> Tensor:
    """`torch.conv2d` of images [B, C, H, W] by weights [D, C, k, l]: maps [B, D, h, w]."""
    height, width = _sides(images, weight, stride, padding)
    (rows, columns), (down, right) = padding, stride
    padded = F.pad(images.permute(0, 2, 3, 1), (0, 0, columns, columns, rows, rows))
    seen = [
        padded[:, i : i + down * height : down, j : j + right * width : right]
        for i, j in product(range(weight.shape[2]), range(weight.shape[3]))
    ]
    # One row of each place: the k * l places that it sees, with all of their channels.
    patches = torch.cat(seen, dim=3).flatten(0, 2)
    maps = F.linear(patches, weight.permute(0, 2, 3, 1).flatten(1), bias)
    return maps.view(len(images), height, width, -1).permute(0, 3, 1, 2)
