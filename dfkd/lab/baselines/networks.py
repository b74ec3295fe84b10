"""The networks that DFAD, CMI and PRE-DFKD train from scratch: three generators, one encoder.

The sources are `network/gan.py` (GeneratorB) in VainF/Data-Free-Adversarial-Distillation,
`datafree/models/generator.py` in zju-vipa/CMI, and `networks/generator.py` in kuluhan/PRE-DFKD.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

MAX_START_SIDE = 8
"""Largest side of a generator's first map in pixels, as in the published networks for 32 px."""
LEAKY_SLOPE = 0.2
DFAD_DOUBLINGS = 4
"""Doublings of the side in DFAD's generator; the side of its images is a multiple of 2^4."""


def doublings(side: int) -> tuple[int, int]:
    """The side of the first map and the number of its doublings: 224 px give (7, 5)."""
    count = 0
    while side > MAX_START_SIDE and side % 2 == 0:
        side, count = side // 2, count + 1
    return side, count


class CmiGenerator(nn.Module):
    """Maps latents [N, D] to images [N, 3, S, S] in [0, 1].

    The published network for 32 px has a linear layer to 8 x 8, two upsamplings, each with a
    convolution, and a sigmoid. For larger images the first upsampling is repeated.
    """

    def __init__(self, latent: int, width: int, side: int) -> None:
        super().__init__()
        layers = _upsampled(latent, width, side, bias=False)
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 3, 3, padding=1), nn.Sigmoid())

    def forward(self, latents: Tensor) -> Tensor:
        """Images [N, 3, S, S] in [0, 1]."""
        images: Tensor = self.layers(latents)
        return images


