"""The networks that dfad, cmi and pre train from scratch: one generator, and an encoder for it."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from dfkd.seeding import seeded

SMALLEST = 8
"""Pixels a side, at the most, of the map that a latent becomes: those of the published 32 px."""
SLOPE = 0.2


def doublings(side: int) -> tuple[int, int]:
    """Pixels a side of an image's smallest map, and how often it is doubled: 224 is 7 * 2^5."""
    times = 0
    while side > SMALLEST and side % 2 == 0:
        side, times = side // 2, times + 1
    return side, times


class GeneratorNetwork(nn.Module):
    """Latents [N, D] to images [N, 3, S, S].

    The network that all three publications use at 32 px: a linear layer to 8 x 8, then twice the
    side doubled and convolved. Larger images repeat the first of the two doublings. CMI ends it in
    a sigmoid; DFAD and PRE-DFKD in a tanh whose channels are then normalised over the batch, so
    that it gives whitened images; PRE-DFKD bounds the convolutions' spectral norm as well.
    """

    def __init__(
        self, latent: int, width: int, side: int, whitened: bool = False, spectral: bool = False
    ) -> None:
        super().__init__()
        start, times = doublings(side)
        wide = 2 * width

        def convolution(inner: int, outer: int) -> nn.Module:
            layer = nn.Conv2d(inner, outer, 3, padding=1)
            return spectral_norm(layer) if spectral else layer

        layers: list[nn.Module] = [
            nn.Linear(latent, wide * start**2),
            nn.Unflatten(1, (wide, start, start)),
            nn.BatchNorm2d(wide),
        ]
        channels = wide
        for number in range(times):
            outer = width if number == times - 1 else wide
            layers += [
                nn.Upsample(scale_factor=2),
                convolution(channels, outer),
                nn.BatchNorm2d(outer),
                nn.LeakyReLU(SLOPE),
            ]
            channels = outer
        layers.append(convolution(channels, 3))
        layers += [nn.Tanh(), nn.BatchNorm2d(3, affine=False)] if whitened else [nn.Sigmoid()]
        self.layers = nn.Sequential(*layers)

    def forward(self, latents: Tensor) -> Tensor:
        """Images: in [0, 1], or whitened."""
        images: Tensor = self.layers(latents)
        return images


class Encoder(nn.Module):
    """Images [N, 3, S, S] to mean and log variance of latents, each [N, D]: the generator's mirror.

    PRE-DFKD's own encoder, like its generator, fits 32 px.
    """

    def __init__(self, latent: int, width: int, side: int) -> None:
        super().__init__()
        end, times = doublings(side)
        wide = 2 * width
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1)]
        channels = width
        for _ in range(times):
            layers += [nn.BatchNorm2d(channels), nn.LeakyReLU(SLOPE)]
            layers.append(nn.Conv2d(channels, wide, 3, stride=2, padding=1))
            channels = wide
        self.layers = nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.Flatten())
        self.heads = nn.Linear(channels * end**2, 2 * latent)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance."""
        mean, variance = self.heads(self.layers(images)).chunk(2, dim=1)
        return mean, variance


def normal(network: nn.Module, draws: torch.Generator) -> None:
    """Draw all weights anew, in place: those of batch norm around 1, others around 0, biases 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d) and module.weight is not None:
            centre = 1.0 if isinstance(module, nn.BatchNorm2d) else 0.0
            module.weight.data.copy_(
                centre + 0.02 * torch.randn(module.weight.shape, generator=draws)
            )
            if module.bias is not None:
                module.bias.data.zero_()


M = TypeVar("M", bound=nn.Module)


def built(make: Callable[[], M], seed: int, device: torch.device) -> M:
    """The module that `make` builds, in training mode; what is random in it comes from `seed`."""
    with seeded(seed):
        return make().to(device).train()
