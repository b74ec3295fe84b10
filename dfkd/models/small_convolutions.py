"""Convolutions of small maps on a CPU, as matrix products.

If a map has few positions and a layer has many channels, oneDNN spends most of its time on
reordering the weights, again in every step. This happens in the last layers of a ResNet on images
of 64 px. On a Xeon, a 3 x 3 convolution of 2 x 2 positions with 512 channels takes three times as
long as the matrix product in float32, and six times as long in bfloat16.
"""

from collections.abc import Callable, Iterable, Mapping
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

MAX_POSITIONS = 16
"""Maximal number of output positions; for larger maps the matrix product is slower."""

MIN_WEIGHTS = 1 << 19
"""Minimal number of weights of a layer; for fewer weights the reordering is cheap."""


class SmallMaps(TorchFunctionMode):
    """Inside this context, `torch.conv2d` is a matrix product if that is faster.

    Results and gradients are the same up to rounding.
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
    """Whether a matrix product is faster; the arguments are those of `torch.conv2d`."""
    plain = groups == 1 and tuple(dilation) == (1, 1) and not isinstance(padding, str)
    if not plain or weight.numel() < MIN_WEIGHTS or images.device.type != "cpu":
        return False
    height, width = _sides(images, weight, stride, padding)  # type: ignore[arg-type]
    return 0 < height * width <= MAX_POSITIONS


def _sides(
    images: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> tuple[int, int]:
    """Height and width of the output map."""
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
    shifted = [
        padded[:, i : i + down * height : down, j : j + right * width : right]
        for i, j in product(range(weight.shape[2]), range(weight.shape[3]))
    ]
    # One row per output position: all channels of the k * l input positions under the kernel.
    patches = torch.cat(shifted, dim=3).flatten(0, 2)
    maps = F.linear(patches, weight.permute(0, 2, 3, 1).flatten(1), bias)
    return maps.view(len(images), height, width, -1).permute(0, 3, 1, 2)