class DfadGenerator(nn.Module):
    """Maps latents [N, D] to images [N, 3, S, S] in [0, 1]: DFAD's DCGAN for large images.

    The published network ends with the tanh, in [-1, 1]; `forward` rescales its output.
    """

    def __init__(self, latent: int, width: int, side: int) -> None:
        super().__init__()
        channels = [8 * width, 4 * width, 2 * width, width, width]
        layers = _projected(latent, channels[0], side // 2**DFAD_DOUBLINGS)
        for inner, outer in pairwise(channels):
            layers += [
                nn.ConvTranspose2d(inner, outer, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(outer),
                nn.LeakyReLU(LEAKY_SLOPE),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 3, 3, padding=1), nn.Tanh())
        init_normal(self, torch.default_generator)

    def forward(self, latents: Tensor) -> Tensor:
        """Images [N, 3, S, S] in [0, 1]."""
        images: Tensor = self.layers(latents)
        return (images + 1) / 2


PRE_BATCH_NORM_EPSILON = 0.8
"""Epsilon of the batch norms that follow PRE-DFKD's convolutions."""
PRE_INIT_RANGE = 0.08
"""PRE-DFKD's weights are drawn from U(-0.08, 0.08); its biases are 0."""


class PreGenerator(nn.Module):
    """Maps latents [N, D] to normalised images [N, 3, S, S]: both generators of PRE-DFKD.

    It differs from `CmiGenerator` in the epsilon of its batch norms, in the tanh, and in a final
    normalisation of the channels over the batch. The novelty generator also bounds the spectral
    norm of its convolutions (`spectral`).
    """

    def __init__(self, latent: int, width: int, side: int, spectral: bool = False) -> None:
        super().__init__()
        layers = _upsampled(latent, width, side, bias=True, epsilon=PRE_BATCH_NORM_EPSILON)
        layers += [nn.Conv2d(width, 3, 3, padding=1), nn.Tanh()]
        # Batch norm without weights normalises the channels, as the teacher expects its input.
        self.layers = nn.Sequential(*layers, nn.BatchNorm2d(3, affine=False))
        _init_uniform(self)
        for layer in self.layers if spectral else ():
            if isinstance(layer, nn.Conv2d):
                spectral_norm(layer)

    def forward(self, latents: Tensor) -> Tensor:
        """Whitened images [N, 3, S, S]."""
        images: Tensor = self.layers(latents)
        return images


class PreEncoder(nn.Module):
    """Maps images [N, 3, S, S] to mean and log variance of latents, [N, D] each.

    First each column of an image is normalised to length 1. The published network for 32 px halves
    the side three times: by subsampling, by a convolution with stride 2, and by subsampling again.
    For images larger than 64 px the first subsampling is coarser.
    """

    def __init__(self, latent: int, width: int, side: int) -> None:
        super().__init__()
        self.halvings = max(3, doublings(side)[1])
        channels = 2 * width
        self.whole = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.BatchNorm2d(width, PRE_BATCH_NORM_EPSILON),
            nn.LeakyReLU(LEAKY_SLOPE),
            nn.Conv2d(width, channels, 3, padding=1),
            nn.BatchNorm2d(channels, PRE_BATCH_NORM_EPSILON),
            nn.LeakyReLU(LEAKY_SLOPE),
        )
        self.shrunk = nn.Sequential(
            nn.Conv2d(channels, channels, 3, stride=2, padding=1), nn.BatchNorm2d(channels)
        )
        self.heads = nn.Linear(channels * (side // 2**self.halvings) ** 2, 2 * latent)
        _init_uniform(self)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance, [N, D] each."""
        maps = self.whole(F.normalize(images, dim=2))
        maps = self.shrunk(_subsampled(maps, 2 ** (self.halvings - 2)))
        mean, log_variance = self.heads(_subsampled(maps, 2).flatten(1)).chunk(2, dim=1)
        return mean, log_variance


def _subsampled(maps: Tensor, factor: int) -> Tensor:
    """Every `factor`-th row and column of maps [N, C, H, W]."""
    return maps[:, :, ::factor, ::factor]


def _upsampled(
    latent: int, width: int, side: int, *, bias: bool, epsilon: float = 1e-5
) -> list[nn.Module]:
    """Layers that map latents [N, D] to maps [N, width, side, side], by doubling and convolution.

    All but the last doubling have twice the channels.

    Args:
        bias: whether the convolutions have a bias.
        epsilon: epsilon of the batch norms that follow them.
    """
    start, times = doublings(side)
    channels = [2 * width] * times + [width]
    layers = _projected(latent, channels[0], start)
    for inner, outer in pairwise(channels):
        layers += [
            nn.Upsample(scale_factor=2),
            nn.Conv2d(inner, outer, 3, padding=1, bias=bias),
            nn.BatchNorm2d(outer, epsilon),
            nn.LeakyReLU(LEAKY_SLOPE),
        ]
    return layers


def _projected(latent: int, channels: int, side: int) -> list[nn.Module]:
    """Layers that map latents [N, D] to normalised maps [N, C, side, side]."""
    return [
        nn.Linear(latent, channels * side**2),
        nn.Unflatten(1, (channels, side, side)),
        nn.BatchNorm2d(channels),
    ]


def init_normal(network: nn.Module, rng: torch.Generator) -> None:
    """Initialise in place: weights around 0, of batch norm around 1, std 0.02; biases are 0."""
    initialised = nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.BatchNorm2d
    for module in network.modules():
        # A batch norm without affine parameters has no weight.
        if isinstance(module, initialised) and module.weight is not None:
            mean = 1.0 if isinstance(module, nn.BatchNorm2d) else 0.0
            module.weight.data.copy_(mean + 0.02 * torch.randn(module.weight.shape, generator=rng))
            if module.bias is not None:
                module.bias.data.zero_()


def _init_uniform(network: nn.Module) -> None:
    """Initialise in place as PRE-DFKD: uniform weights, biases 0; batch norm keeps its defaults."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.uniform_(module.weight, -PRE_INIT_RANGE, PRE_INIT_RANGE)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
