"""Pixels as networks have them, and as they are stored: tensors of numbers, and of bytes.

`dfkd.utils.images` is about encoded pictures, and needs no torch.
"""

import torch
from torch import Tensor


def to_bytes(pixels: Tensor) -> Tensor:
    """Pixels [N, C, H, W] in [0, 1] as uint8 [N, H, W, C] on the CPU.

    Rounded to the nearest level; what is out of range gets the nearest one, what is no number 0.
    """
    levels = (pixels.detach() * 255).round().nan_to_num().clamp(0, 255).to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().cpu()


def from_bytes(images: Tensor) -> Tensor:
    """Images uint8 [N, H, W, C] as pixels float32 [N, C, H, W] in [0, 1], on the same device.

    A GPU may divide otherwise than a CPU does in the last bit.
    """
    return images.permute(0, 3, 1, 2).float() / 255
