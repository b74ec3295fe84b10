"""Convolutions as matrix products: the same numbers, and only where they are worth it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from dfkd.config.distillation import Distillation
from dfkd.models import small_convolutions
from dfkd.models.small_convolutions import SmallMaps, convolve
from dfkd.models.student import Student, build


def seeded(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@given(
    batch=st.integers(1, 3),
    sides=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    bias=st.booleans(),
)
def test_the_product_is_the_convolution_and_so_are_its_gradients(
    batch: int,
    sides: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    bias: bool,
) -> None:
    padding = max(padding[0], kernel[0] - sides[0]), max(padding[1], kernel[1] - sides[1])
    inputs = [seeded(batch, 2, *sides), seeded(3, 2, *kernel), *([seeded(3)] if bias else [])]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    wanted = F.conv2d(*inputs, stride=stride, padding=padding)
    found = convolve(*inputs[:2], inputs[2] if bias else None, stride, padding)
    torch.testing.assert_close(found, wanted)
    weights = seeded(*wanted.shape)
    torch.testing.assert_close(
        torch.autograd.grad((found * weights).sum(), inputs),
        torch.autograd.grad((wanted * weights).sum(), inputs),
    )


def test_maps_come_out_with_channels_last() -> None:
    maps = convolve(torch.rand(2, 8, 4, 4), torch.rand(6, 8, 3, 3), None, (1, 1), (1, 1))
    assert maps.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("side", "options", "min_weights"),
    [
        (5, {"padding": 1}, 1),  # a map of 25 places
        (4, {"padding": 1, "groups": 2}, 1),
        (4, {"padding": 2, "dilation": 2}, 1),
        (4, {"padding": "same"}, 1),
        (4, {"padding": 1}, small_convolutions.MIN_WEIGHTS),  # few weights
    ],
)
def test_unsuitable_convolutions_are_left_as_they_are(
    side: int, options: dict[str, object], min_weights: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small_convolutions, "MIN_WEIGHTS", min_weights)
    monkeypatch.setattr(small_convolutions, "convolve", lambda *_: pytest.fail("a product"))
    layer = torch.nn.Conv2d(4, 4, 3, **options)
    images = torch.rand(2, 4, side, side)
    with SmallMaps():
        found = layer(images)
    torch.testing.assert_close(found, layer(images))


def test_options_by_name_are_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_convolutions, "MIN_WEIGHTS", 1)
    images, weight, bias = seeded(2, 4, 4, 4), seeded(4, 4, 3, 3), seeded(4)
    with SmallMaps():
        found = torch.conv2d(images, weight, bias=bias, stride=2, padding=1)
    torch.testing.assert_close(found, torch.conv2d(images, weight, bias, 2, 1))


def student() -> Student:
    config = Distillation(student="resnet18", weights="none", warmup_epochs=0)
    return build(config, outputs=3, image_size=64, seed=0)


def places(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sides of the maps that become products from here on."""
    seen = []

    def counted(images: Tensor, *arguments: object) -> Tensor:
        maps = convolve(images, *arguments)
        seen.append(maps.shape[2])
        return maps

    monkeypatch.setattr(small_convolutions, "convolve", counted)
    return seen


def test_a_student_in_training_uses_products_in_its_last_layers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pixels = torch.rand(4, 3, 64, 64)
    wanted = student().train()(pixels)
    with monkeypatch.context() as patched:
        patched.setattr(small_convolutions, "MAX_POSITIONS", 0)
        plain = student().train()(pixels)
    torch.testing.assert_close(wanted, plain, rtol=1e-3, atol=1e-3)
    seen = places(monkeypatch)
    student().train()(pixels)
    assert seen == [4, 4, 4, 2, 2, 2, 2]


def test_a_student_in_evaluation_mode_uses_no_products(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = places(monkeypatch)
    student().eval()(torch.rand(1, 3, 64, 64))
    assert not seen
