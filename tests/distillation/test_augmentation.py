from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dfkd.config.distillation import Augmentation
from dfkd.distillation import augmentation
from dfkd.distillation.augmentation import augment

OPTIONS = get_args(Augmentation)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 16, size: int = 24) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=generator(1))


@settings(max_examples=40, deadline=None)
@given(st.sets(st.sampled_from(OPTIONS)), st.sampled_from([(5, 16), (2, 70), (3, 200)]))
def test_views_are_images_again_and_depend_on_the_generator_alone(
    options: set[str], shape: tuple[int, int]
) -> None:
    pixels = images(*shape)
    original = pixels.clone()
    views = augment(pixels, options, generator())
    assert views.shape == pixels.shape
    assert views.dtype == torch.float32
    assert views.min() >= 0
    assert views.max() <= 1
    assert torch.equal(views, augment(pixels, options, generator()))
    assert torch.equal(pixels, original)


@pytest.mark.parametrize("option", OPTIONS)
def test_each_option_changes_images_and_each_image_in_its_own_way(option: str) -> None:
    same = images(1).expand(32, -1, -1, -1)
    views = augment(same, [option], generator())
    assert not torch.equal(views, same)
    assert len(views.flatten(1).unique(dim=0)) > 1


def test_no_option_gives_the_images_themselves() -> None:
    pixels = images()
    assert torch.equal(augment(pixels, [], generator()), pixels)


def test_flip_alone_mirrors_exactly_about_half_of_the_images() -> None:
    pixels = images(64)
    views = augment(pixels, ["flip"], generator())
    mirrored = [torch.equal(v, p.flip(-1)) for v, p in zip(views, pixels, strict=True)]
    kept = [torch.equal(v, p) for v, p in zip(views, pixels, strict=True)]
    assert all(m or k for m, k in zip(mirrored, kept, strict=True))
    assert 16 < sum(mirrored) < 48


def test_flip_within_a_sampled_geometry_is_the_same_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augmentation, "CROP_AREA", (1.0, 1.0))
    pixels = images(32)
    views = augment(pixels, ["flip", "crop"], generator())
    errors = torch.stack([(views - pixels).abs(), (views - pixels.flip(-1)).abs()])
    nearest = errors.amax(dim=(2, 3, 4))
    assert nearest.min(0).values.max() < 1e-5
    assert 0 < int((nearest[1] < 1e-5).sum()) < 32


def test_a_crop_shows_a_part_and_never_the_outside() -> None:
    ramp = torch.linspace(0.25, 0.75, 48).expand(64, 3, 48, 48)
    views = augment(ramp, ["crop"], generator())
    assert views.min() >= 0.25 - 1e-6
    assert views.max() <= 0.75 + 1e-6
    spans = views[:, 0, 0, -1] - views[:, 0, 0, 0]
    whole = 0.5
    assert spans.min() >= whole * 0.5**0.5 - 0.02
    assert spans.max() <= whole + 1e-5
    assert spans.std() > 0.02


def test_a_turn_goes_up_to_a_right_angle_and_changes_no_shape() -> None:
    x, y = torch.meshgrid(torch.linspace(-1, 1, 48), torch.linspace(-1, 1, 48), indexing="xy")
    disc = (x.square() + y.square() < 0.5).float().expand(200, 3, 48, 48)
    assert (augment(disc, ["turn"], generator()) - disc).abs().mean() < 0.02
    # From left to right; a turned view goes in the direction (along x, along y).
    views = augment((0.5 + x / 4).expand(200, 3, 48, 48), ["turn"], generator())[:, 0]
    along_x = views[:, 24, 30] - views[:, 24, 18]
    along_y = views[:, 30, 24] - views[:, 18, 24]
    angles = torch.atan2(along_y, along_x).rad2deg()
    assert -91 < angles.min() < -80
    assert 80 < angles.max() < 91
    assert 45 < angles.std() < 60  # 52 if all angles are alike


