"""What a fresh machine gets from the Makefile and from .ci/run, with stand-ins for its programs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.jobs import ROOT

OTHER_PYTHON = """#!{python}
import sys
sys.version_info = {version}
sys.modules.update(dict.fromkeys({hidden}))
if sys.argv[1] == "-V":
    print("Python {version}")
elif sys.argv[1] == "-c":
    exec(sys.argv[2])
else:
    sys.exit("it builds")
"""

APT_GET = """#!/bin/sh
case "$*" in
  *chromium-driver*) exit 100 ;;
  *install*) echo "$*" >> installed ;;
esac
"""


def put_program(path: Path, content: str) -> Path:
    path.write_text(content)
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("version", "hidden", "message"),
    [
        ((3, 10, 9), (), "error: PYTHON: must be 3.11 to 3.14"),
        ((3, 15, 0), (), "error: PYTHON: must be 3.11 to 3.14"),
        ((3, 14, 2), ("ensurepip",), "try apt-get install python3-venv"),
        ((3, 14, 2), (), "it builds"),
    ],
)
def test_make_names_what_its_python_lacks(
    version: tuple[int, ...], hidden: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    for name in ("Makefile", "pyproject.toml", ".ci/constraints.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    script = OTHER_PYTHON.format(python=sys.executable, version=version, hidden=hidden)
    python = put_program(tmp_path / "python", script)
    command = ["make", "demo", f"PYTHON={python}"]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    line, *rest = made.stderr.splitlines()
    assert message in line
    assert len(rest) == 1  # make's own, with the exit code
    assert not (tmp_path / ".venv").exists()


def test_the_gate_installs_what_it_can(tmp_path: Path) -> None:
    """On Ubuntu, which has no chromium-driver."""
    (tmp_path / ".ci").mkdir()
    gate = shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci")
    programs = tmp_path / "bin"
    programs.mkdir()
    put_program(programs / "apt-get", APT_GET)
    put_program(programs / "id", "#!/bin/sh\necho 0\n")
    put_program(programs / "make", "#!/bin/sh\n")
    bash, dirname = shutil.which("bash"), shutil.which("dirname")
    assert bash
    assert dirname
    (programs / "dirname").symlink_to(dirname)
    environment = {**os.environ, "PATH": str(programs)}
    ended = subprocess.run([bash, gate], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    installed = (tmp_path / "installed").read_text().splitlines()
    assert [line.partition("recommends ")[2] for line in installed] == [
        "ceph-mon ceph-osd radosgw ceph-common",
        "promtool",
    ]
    assert "warning: chromium chromium-driver could not be installed" in ended.stderr
