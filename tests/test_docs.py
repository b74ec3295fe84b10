"""The reference that `make docs` renders: of every module, without a warning."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def modules() -> set[str]:
    """Public modules by dotted name; the example is a script, which importing would run."""
    found = set()
    for file in (ROOT / "dfkd").rglob("*.py"):
        parts = file.relative_to(ROOT).with_suffix("").parts
        found.add(".".join(parts).removesuffix(".__init__"))
    return {name for name in found if name != "dfkd.example"}


@pytest.mark.slow
def test_every_module_is_rendered_without_a_warning(tmp_path: Path) -> None:
    # pdoc documents the names that a module already has, and `dfkd` has none before its first use.
    # What it cannot parse is an annotation inside pydantic, of which its page shows nothing.
    foreign = (
        "-Wignore:Failed to run TYPE_CHECKING code while parsing PydanticDataclass",
        "-Wignore:Error parsing type annotation PydanticDataclass",
    )
    program = "from dfkd import *; from pdoc.__main__ import cli; cli()"
    options = ["-d", "google", "-o", str(tmp_path), "dfkd", "!dfkd.example"]
    done = subprocess.run(
        [sys.executable, *foreign, "-c", program, *options],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert not [line for line in done.stderr.splitlines() if line.startswith(("Warn", "Error"))]
    for name in modules():
        page = tmp_path / Path(*name.split(".")).with_suffix(".html")
        assert page.is_file(), name
    for page in ("dfkd.html", "dfkd/api.html"):
        text = (tmp_path / page).read_text()
        for name in ("read_manifest", "synthesize", "distill", "evaluate", "load_student"):
            assert f'id="{name}"' in text
    assert not (tmp_path / "dfkd" / "example.html").exists()
