"""Views of a batch: whole-pixel shifts, and windows that stay within the image."""

import torch
from torch import Tensor

from dfkd.lab.baselines.crops import random_crop, random_shift


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moved(image: Tensor, down: int, right: int, mirrored: bool) -> Tensor:
    """An image [C, S, S] shifted by whole pixels, black where nothing is, then mirrored."""
    side = image.shape[-1]
    padded = torch.zeros(image.shape[0], 3 * side, 3 * side)
    padded[:, side + down : 2 * side + down, side + right : 2 * side + right] = image
    window = padded[:, side : 2 * side, side : 2 * side]
    return window.flip(2) if mirrored else window


def test_a_shift_is_one_of_whole_pixels_and_each_image_has_its_own() -> None:
    images = torch.rand(12, 3, 16, 16, generator=rng())
    views = random_shift(images, rng(1))
    found = []
    for image, view in zip(images, views, strict=True):
        fitting = [
            (down, right, mirrored)
            for down in range(-2, 3)
            for right in range(-2, 3)
            for mirrored in (False, True)
            if torch.allclose(moved(image, down, right, mirrored), view, atol=1e-4)
        ]
        assert len(fitting) == 1
        found += fitting
    assert len(set(found)) > 6
    assert {mirrored for _, _, mirrored in found} == {False, True}


def test_a_crop_shows_a_part_of_the_image_alone() -> None:
    """A ramp over the columns: a window shows a share of it, and nothing from outside."""
    ramp = torch.linspace(0, 1, 32).expand(64, 1, 32, 32)
    views = random_crop(ramp, rng())
    assert float(views.min()) >= 0
    assert float(views.max()) <= 1
    width = (views[..., 0] - views[..., -1]).abs().mean(dim=(1, 2))
    assert float(width.min()) > 0.4  # of the side: sqrt(0.25 * 3/4) and more
    assert float(width.max()) <= 1.0
    assert float(width.std()) > 0.05
    rising = views[:, 0, 0, -1] > views[:, 0, 0, 0]
    assert 16 < int(rising.sum()) < 48


def test_views_are_differentiable_and_come_from_their_draws_alone() -> None:
    images = torch.rand(3, 3, 16, 16, generator=rng()).requires_grad_()
    for view in (random_shift, random_crop):
        assert torch.equal(view(images, rng(3)), view(images, rng(3)))
        assert not torch.equal(view(images, rng(3)), view(images, rng(4)))
        (gradient,) = torch.autograd.grad(view(images, rng(3)).sum(), [images])
        assert bool((gradient != 0).flatten(1).any(dim=1).all())
