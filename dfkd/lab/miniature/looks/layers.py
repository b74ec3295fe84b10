"""Layers of a picture: premultiplied colour and coverage, float32 [n, 4, 64, 64] in [0, 1]."""

import torch
from torch import Tensor


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
