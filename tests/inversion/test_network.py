"""The networks that are trained from scratch: their sizes, ranges, and seeds."""

import pytest
import torch
from torch import nn

from dfkd.inversion.network import Encoder, GeneratorNetwork, built, doublings, normal

CPU = torch.device("cpu")


def latents(count: int = 6) -> torch.Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("side", "expected"), [(32, (8, 2)), (64, (8, 3)), (224, (7, 5)), (96, (6, 4)), (9, (9, 0))]
)
def test_a_side_is_doubled_from_eight_pixels_or_a_little_less(
    side: int, expected: tuple[int, int]
) -> None:
    assert doublings(side) == expected


@pytest.mark.parametrize("side", [16, 32, 48])
def test_images_have_the_side_that_is_asked_for(side: int) -> None:
    images = GeneratorNetwork(5, 4, side)(latents()).detach()
    assert images.shape == (6, 3, side, side)
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1
    mean, variance = Encoder(5, 4, side)(images)
    assert mean.shape == variance.shape == (6, 5)


def test_whitened_images_have_channels_of_mean_zero_and_variance_one() -> None:
    images = GeneratorNetwork(5, 4, 16, whitened=True)(latents())
    variance, mean = torch.var_mean(images, dim=(0, 2, 3), correction=0)
    assert torch.allclose(mean, torch.zeros(3), atol=1e-4)
    assert torch.allclose(variance, torch.ones(3), atol=1e-2)


def test_the_spectral_norm_of_convolutions_is_bounded() -> None:
    network = GeneratorNetwork(5, 4, 16, spectral=True)
    for _ in range(30):
        network(latents())
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 2
    for layer in convolutions:
        largest = torch.linalg.matrix_norm(layer.weight.flatten(1), 2)
        assert float(largest) == pytest.approx(1.0, abs=0.05)


def test_a_seed_gives_the_same_network_and_touches_no_global_state() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, two, other = (
        built(lambda: GeneratorNetwork(5, 4, 16, spectral=True), seed, CPU) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(one(latents()), two(latents()))
    assert not torch.equal(one(latents()), other(latents()))


def test_weights_drawn_anew_are_normal() -> None:
    network = GeneratorNetwork(64, 32, 16)
    normal(network, torch.Generator().manual_seed(0))
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            assert float(module.weight.mean()) == pytest.approx(0.0, abs=2e-3)
            assert float(module.weight.std()) == pytest.approx(0.02, rel=0.1)
            assert not module.bias.any()
        if isinstance(module, nn.BatchNorm2d):
            assert float(module.weight.mean()) == pytest.approx(1.0, abs=0.02)
            assert 0.01 < float(module.weight.std()) < 0.03
