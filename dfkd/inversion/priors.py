"""What is known of any image: that neighbours are alike, and that values are small."""

import torch
from torch import Tensor


def total_variation(images: Tensor) -> Tensor:
    """DeepInversion's L2 form for images [N, C, H, W]: a scalar.

    The Euclidean norms, over the whole batch, of the differences between neighbours in a row, in a
    column, and in both diagonals, summed.
    """
    across = images[..., :, 1:] - images[..., :, :-1]
    down = images[..., 1:, :] - images[..., :-1, :]
    falling = images[..., 1:, 1:] - images[..., :-1, :-1]
    rising = images[..., 1:, :-1] - images[..., :-1, 1:]
    return torch.stack([torch.linalg.vector_norm(d) for d in (across, down, falling, rising)]).sum()


def mean_norm(images: Tensor) -> Tensor:
    """The mean over images [N, C, H, W] of their Euclidean norms: a scalar."""
    norms: Tensor = torch.linalg.vector_norm(images.flatten(1), dim=1)
    return norms.mean()
