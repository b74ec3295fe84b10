"""Image priors on numbers that can be checked by hand."""

import math

import pytest
import torch

from dfkd.synthesis.inversion.deepinversion import mean_norm, total_variation


def test_total_variation_is_of_four_directions() -> None:
    image = torch.tensor([[[[0.0, 1.0], [2.0, 4.0]]]])
    across, down, falling, rising = math.hypot(1, 2), math.hypot(2, 3), 4.0, 1.0
    assert float(total_variation(image)) == pytest.approx(across + down + falling + rising)
    assert float(total_variation(torch.full((2, 3, 4, 4), 0.3))) == 0.0


def test_the_norm_is_a_mean_over_images() -> None:
    images = torch.zeros(2, 1, 2, 2)
    images[0, 0, 0] = torch.tensor([3.0, 4.0])
    images[1, 0, 1, 1] = 7.0
    assert float(mean_norm(images)) == pytest.approx((5.0 + 7.0) / 2)