def test_an_affine_map_rotates_shears_scales_and_shifts_within_its_limits() -> None:
    """Read from how a view's gradients of x and y go over the image, which are the linear map."""
    x, y = torch.meshgrid(torch.linspace(-1, 1, 96), torch.linspace(-1, 1, 96), indexing="xy")
    maps = torch.stack([0.5 + x / 8, 0.5 + y / 8, 0 * x + 0.5]).expand(300, 3, 96, 96)
    views = (augment(maps, ["affine"], generator()) - 0.5) * 8
    step = 2 / 95
    linear = torch.stack(
        [(views[:, :2, 48, 52] - views[:, :2, 48, 44]) / 8 / step,
         (views[:, :2, 52, 48] - views[:, :2, 44, 48]) / 8 / step], 2
    )  # fmt: skip
    # The first column is a rotation divided by the size, the second one is sheared along the first.
    size = 1 / linear[:, :, 0].norm(dim=1)
    angle = torch.atan2(linear[:, 1, 0], linear[:, 0, 0]).rad2deg()
    shear = (linear[:, :, 0] * linear[:, :, 1]).sum(1) * size.square()
    shift = views[:, :2, 47:49, 47:49].mean(dim=(2, 3))
    for found, limit in ((size - 1, 0.2), (angle, 20), (shear, 0.15), *((s, 0.1) for s in shift.T)):
        assert 0.9 * limit < found.abs().max() < 1.02 * limit
        assert found.min() < 0 < found.max()


def test_colours_change_by_contrast_about_mid_grey_and_brightness_alike_for_greys() -> None:
    greys = torch.tensor([0.45, 0.5, 0.55]).view(3, 1, 1, 1).expand(200, 3, 3, 2, 2)
    views = torch.stack([augment(greys[:, i], ["colour"], generator()) for i in range(3)], 1)
    assert (views - views.mean(2, keepdim=True)).abs().max() < 1e-5  # greys stay grey
    dark, middle, light = views[:, :, 0, 0, 0].unbind(1)
    contrast, brightness = (light - dark) / 0.1, middle - 0.5
    for found, low, high in ((contrast, 0.6, 1.4), (brightness, -0.3, 0.3)):
        assert low - 1e-4 <= found.min() < low + 0.05
        assert high - 0.05 < found.max() <= high + 1e-4


def test_colours_turn_the_hue_by_a_twelfth_at_most_and_change_the_saturation() -> None:
    red = torch.tensor([0.55, 0.475, 0.475]).view(1, 3, 1, 1).expand(300, 3, 2, 2)
    views = augment(red, ["colour"], generator())[:, :, 0, 0]
    chroma = views - views.mean(1, keepdim=True)
    angle = torch.atan2(
        3**0.5 * (chroma[:, 1] - chroma[:, 2]), 2 * chroma[:, 0] - chroma[:, 1] - chroma[:, 2]
    ).rad2deg()
    assert -30.1 < angle.min() < -28
    assert 28 < angle.max() < 30.1
    factor = chroma.norm(dim=1) / (red[0, :, 0, 0] - 0.5).norm()
    assert factor.min() < 0.4  # saturation 0.2 to 1.8, times contrast
    assert factor.max() > 1.8


def test_noise_has_a_deviation_of_its_own_in_each_image() -> None:
    noise = augment(torch.full((300, 3, 24, 24), 0.5), ["noise"], generator()) - 0.5
    deviations = noise.flatten(1).std(dim=1)
    assert deviations.min() < 0.005
    assert 0.075 < deviations.max() < 0.082
    assert noise.mean().abs() < 0.001


def test_grey_and_invert_do_what_they_say() -> None:
    pixels = images(200, 8)
    grey = augment(pixels, ["grey"], generator())
    is_grey = (grey - grey.mean(1, keepdim=True)).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert 20 < int(is_grey.sum()) < 90
    assert torch.allclose(grey[~is_grey], pixels[~is_grey], atol=1e-6)
    inverted = augment(pixels, ["invert"], generator())
    is_inverted = (inverted - (1 - pixels)).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert 10 < int(is_inverted.sum()) < 60
    assert torch.allclose(inverted[~is_inverted], pixels[~is_inverted], atol=1e-6)


def test_blur_lowers_contrast_and_keeps_the_mean() -> None:
    pixels = images(64, 65)
    views = augment(pixels, ["blur"], generator())
    changed = (views != pixels).flatten(1).any(1)
    assert 8 < int(changed.sum()) < 40
    assert (views[changed].std(dim=(1, 2, 3)) < pixels[changed].std(dim=(1, 2, 3))).all()
    assert (views.mean(dim=(1, 2, 3)) - pixels.mean(dim=(1, 2, 3))).abs().max() < 0.01


def test_erase_fills_one_rectangle_with_one_colour() -> None:
    pixels = images(64, 40)
    views = augment(pixels, ["erase"], generator())
    changed = (views != pixels).any(1)
    erased = changed.flatten(1).any(1)
    assert 8 < int(erased.sum()) < 32
    for view, hole in zip(views[erased], changed[erased], strict=True):
        rows, columns = hole.any(1), hole.any(0)
        assert int(hole.sum()) == int(rows.sum()) * int(columns.sum())
        assert len(view[:, hole].unique(dim=1)[0]) == 1
