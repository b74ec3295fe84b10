"""Where the drawings are: found or refused, and downloaded as a whole or not at all."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from dfkd.errors import InfrastructureError, ManifestError
from dfkd.miniature.drawings import sources
from dfkd.miniature.recipe import IconData

ARCHIVE = "iconify-json-2.2.535.tgz"
PACKAGE = json.dumps({"name": "@iconify/json", "version": "2.2.535"})
FILES = {"collections.json", "json/mdi.json", "package.json"}
NPM = f"""#!/bin/sh
printf '%s\\n' "$@" > "$NPM_FOLDER/words"
cp "$NPM_FOLDER/{ARCHIVE}" "$5" && echo {ARCHIVE}
"""
"""A program that packs what a test has prepared, and keeps the words that it was called with."""


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a program `npm`, which packs two files."""
    folder = tmp_path / "npm"
    folder.mkdir()
    with tarfile.open(folder / ARCHIVE, "w:gz") as archive:
        for name in sorted(FILES):
            content = PACKAGE if name == "package.json" else name
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content.encode()))
    (folder / "npm").write_text(NPM)
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("NPM_FOLDER", str(folder))
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return folder


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


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


def test_missing_clip_art_is_refused_with_the_package_s_name(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="openclipart-svg"):
        sources.clipart_folder(IconData(clipart=str(tmp_path / "none")))


def test_npm_is_needed_only_without_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ManifestError, match="npm is not installed"):
        sources.icon_package(IconData(work=str(tmp_path)))
    folder = unpack(tmp_path / "package")
    assert sources.icon_package(IconData(directory=str(folder))) == folder


def test_npm_is_told_to_run_no_program_of_the_package(tmp_path: Path, npm: Path) -> None:
    data = IconData(work=str(tmp_path / "work"))
    sources.icon_package(data)
    words = (npm / "words").read_text().splitlines()
    assert words[0] == "pack"
    assert "--ignore-scripts" in words
    assert words[-2:] == ["--", data.package]


def test_a_package_that_a_kill_left_half_unpacked_is_unpacked_again(
    tmp_path: Path, npm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    data, taken = IconData(work=str(work)), tarfile.TarFile.extractfile
    members: list[tarfile.TarInfo] = []

    def killed(archive: tarfile.TarFile, member: tarfile.TarInfo) -> object:
        members.append(member)
        if len(members) > 1:
            raise KeyboardInterrupt
        return taken(archive, member)

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "extractfile", killed)
        with pytest.raises(KeyboardInterrupt):
            sources.icon_package(data)
    package = sources.icon_package(data)
    assert files(package) == FILES
    assert {path.name for path in work.iterdir()} == {"package", ARCHIVE}


def test_what_stands_in_the_place_of_the_package_is_replaced(tmp_path: Path, npm: Path) -> None:
    (tmp_path / "work" / "package" / "json").mkdir(parents=True)
    (tmp_path / "work" / "package" / "json" / "old.json").touch()
    package = sources.icon_package(IconData(work=str(tmp_path / "work")))
    assert files(package) == FILES


def test_an_unpacked_package_is_not_downloaded_again(tmp_path: Path, npm: Path) -> None:
    data = IconData(work=str(tmp_path / "work"))
    first = sources.icon_package(data)
    (npm / "words").unlink()
    assert sources.icon_package(data) == first
    assert not (npm / "words").exists()


def test_a_download_that_fails_says_why(tmp_path: Path, npm: Path) -> None:
    (npm / "npm").write_text("#!/bin/sh\necho 'no network' >&2\nexit 1\n")
    with pytest.raises(InfrastructureError, match=r"npm pack @iconify/json.* no network; check"):
        sources.icon_package(IconData(work=str(tmp_path / "work")))


@pytest.mark.parametrize("code", ["E404", "ETARGET"])
def test_a_release_that_does_not_exist_is_the_recipe_s_fault(
    tmp_path: Path, npm: Path, code: str
) -> None:
    """npm says why unless it is told to be silent."""
    (npm / "npm").write_text(
        f"#!/bin/sh\ncase \"$*\" in *--silent*) ;; *) echo 'npm error code {code}' >&2;; esac\n"
        "exit 1\n"
    )
    with pytest.raises(ManifestError, match=rf"data\.package: npm: npm error code {code}"):
        sources.icon_package(IconData(work=str(tmp_path / "work")))
