"""Views belong to their image: the same whatever the batch, and all of them inside the picture."""

import pytest
import torch

from dfkd.synthesis.views import MAX_ROTATION, MAX_SHIFT, MAX_ZOOM, Views, apply_views

CPU = torch.device("cpu")


def test_no_views_show_the_picture_itself() -> None:
    pixels = torch.rand(2, 3, 8, 8)
    assert apply_views(pixels, Views([1, 2], 3, 0, 0.0, 8, CPU).draw(0)) is pixels


def test_an_images_views_do_not_depend_on_its_batch() -> None:
    pixels = torch.rand(3, 3, 16, 16)
    together = Views([5, 6, 7], 4, 2, 0.1, 16, CPU)
    alone = Views([6], 4, 2, 0.1, 16, CPU)
    for step in range(4):
        shown = apply_views(pixels, together.draw(step)).view(3, 2, 3, 16, 16)
        assert torch.allclose(shown[1], apply_views(pixels[1:2], alone.draw(step)), atol=1e-6)


def test_views_differ_between_steps_images_and_each_other() -> None:
    pixels = torch.rand(1, 3, 16, 16).repeat(2, 1, 1, 1)
    views = Views([1, 2], 2, 2, 0.0, 16, CPU)
    shown = torch.cat(
        [apply_views(pixels, views.draw(0)), apply_views(pixels, views.draw(1))]
    ).flatten(1)
    assert len(shown.unique(dim=0)) == 8


def test_a_view_has_the_teachers_size_and_a_grey_picture_stays_grey() -> None:
    shown = apply_views(torch.full((1, 3, 16, 16), 0.5), Views([1], 1, 3, 0.0, 24, CPU).draw(0))
    assert shown.shape == (3, 3, 24, 24)
    assert torch.allclose(shown, torch.tensor(0.5))


def test_maps_reach_their_limits_and_stay_within_them() -> None:
    maps = Views(range(50), 20, 2, 0.0, 16, CPU).matrices.flatten(0, 2)
    linear, shift = maps.split([2, 1], dim=2)
    zoom = torch.linalg.det(linear).sqrt() - 1
    angle = torch.atan2(linear[:, 1, 0], linear[:, 0, 0])
    # A shift is in the coordinates of the grid, in which the picture is 2 wide.
    for found, most in ((zoom, MAX_ZOOM), (angle, MAX_ROTATION), (shift.flatten() / 2, MAX_SHIFT)):
        for end in (found.max(), -found.min()):
            assert 0.95 * most < float(end) <= most + 1e-6


def test_noise_is_added_with_its_deviation() -> None:
    grey = torch.full((2, 3, 16, 16), 0.5)
    shown = apply_views(grey, Views([1, 2], 1, 8, 0.1, 32, CPU).draw(0))
    assert float(shown.std()) == pytest.approx(0.1, rel=0.05)
