"""Where the drawings are: found or refused."""

import json
from pathlib import Path

import pytest

from dfkd.errors import ManifestError
from dfkd.miniature.drawings import sources
from dfkd.miniature.recipe import IconData

PACKAGE = json.dumps({"name": "@iconify/json", "version": "2.2.535"})


def unpack(folder: Path, release: str = "2.2.535") -> Path:
    (folder / "json").mkdir(parents=True)
    (folder / "collections.json").write_text("{}")
    (folder / "package.json").write_text(PACKAGE.replace("2.2.535", release))
    return folder


def test_a_folder_of_another_release_or_of_none_is_refused(tmp_path: Path) -> None:
    unpack(tmp_path / "old", "2.2.1")
    unpack(tmp_path / "half").joinpath("json").rmdir()
    (unpack(tmp_path / "odd") / "package.json").write_text("[]")
    found = {"old": "@iconify/json@2.2.1", "half": "no package", "odd": "no package", "": "no"}
    for name, release in found.items():
        with pytest.raises(ManifestError, match=rf"@iconify/json@2\.2\.535.*with {release}"):
            sources.icon_package(IconData(directory=str(tmp_path / name)))


def test_the_folder_of_the_release_is_taken(tmp_path: Path) -> None:
    folder = unpack(tmp_path / "package")
    assert sources.icon_package(IconData(directory=str(folder))) == folder


def test_missing_clip_art_is_refused_with_the_package_s_name(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="openclipart-svg"):
        sources.clipart_folder(IconData(clipart=str(tmp_path / "none")))
