"""Pixels to bytes and back."""

import pytest
import torch

from dfkd.utils.pixels import from_bytes, to_bytes


def test_pixels_are_rounded_and_clamped() -> None:
    pixels = torch.tensor([-0.2, 0.0, 0.499 / 255, 0.501 / 255, 1.0, 1.5]).view(1, 1, 2, 3)
    found = to_bytes(pixels.expand(1, 3, 2, 3))
    assert (found.shape, found.dtype) == ((1, 2, 3, 3), torch.uint8)
    assert found[0, ..., 0].flatten().tolist() == [0, 0, 0, 1, 255, 255]


def test_nan_becomes_black_and_infinities_are_clamped() -> None:
    pixels = torch.tensor([torch.nan, torch.inf, -torch.inf], requires_grad=True).view(1, 3, 1, 1)
    assert to_bytes(pixels).flatten().tolist() == [0, 255, 0]


def test_bytes_come_back_as_they_were() -> None:
    images = torch.arange(256, dtype=torch.uint8).repeat(3).view(2, 16, 8, 3)
    pixels = from_bytes(images)
    assert (pixels.shape, pixels.dtype) == ((2, 3, 16, 8), torch.float32)
    assert pixels[1, 2, 3, 4].item() == pytest.approx(images[1, 3, 4, 2].item() / 255)
    assert (pixels.min(), pixels.max()) == (0, 1)
    assert to_bytes(pixels).equal(images)
