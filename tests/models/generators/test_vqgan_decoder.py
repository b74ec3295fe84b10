"""The decoder with channels last: taming's values and gradients."""

import contextlib
import io

import pytest
import torch
from taming.modules.diffusionmodules.model import Decoder
from torch import Tensor

from dfkd.models.generators.vqgan_decoder import decode

SHAPES = {
    "one width": {"ch": 32, "ch_mult": [1, 1]},
    "shortcuts": {"ch": 32, "ch_mult": [1, 3]},
    "attention": {"ch": 64, "ch_mult": [1, 2], "attn_resolutions": [4, 8]},
}


def taming(shape: str) -> Decoder:
    """The decoder of taming, frozen, with random weights, norms included."""
    arguments = {"attn_resolutions": [], "num_res_blocks": 1} | SHAPES[shape]
    fixed = {"out_ch": 3, "in_channels": 3, "resolution": 8, "z_channels": 8, "dropout": 0.1}
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()):
        decoder = Decoder(**arguments, **fixed).eval().requires_grad_(False)
    for name, weight in decoder.named_parameters():
        if "norm" in name:
            weight.normal_(1, 0.5)
    return decoder


def image_and_gradient(images: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Images, and d/dcodes of a fixed weighting of them."""
    weights = torch.linspace(-1, 1, images.numel()).view(images.shape)
    (gradient,) = torch.autograd.grad((images * weights).sum(), codes)
    return images.detach(), gradient


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("side", [4, 5])
def test_values_and_gradients_equal_those_of_taming(shape: str, side: int) -> None:
    decoder = taming(shape).double()
    codes = torch.randn(3, 8, side, side, dtype=torch.float64, requires_grad=True)
    image, gradient = image_and_gradient(decoder(codes), codes)
    ours = decode(decoder.float().to(memory_format=torch.channels_last), codes.float())
    own_image, own_gradient = image_and_gradient(ours, codes)
    torch.testing.assert_close(own_image.double(), image, rtol=1e-5, atol=1e-5)
    scale = float(gradient.abs().max())
    torch.testing.assert_close(own_gradient, gradient, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_is_as_close_to_float32_as_with_taming(shape: str) -> None:
    decoder = taming(shape)
    codes = torch.randn(3, 8, 4, 4, requires_grad=True)
    truth = image_and_gradient(decoder(codes), codes)
    with torch.autocast("cpu", torch.bfloat16):
        plain = image_and_gradient(decoder(codes), codes)
    decoder.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        ours = image_and_gradient(decode(decoder, codes), codes)
    for true, reference, own in zip(truth, plain, ours, strict=True):
        allowed = 1.5 * (reference - true).norm() + 1e-6
        assert (own - true).norm() < allowed


def test_maps_stay_channels_last() -> None:
    decoder = taming("shortcuts").to(memory_format=torch.channels_last)
    seen = []
    for module in decoder.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda _, inputs, output: seen.append(output))
    decode(decoder, torch.randn(2, 8, 4, 4))
    assert seen
    assert all(maps.is_contiguous(memory_format=torch.channels_last) for maps in seen)


def test_a_map_without_spread_gives_finite_gradients() -> None:
    decoder = taming("one width")
    codes = torch.zeros(1, 8, 4, 4, requires_grad=True)
    _, gradient = image_and_gradient(decode(decoder, codes), codes)
    assert gradient.isfinite().all()
