"""What a fresh machine gets from the Makefile, with a stand-in for its Python."""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.helpers.jobs import ROOT

OLD_PYTHON = f"""#!{sys.executable}
import sys
sys.version_info = (3, 10, 9)
print("Python 3.10.9") if sys.argv[1] == "-V" else exec(sys.argv[2])
"""


def test_make_names_what_its_python_lacks(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", ".ci/constraints.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    python = tmp_path / "python"
    python.write_text(OLD_PYTHON)
    python.chmod(0o755)
    command = ["make", "demo", f"PYTHON={python}"]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    line, *rest = made.stderr.splitlines()
    assert "error: PYTHON: must be 3.11 to 3.14, as Ray is, got Python 3.10.9" in line
    assert len(rest) == 1  # make's own, with the exit code
    assert not (tmp_path / ".venv").exists()
