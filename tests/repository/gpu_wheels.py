"""The wheels that the GPU kit needs on a bare machine, for `dfkd/benchmarks/gpu/wheels.txt`.

`python -m tests.repository.gpu_wheels` writes that list anew, with versions as they are installed
here and the sizes of the wheels, which pip downloads. `site` makes the folder of packages of such a
machine, with which a test runs the kit.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Set
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from tests.helpers.jobs import ROOT
from tests.repository.test_imports import packages, reached

LIST = ROOT / "dfkd" / "benchmarks" / "gpu" / "wheels.txt"
IMAGE = (
    *("torch", "triton", "timm", "transformers", "pyarrow", "safetensors", "pillow", "numpy"),
    "onnx",
)
"""What the machine has, with all that these require."""
PYTHON = "3.12"
"""Its Python."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
KIT = ("dfkd.benchmarks.gpu.rows", "dfkd.benchmarks.gpu.drawings")
"""They import all other modules of the kit."""
LATE = "from diffusers import AutoencoderKL, LCMScheduler, UNet2DConditionModel, VQModel"
"""What a row imports only when it is measured."""


def installed(name: str) -> metadata.Distribution | None:
    """The distribution of a name, or None if this machine does without it."""
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None


def with_requirements(names: Iterable[str], among: Set[str] | None = None) -> set[str]:
    """The distributions and all that they require without extras, of what is installed here.

    Args:
        among: leaves out all others, and what only others require.
    """
    found: set[str] = set()
    open_ends = list(names)
    while open_ends:
        name = canonicalize_name(open_ends.pop())
        distribution = installed(name)
        if name in found or distribution is None or name not in (among or {name}):
            continue
        found.add(name)
        requirements = map(Requirement, distribution.requires or ())
        open_ends += [
            each.name
            for each in requirements
            if each.marker is None or each.marker.evaluate({"extra": ""})
        ]
    return found


def owners(modules: Iterable[str]) -> set[str]:
    """The distributions of some modules by their outermost names."""
    known = metadata.packages_distributions()
    return {canonicalize_name(owner) for name in modules for owner in known.get(name, ())}


def imported() -> set[str]:
    """The distributions whose modules a process has imported after `KIT` and `LATE`."""
    show = "print(*{name.partition('.')[0] for name in sys.modules})"
    code = f"import {', '.join(KIT)}, sys; {LATE}; {show}"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return owners(run.stdout.split())


def needed() -> set[str]:
    """What is imported with the kit, is required by what it imports itself, and is not there.

    Libraries also import what happens to be installed, and require what only other modules of
    theirs import; the machine can do without either.
    """
    own = owners(packages({name for module in KIT for name in reached(module)} | {"diffusers"}))
    return with_requirements(own, imported()) - {"dfkd"} - with_requirements(IMAGE)


def listed() -> dict[str, str]:
    """Names and versions in the list."""
    return dict(re.findall(r"^([\w.-]+)==(\S+)", LIST.read_text(), re.MULTILINE))


def sizes(versions: dict[str, str]) -> dict[str, int]:
    """Bytes of the wheel of each name and version."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
        target = ["--only-binary=:all:", "--python-version", PYTHON]
        for platform in PLATFORMS:
            target += ["--platform", platform]
        wanted = [f"{name}=={version}" for name, version in versions.items()]
        subprocess.run([*pip, *target, *wanted], check=True)
        return {
            parse_wheel_filename(path.name)[0]: path.stat().st_size
            for path in Path(folder).iterdir()
        }


def site(folder: Path, names: Iterable[str]) -> None:
    """Fill a folder with links to the files of some distributions, and no others."""
    for name in names:
        distribution = installed(name)
        assert distribution is not None, name
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            link = folder / top
            if not link.exists():
                link.symlink_to(Path(str(distribution.locate_file(top))))


def main() -> None:
    """Write the list."""
    versions = {name: metadata.version(name) for name in sorted(needed())}
    found = sizes(versions)
    total = sum(found.values())
    lines = [
        "# Written by `python -m tests.repository.gpu_wheels`.",
        "# What `python -m dfkd.benchmarks.gpu` needs beside",
        f"# {', '.join(IMAGE)}:",
        f"# {total / 1e6:.1f} MB, as wheels for Python {PYTHON} on x86-64 Linux.",
        *(f"{name}=={versions[name]}  # {found[name] / 1e6:.3f} MB" for name in versions),
    ]
    LIST.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
