"""The networks that dfad, cmi and pre train from scratch: generators, and an encoder for one."""

from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from dfkd.utils.seeding import seeded

MAX_START_SIDE = 8
"""Pixels a side, at the most, of the map that a latent becomes: those of the published 32 px."""
LEAKY_SLOPE = 0.2
DFAD_DOUBLINGS = 4
"""Doublings in DFAD's generator, so that its images' side is a multiple of 2^4."""


def doublings(side: int) -> tuple[int, int]:
    """Pixels a side of an image's smallest map, and how often it is doubled: 224 is 7 * 2^5."""
    times = 0
    while side > MAX_START_SIDE and side % 2 == 0:
        side, times = side // 2, times + 1
    return side, times


class CmiGenerator(nn.Module):
    """Latents [N, D] to images [N, 3, S, S] in [0, 1].

    The published network for 32 px is a linear layer to 8 x 8, twice the side doubled and
    convolved, and a sigmoid. Larger images repeat the first of the two doublings.
    """

    def __init__(self, latent: int, width: int, side: int) -> None:
        super().__init__()
        start, times = doublings(side)
        channels = [2 * width] * times + [width]
        layers: list[nn.Module] = [*_projected(latent, channels[0], start)]
        for inner, outer in pairwise(channels):
            layers += [
                nn.Upsample(scale_factor=2),
                nn.Conv2d(inner, outer, 3, padding=1, bias=False),
                nn.BatchNorm2d(outer),
                nn.LeakyReLU(LEAKY_SLOPE),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels[-1], 3, 3, padding=1), nn.Sigmoid())

    def forward(self, latents: Tensor) -> Tensor:
        """Images."""
        images: Tensor = self.layers(latents)
        return images


class DfadGenerator(nn.Module):
    """Latents [N, D] to images [N, 3, S, S] in [0, 1]: a DCGAN, DFAD's network for large images.

    Published for pixels in [-1, 1], which is what its tanh gives.
    """

    def __init__(self, latent: int, width: int, side: int) -> None:
        super().__init__()
        channels = [8 * width, 4 * width, 2 * width, width, width]
        layers: list[nn.Module] = [*_projected(latent, channels[0], side // 2**DFAD_DOUBLINGS)]
        for inner, outer in pairwise(channels):
            layers += [
                nn.ConvTranspose2d(inner, outer, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(outer),
                nn.LeakyReLU(LEAKY_SLOPE),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 3, 3, padding=1), nn.Tanh())
        init_normal(self, torch.default_generator)

    def forward(self, latents: Tensor) -> Tensor:
        """Images."""
        images: Tensor = self.layers(latents)
        return (images + 1) / 2


PRE_BATCH_NORM_EPSILON = 0.8
"""Epsilon of the batch norms after PRE-DFKD's convolutions."""
PRE_INIT_RANGE = 0.08
"""Its weights are drawn from U(-0.08, 0.08); biases are 0."""


class PreGenerator(nn.Module):
    """Latents [N, D] to whitened images [N, 3, S, S]: both generators of PRE-DFKD.

    `CmiGenerator` with other batch norms, a tanh, and channels that are normalised over the batch;
    the novelty generator bounds the spectral norm of its convolutions (`spectral`) as well.
    """

    def __init__(self, latent: int, width: int, side: int, spectral: bool = False) -> None:
        super().__init__()
        start, times = doublings(side)
        channels = [2 * width] * times + [width]
        layers: list[nn.Module] = [*_projected(latent, channels[0], start)]
        for inner, outer in pairwise(channels):
            layers += [
                nn.Upsample(scale_factor=2),
                nn.Conv2d(inner, outer, 3, padding=1),
                nn.BatchNorm2d(outer, PRE_BATCH_NORM_EPSILON),
                nn.LeakyReLU(LEAKY_SLOPE),
            ]
        layers += [nn.Conv2d(channels[-1], 3, 3, padding=1), nn.Tanh()]
        self.layers = nn.Sequential(*layers, nn.BatchNorm2d(3, affine=False))
        _init_uniform(self)
        for layer in self.layers if spectral else ():
            if isinstance(layer, nn.Conv2d):
                spectral_norm(layer)

    def forward(self, latents: Tensor) -> Tensor:
        """Whitened images."""
        images: Tensor = self.layers(latents)
        return images


class PreEncoder(nn.Module):
    """Images [N, 3, S, S] to mean and log variance of latents, each [N, D].

    Each column of an image is first brought to length 1. The published network for 32 px halves
    the side three times: it leaves out every other pixel, convolves with stride 2, and leaves out
    again. The first of these leaves out more of images that are larger than 64 px.
    """

    def __init__(self, latent: int, width: int, side: int) -> None:
        super().__init__()
        self.times = max(3, doublings(side)[1])
        wide = 2 * width
        self.whole = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.BatchNorm2d(width, PRE_BATCH_NORM_EPSILON),
            nn.LeakyReLU(LEAKY_SLOPE),
            nn.Conv2d(width, wide, 3, padding=1),
            nn.BatchNorm2d(wide, PRE_BATCH_NORM_EPSILON),
            nn.LeakyReLU(LEAKY_SLOPE),
        )
        self.shrunk = nn.Sequential(
            nn.Conv2d(wide, wide, 3, stride=2, padding=1), nn.BatchNorm2d(wide)
        )
        self.heads = nn.Linear(wide * (side // 2**self.times) ** 2, 2 * latent)
        _init_uniform(self)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance."""
        maps = self.whole(F.normalize(images, dim=2))
        maps = self.shrunk(_thinned(maps, 2 ** (self.times - 2)))
        mean, variance = self.heads(_thinned(maps, 2).flatten(1)).chunk(2, dim=1)
        return mean, variance


def _thinned(maps: Tensor, factor: int) -> Tensor:
    """Every `factor`-th row and column."""
    return maps[:, :, ::factor, ::factor]


def _projected(latent: int, channels: int, side: int) -> list[nn.Module]:
    """Layers from latents [N, D] to normalised maps [N, C, side, side]."""
    return [
        nn.Linear(latent, channels * side**2),
        nn.Unflatten(1, (channels, side, side)),
        nn.BatchNorm2d(channels),
    ]


def init_normal(network: nn.Module, draws: torch.Generator) -> None:
    """Draw all weights anew, in place: those of batch norm around 1, others around 0, biases 0."""
    drawn = nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.BatchNorm2d
    for module in network.modules():
        if isinstance(module, drawn) and module.weight is not None:
            centre = 1.0 if isinstance(module, nn.BatchNorm2d) else 0.0
            module.weight.data.copy_(
                centre + 0.02 * torch.randn(module.weight.shape, generator=draws)
            )
            if module.bias is not None:
                module.bias.data.zero_()


def _init_uniform(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.uniform_(module.weight, -PRE_INIT_RANGE, PRE_INIT_RANGE)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


M = TypeVar("M", bound=nn.Module)


def build_seeded(make: Callable[[], M], seed: int, device: torch.device) -> M:
    """The module that `make` builds, in training mode; what is random in it comes from `seed`."""
    with seeded(seed):
        return make().to(device).train()
