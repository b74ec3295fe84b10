"""Where the drawings are: the npm package `@iconify/json` and the Open Clip Art Library."""

from pathlib import Path

from dfkd.errors import ManifestError
from dfkd.miniature.recipe import IconData
from dfkd.utils import strict_json


def icon_package(data: IconData) -> Path:
    """The folder of the unpacked icon package.

    Raises:
        ManifestError: the folder does not contain it.
    """
    folder = Path(data.directory)
    # The model card names the release, so another one must not be taken for it.
    if (found := _release(folder)) != data.package:
        raise ManifestError(
            "data.directory",
            f"must hold the unpacked {data.package}",
            f"{folder} with {found or 'no package of icons'}",
            "give its folder; manifests/pretrain.yaml says how to get it",
        )
    return folder


def _release(folder: Path) -> str:
    """The name and release of an unpacked icon package; "" if the folder holds none."""
    try:
        found = strict_json.parse((folder / "package.json").read_bytes())
        whole = (folder / "collections.json").is_file() and (folder / "json").is_dir()
        return f"{found['name']}@{found['version']}" if whole else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def clipart_folder(data: IconData) -> Path:
    """The folder of the Open Clip Art Library.

    Raises:
        ManifestError: it is not there.
    """
    folder = Path(data.clipart)
    if not folder.is_dir():
        raise ManifestError(
            "data.clipart",
            "must be the folder of the Open Clip Art Library's SVG files",
            data.clipart,
            "apt-get install openclipart-svg",
        )
    return folder
