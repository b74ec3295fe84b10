"""The networks that are trained from scratch: their sizes, ranges and weights."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dfkd.lab.baselines.networks import (
    CmiGenerator,
    DfadGenerator,
    PreEncoder,
    PreGenerator,
    doublings,
    init_normal,
)


def latents(count: int = 6) -> torch.Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(0))


def weights(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("side", "expected"), [(32, (8, 2)), (64, (8, 3)), (224, (7, 5)), (96, (6, 4)), (9, (9, 0))]
)
def test_a_side_is_doubled_from_eight_pixels_or_a_little_less(
    side: int, expected: tuple[int, int]
) -> None:
    assert doublings(side) == expected


@pytest.mark.parametrize("side", [32, 48, 224])
def test_images_have_the_side_and_range_that_is_asked_for(side: int) -> None:
    for kind in (CmiGenerator, DfadGenerator):
        images = kind(5, 4, side)(latents()).detach()
        assert images.shape == (6, 3, side, side)
        assert float(images.min()) >= 0
        assert float(images.max()) <= 1
    normalised = PreGenerator(5, 4, side)(latents())
    assert normalised.shape == (6, 3, side, side)
    mean, variance = PreEncoder(5, 4, side)(normalised)
    assert mean.shape == variance.shape == (6, 5)


def test_networks_are_as_large_as_those_of_the_publications() -> None:
    """Their layers' weights and biases, counted by hand: at 128 px DFAD's, at 32 px the others."""
    norms = 2 * (512 + 256 + 128 + 64 + 64)
    convolutions = 16 * (512 * 256 + 256 * 128 + 128 * 64 + 64 * 64) + 64 * 27 + 3
    assert weights(DfadGenerator(256, 64, 128)) == 257 * 512 * 64 + norms + convolutions
    norms, first = 2 * (128 + 128 + 64), 128 * 64
    convolutions = 9 * (128 * 128 + 128 * 64) + 64 * 27 + 3
    assert weights(CmiGenerator(256, 64, 32)) == 257 * first + norms + convolutions
    assert weights(PreGenerator(1000, 64, 32)) == 1001 * first + norms + convolutions + 128 + 64
    norms = 2 * (64 + 128 + 128)
    convolutions = 28 * 64 + (9 * 64 + 1) * 128 + (9 * 128 + 1) * 128
    heads = 2 * (32 * 8**2 + 1) * 1000
    assert weights(PreEncoder(1000, 64, 32)) == norms + convolutions + heads


def test_normalised_images_have_channels_of_mean_zero_and_variance_one() -> None:
    images = PreGenerator(5, 4, 16)(latents())
    variance, mean = torch.var_mean(images, dim=(0, 2, 3), correction=0)
    assert torch.allclose(mean, torch.zeros(3), atol=1e-4)
    assert torch.allclose(variance, torch.ones(3), atol=1e-2)


def test_the_networks_of_pre_start_as_its_code_starts_them() -> None:
    """Weights in U(-0.08, 0.08), biases 0, and epsilon 0.8 after all convolutions but the last."""
    for network, large in ((PreGenerator(64, 16, 32), 2), (PreEncoder(64, 16, 32), 2)):
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                weight = module.weight.detach()
                assert float(weight.abs().max()) <= 0.08
                assert float(weight.std()) == pytest.approx(0.08 / 3**0.5, rel=0.1)
                assert not module.bias.any()
        norms = [m.eps for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
        assert norms.count(0.8) == large
        assert set(norms) == {0.8, 1e-5}


def test_the_encoder_sees_columns_of_length_one() -> None:
    """Brightness, which scales a column, must not matter."""
    encoder = PreEncoder(5, 4, 32).eval()
    images = torch.rand(2, 3, 32, 32)
    for one, two in zip(encoder(images), encoder(3 * images), strict=True):
        assert torch.allclose(one, two, atol=1e-5)
    seen = []
    encoder.whole.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    encoder(images)
    assert torch.allclose(seen[0].norm(dim=2), torch.ones(2, 3, 32))
    assert torch.allclose(seen[0], F.normalize(images, dim=-2))


@pytest.mark.parametrize(("side", "end"), [(32, 4), (64, 8), (224, 7)])
def test_the_encoder_halves_three_times_or_to_eight_pixels(side: int, end: int) -> None:
    assert PreEncoder(5, 4, side).heads.in_features == 8 * end**2


def test_the_spectral_norm_of_convolutions_is_bounded() -> None:
    network = PreGenerator(5, 4, 16, spectral=True)
    for _ in range(30):
        network(latents())
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 2
    for layer in convolutions:
        largest = torch.linalg.matrix_norm(layer.weight.flatten(1), 2)
        assert float(largest) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("drawn_anew", [True, False])
def test_weights_are_drawn_as_dcgan_s(drawn_anew: bool) -> None:
    """CMI draws its weights again for each batch, DFAD once."""
    network: nn.Module = CmiGenerator(64, 32, 16) if drawn_anew else DfadGenerator(64, 32, 32)
    if drawn_anew:
        init_normal(network, torch.Generator().manual_seed(0))
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            assert float(module.weight.mean()) == pytest.approx(0.0, abs=3e-3)
            assert float(module.weight.std()) == pytest.approx(0.02, rel=0.1)
            assert module.bias is None or not module.bias.any()
        if isinstance(module, nn.BatchNorm2d):
            assert float(module.weight.mean()) == pytest.approx(1.0, abs=0.02)
            assert 0.01 < float(module.weight.std()) < 0.03
