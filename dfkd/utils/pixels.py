"""Conversion between a network's float pixels and the stored bytes, both as tensors.

`dfkd.utils.images` handles encoded pictures, without torch.
"""

import torch
from torch import Tensor


def to_bytes(pixels: Tensor) -> Tensor:
    """Pixels [N, C, H, W] in [0, 1] as uint8 [N, H, W, C] on the CPU.

    Values are rounded to the nearest level. Values out of range are clamped, and NaN becomes 0.
    """
    levels = (pixels.detach() * 255).round().nan_to_num().clamp(0, 255).to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().cpu()


def from_batch(pixels: Tensor, device: torch.device) -> Tensor:
    """Pixels uint8 [N, C, H, W] of a batch as float32 in [0, 1] on a device."""
    return pixels.to(device, non_blocking=True).float().div_(255)


def from_bytes(images: Tensor) -> Tensor:
    """Images uint8 [N, H, W, C] as pixels float32 [N, C, H, W] in [0, 1], on the same device.

    A GPU's division may differ from a CPU's in the last bit.
    """
    return images.permute(0, 3, 1, 2).float() / 255
