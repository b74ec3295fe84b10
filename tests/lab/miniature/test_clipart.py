"""Clip art: names from the files' metadata, artists kept apart, drawings cut out of their pages."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfkd.errors import ManifestError
from dfkd.lab.miniature import clipart
from tests.helpers import icon_package

NOUNS = frozenset(("clock", "lamp", "cup", "computer", "old"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return icon_package.write_clipart(tmp_path / "art")


def test_titles_and_subjects_name_a_drawing(tmp_path: Path) -> None:
    icon_package.write_drawing(
        tmp_path / "a.svg", "The old Lamp", "Anna", 0, "cup", "computer", "unheard of"
    )
    (drawing,) = clipart.drawings(tmp_path, NOUNS)
    # "computer" is what the library calls every theme, and says nothing.
    assert drawing.names == (("old", "lamp"), ("cup",))
    row = drawing.row(clipart.TRAINING)
    assert (row.concept, row.aliases, row.colour) == ("old lamp", ("cup",), True)


@pytest.mark.parametrize(
    ("name", "title", "author"),
    [
        ("buttons/a.svg", "lamp", "Anna"),
        ("a.svg", "unheard of", "Anna"),
        ("a.svg", "lamp", ""),
        ("a.svg", "lamp", "codifiedivining"),
    ],
)
def test_what_has_no_name_artist_or_picture_is_left_out(
    tmp_path: Path, name: str, title: str, author: str
) -> None:
    icon_package.write_drawing(tmp_path / name, title, author, 0)
    assert not list(clipart.drawings(tmp_path, NOUNS))


def test_a_file_in_two_folders_counts_once(tmp_path: Path) -> None:
    for place in ("home/lamp.svg", "office/lamp.svg"):
        icon_package.write_drawing(tmp_path / place, "lamp", "Anna", 0)
    assert len(list(clipart.drawings(tmp_path, NOUNS))) == 1


def test_no_artist_is_in_training_and_in_evaluation(folder: Path, tmp_path: Path) -> None:
    training, evaluation = clipart.build(folder, NOUNS, {"clock"}, tmp_path / "work", 1)
    assert sorted(row.concept for row in evaluation.rows) == ["clock", "lamp"]
    assert sorted(row.concept for row in training.rows) == ["cup", "lamp"]
    assert {row.collection for row in training.rows} == {clipart.TRAINING}
    assert training.colour.shape == (2, 64, 64, 4)


def test_a_folder_without_clip_art_is_refused_with_the_package_s_name(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="openclipart-svg"):
        clipart.build(tmp_path / "none", NOUNS, {"clock"}, tmp_path / "work", 1)


def test_rendered_drawings_are_reused(folder: Path, tmp_path: Path) -> None:
    first = clipart.build(folder, NOUNS, {"clock"}, tmp_path / "work", 1)
    stamps = [path.stat().st_mtime_ns for path in sorted((tmp_path / "work").rglob("*.npy"))]
    again = clipart.build(folder, NOUNS, {"clock"}, tmp_path / "work", 1)
    assert [cache.rows for cache in first] == [cache.rows for cache in again]
    assert stamps == [p.stat().st_mtime_ns for p in sorted((tmp_path / "work").rglob("*.npy"))]


def drawn(folder: Path, body: str, box: str = "0 0 9 9") -> np.ndarray | None:
    """The pixels of a file with these elements."""
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    (folder / "a.svg").write_text(f'<svg {names} viewBox="{box}">{body}</svg>')
    return clipart.rgba(folder / "a.svg")


def test_a_drawing_is_cut_out_of_an_empty_page(tmp_path: Path) -> None:
    body = '<rect x="80" y="80" width="10" height="10" fill="red"/>'
    pixels = drawn(tmp_path, body, "0 0 100 100")
    assert (pixels[..., 3] > 200).mean() > 0.6
    assert np.all(pixels[32, 32, :3] == (255, 0, 0))


@pytest.mark.parametrize("body", ["no picture", '<svg xmlns="http://www.w3.org/2000/svg"/>'])
def test_what_cannot_be_drawn_gives_nothing(tmp_path: Path, body: str) -> None:
    path = tmp_path / "a.svg"
    path.write_text(body)
    assert clipart.rgba(path) is None


@pytest.mark.parametrize(
    "body",
    [
        '<image href="{secret}" width="9" height="9"/>',
        '<image xlink:href = "file://{secret}" width="9" height="9"/>',
        '<use href="https://example.com/x.svg#a"/>',
    ],
)
def test_a_drawing_paints_no_file_of_this_machine(tmp_path: Path, body: str) -> None:
    secret = tmp_path / "secret.png"
    Image.new("RGB", (9, 9), "red").save(secret)
    body = f'<rect width="9" height="2"/>{body.format(secret=secret)}'
    assert drawn(tmp_path, body) is None


def test_a_drawing_of_any_height_takes_no_memory(tmp_path: Path) -> None:
    assert drawn(tmp_path, '<rect width="1" height="4000"/>', "0 0 1 4000") is None
