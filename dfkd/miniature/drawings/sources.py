"""Where the drawings are: the npm package `@iconify/json` and the Open Clip Art Library."""

import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

from dfkd.errors import CorruptionError, InfrastructureError, ManifestError
from dfkd.miniature.recipe import IconData
from dfkd.utils import strict_json

WANTED = re.compile(r"package/(package\.json|collections\.json|json/[a-z0-9-]+\.json)")
"""What is taken from the icon package."""
MAX_COLLECTION = 1 << 28
"""Bytes of a collection at most; the largest has some 50 MB."""
_NO_RELEASE = ("E404", "ETARGET")
"""npm's codes for a package or a release that does not exist."""


def icon_package(data: IconData) -> Path:
    """The folder of the unpacked icon package, downloaded with npm if the recipe names none.

    Raises:
        ManifestError: the folder does not contain the package, npm is missing, or there is no such
            release.
        InfrastructureError: npm failed.
    """
    if not data.directory:
        return _fetched(data)
    folder = Path(data.directory)
    # The model card names the release, so another one must not be taken for it.
    if (found := _release(folder)) != data.package:
        raise ManifestError(
            "data.directory",
            f"must hold the unpacked {data.package}",
            f"{folder} with {found or 'no package of icons'}",
            "give its folder, or nothing to fetch it",
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


def _fetched(data: IconData) -> Path:
    """Download and unpack the icon package into the work folder, unless an earlier call has."""
    work = Path(data.work)
    unpacked, partial = work / "package", work / "package.part"
    if _release(unpacked) == data.package:
        return unpacked
    archive = _packed(data, work)
    for leftover in (partial, unpacked):
        if leftover.exists():
            shutil.rmtree(leftover)
    _unpack(archive, partial)
    # npm packs everything in a folder of this name. It is moved once it is whole.
    os.replace(partial / "package", unpacked)
    partial.rmdir()
    return unpacked


def _unpack(archive: Path, folder: Path) -> None:
    """Write the icon collections in an archive of npm into a folder; all else is left out."""
    # Not `extractall`: its filter lets links out of the folder in some releases of Python 3.11.
    with tarfile.open(archive) as packed:
        for member in packed:
            if not (member.isreg() and WANTED.fullmatch(member.name)):
                continue
            if member.size > MAX_COLLECTION:
                raise CorruptionError(
                    f"{archive}: {member.name} has more than {MAX_COLLECTION} bytes; delete it "
                    "and run again"
                )
            content, target = packed.extractfile(member), folder / member.name
            target.parent.mkdir(parents=True, exist_ok=True)
            if content:
                target.write_bytes(content.read())


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
    # A level below "error" would leave the reason of a failure out.
    options = ("--ignore-scripts", "--loglevel=error", "--pack-destination", str(work))
    command = [npm, "pack", *options, "--", data.package]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if completed.returncode:
        reason = " ".join(completed.stderr.split())[:300]
        if any(code in reason for code in _NO_RELEASE):
            raise ManifestError("data.package", f"npm: {reason}", data.package, "name a release")
        raise InfrastructureError(
            f"npm pack {data.package} failed: {reason}; "
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
