"""Pixels of icons, the cache, and the separation of held-out drawings."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dfkd.lab.miniature import drawings
from dfkd.lab.miniature.icons import Catalogue, Icon
from tests.helpers.icon_package import NAMES, write

HOUSE = '<path fill="currentColor" d="M8 1L1 8h2v7h4v-4h2v4h4V8h2z"/>'
MOON = '<path fill="currentColor" d="M6 1a7 7 0 1 0 9 9A6 6 0 0 1 6 1"/>'


def icon(body: str, box: tuple[float, float, float, float] = (0, 0, 16, 16)) -> Icon:
    return Icon("some", "house", ("house",), (), (), (), body, box)


def rgba(drawn: Icon) -> drawings.Pixels:
    pixels = drawings.rgba(drawn)
    assert pixels is not None
    return pixels


def grey(body: str, box: tuple[float, float, float, float] = (0, 0, 16, 16)) -> drawings.Pixels:
    return np.asarray(255 - rgba(icon(body, box))[..., 3])


def test_rendering_is_deterministic_and_black() -> None:
    first, second = rgba(icon(HOUSE)), rgba(icon(HOUSE))
    assert first.shape == (64, 64, 4)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, second)
    assert first[..., 3].max() == 255
    assert first[..., :3].max() == 0


def test_wide_icons_are_centred_in_a_square() -> None:
    alpha = rgba(icon('<path d="M0 0h32v8H0z"/>', (0, 0, 32, 8)))[..., 3] > 128
    rows = np.flatnonzero(alpha.any(1))
    assert abs((rows[0] + rows[-1]) / 2 - 31.5) < 1
    assert alpha.any(0).sum() > 55


def test_what_cannot_be_drawn_is_left_out() -> None:
    assert drawings.rgba(icon("<path d=")) is None
    assert drawings.rgba(icon('<path d="M0 0z"/>')) is None


def test_the_cache_is_reused_and_keeps_colours_apart(tmp_path: Path) -> None:
    catalogue = Catalogue(
        write(tmp_path / "package", {"mdi": {"sky": '<circle r="9" fill="#08f"/>'}})
    )
    built = drawings.build(catalogue, ["mdi"], tmp_path / "cache", 3, 1)
    assert [row.concept for row in built.rows] == [*sorted((*NAMES, "sky"))]
    assert (len(built.mono), len(built.colour)) == (len(NAMES), 1)
    again = drawings.build(catalogue, ["unknown"], tmp_path / "cache", 3, 1)
    assert again.rows == built.rows


def test_a_trial_draws_a_few_icons_of_each_collection(tmp_path: Path) -> None:
    catalogue = Catalogue(write(tmp_path / "package"))
    built = drawings.build(catalogue, ["mdi", "ri"], tmp_path / "cache", 3, 1, most=2)
    assert [row.collection for row in built.rows] == ["mdi", "mdi", "ri", "ri"]


def test_planted_copy_is_found_by_its_path_data() -> None:
    moved = HOUSE.replace("M8 1L1 8", "M8.000 1L 1,8").replace("currentColor", "#123")
    scaled = '<path d="M16 2L2 16h4v14h8v-8h4v8h8V16h4z"/>'
    keys = [drawings.path_key(moved, 16), drawings.path_key(scaled, 32)]
    assert keys == [drawings.path_key(HOUSE, 16)] * 2
    assert drawings.path_key(MOON, 16) != keys[0]


@pytest.mark.parametrize("box", [(-4.0, -4.0, 24.0, 24.0), (-1.0, -1.0, 18.0, 18.0)])
def test_planted_near_copy_is_found_by_its_hash(box: tuple[float, float, float, float]) -> None:
    lower = HOUSE.replace("v7h4", "v6.8h4")
    train = drawings.hashes([grey(MOON), grey(lower, box)])
    known = drawings.hashes([grey(HOUSE)])
    matches = drawings.find_matches(["a", "b"], train, ["c"], known, 8)
    assert matches == {1: "hash"}


def test_equal_paths_count_once_and_empty_paths_never() -> None:
    train, known = drawings.hashes([grey(MOON)] * 2), drawings.hashes([grey(HOUSE)])
    matches = drawings.find_matches(["", "x"], train, ["x"], known, 0)
    assert matches == {1: "path"}
    assert not drawings.find_matches([""], train[:1], [""], known, 0)


def test_colour_hides_nothing_from_the_hash() -> None:
    pixels = rgba(replace(icon(HOUSE), body=HOUSE.replace("currentColor", "#a11")))
    row = drawings.DrawingRow("some", "house", ("house",), (), (), (), True, 0)
    cache = drawings.Cache([row], np.zeros((0, 64, 64), np.uint8), pixels[None])
    bits = drawings.perceptual_hash(drawings.grey(cache, row))
    assert (bits != drawings.perceptual_hash(grey(HOUSE))).sum() <= 8


def test_likeness_finds_the_same_symmetric_drawing_at_another_size() -> None:
    """What a hash of signs misses: a plain square ring, drawn smaller and off its place."""
    ring = np.full((64, 64), 255, np.uint8)
    ring[8:56, 8:56], ring[16:48, 16:48] = 0, 255
    smaller = np.full((64, 64), 255, np.uint8)
    smaller[2:26, 30:54], smaller[6:22, 34:50] = 0, 255
    bar = np.full((64, 64), 255, np.uint8)
    bar[30:34, 4:60], bar[10:34, 30:34] = 0, 255
    shown = drawings.unit_vectors([ring, bar])
    highest = drawings.max_correlation(shown, drawings.unit_vectors([smaller]))
    assert highest[0] > 0.98
    assert highest[1] < 0.9


@pytest.mark.parametrize("link", ["file:///etc/passwd", "https://example.org/x.png"])
def test_an_icon_that_names_a_file_is_left_out(link: str) -> None:
    assert drawings.rgba(icon(f'{HOUSE}<image href="{link}"/>')) is None
