"""The wheels that the GPU kit needs on a bare machine, and the packages of such a machine.

`dfkd/lab/benchmarks/gpu/wheels.txt` is written by hand. A test runs the kit with what it lists.
"""

import re
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.helpers.jobs import ROOT

LIST = ROOT / "dfkd" / "lab" / "benchmarks" / "gpu" / "wheels.txt"
IMAGE = (
    *("torch", "triton", "timm", "transformers", "pyarrow", "safetensors", "pillow", "numpy"),
    "onnx",
)
"""What the machine has, with all that these require."""


def installed(name: str) -> metadata.Distribution | None:
    """The distribution of a name, or None if this machine does without it."""
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None


def with_requirements(names: Iterable[str]) -> set[str]:
    """The distributions and all that they require without extras, of what is installed here."""
    found: set[str] = set()
    open_ends = list(names)
    while open_ends:
        name = canonicalize_name(open_ends.pop())
        distribution = installed(name)
        if name in found or distribution is None:
            continue
        found.add(name)
        requirements = map(Requirement, distribution.requires or ())
        open_ends += [
            each.name
            for each in requirements
            if each.marker is None or each.marker.evaluate({"extra": ""})
        ]
    return found


def listed() -> dict[str, str]:
    """Names and versions in the list."""
    return dict(re.findall(r"^([\w.-]+)==(\S+)", LIST.read_text(), re.MULTILINE))


def site(folder: Path, names: Iterable[str]) -> None:
    """Fill a folder with links to the files of some distributions, and no others."""
    for name in names:
        distribution = installed(name)
        assert distribution is not None, name
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            link = folder / top
            if not link.exists():
                link.symlink_to(Path(str(distribution.locate_file(top))))
