"""How well a generator's reconstructions keep images: error, hue and chroma."""

import torch
from torch import Tensor

_COLOURED = 0.2
"""A pixel is coloured if the channels of the original differ by more than this."""


def psnr(reconstructed: Tensor, real: Tensor) -> float:
    """The peak signal-to-noise ratio in dB, the mean over images.

    That of an image is 10 log10(1 / mean squared error).

    Args:
        reconstructed, real: [N, C, H, W] in [0, 1].
    """
    errors = (reconstructed - real).square().flatten(1).mean(1).clamp(min=1e-10)
    return float((-10 * errors.log10()).mean())


def colours_kept(reconstructed: Tensor, real: Tensor) -> tuple[float, float]:
    """Compare hue and chroma of the coloured pixels of images [N, 3, H, W] in [0, 1].

    Hue is the angle, and chroma the length, in the plane orthogonal to grey.

    Returns:
        The mean difference of hue in degrees, over twelve sectors of hue, and the mean chroma of
        the reconstructions, relative to that of the originals.
    """
    coloured = (real.amax(1) - real.amin(1)) > _COLOURED
    planes = [_chroma_plane(x.movedim(1, -1)[coloured]) for x in (reconstructed, real)]
    angles = [torch.atan2(plane[:, 1], plane[:, 0]) for plane in planes]
    # Differences of angles, brought to [-pi, pi).
    error = (angles[0] - angles[1] + torch.pi).remainder(2 * torch.pi) - torch.pi
    sector = ((angles[1] + torch.pi) / (2 * torch.pi) * 12).long().clamp(max=11)
    # The mean over sectors gives rare hues the weight of common ones.
    means = [error.abs()[sector == i].mean() for i in range(12) if (sector == i).any()]
    kept = planes[0].norm(dim=1).mean() / planes[1].norm(dim=1).mean()
    return float(torch.stack(means).mean().rad2deg()), float(kept)


def _chroma_plane(pixels: Tensor) -> Tensor:
    """Coordinates [N, 2] of RGB [N, 3] in the plane orthogonal to grey; red is at angle 0."""
    axes = torch.tensor([[1.0, -0.5, -0.5], [0.0, 0.75**0.5, -(0.75**0.5)]])
    return pixels @ axes.T
