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
