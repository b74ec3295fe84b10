"""The API reference is rendered of every module, without a warning."""

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import dfkd
from tests.helpers.jobs import ROOT


@pytest.mark.slow
def test_every_module_is_rendered_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.repository.reference", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert not [line for line in done.stderr.splitlines() if "Warn" in line or "Error" in line]
    pages = {
        ".".join(page.relative_to(tmp_path).with_suffix("").parts): page
        for page in tmp_path.rglob("*.html")
    }
    modules = {module.name for module in pkgutil.walk_packages(dfkd.__path__, "dfkd.")}
    # What `python -m` runs has no names of its own.
    assert modules - {"dfkd.benchmarks.gpu.__main__"} <= pages.keys()
    for page in ("dfkd", "dfkd.api"):
        text = pages[page].read_text()
        for name in ("read_manifest", "synthesize", "distill", "evaluate", "load_student"):
            assert f'id="{name}"' in text
