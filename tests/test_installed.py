"""The package as a stranger installs it: a wheel in an environment of its own, an empty folder."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.helpers.jobs import ROOT, environment

SMALL = (
    "classes=[cat, dog]",
    "prompts.contrastive.updates=2",
    "synthesis.images_per_class=8",
    "synthesis.shard_size=4",
    "generator.diffusers.steps=2",
    "distillation.epochs=1",
    "distillation.batch_size=8",
    "candidates.styles=1",
    "evaluation.domains=clipart",
)


@pytest.fixture(scope="module")
def dfkd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command `dfkd` of the installed wheel; its dependencies are those of this environment."""
    folder = tmp_path_factory.mktemp("installed")
    build = ["egg_info", "--egg-base", folder, "build", "--build-base", folder / "build"]
    build += ["bdist_wheel", "--dist-dir", folder, "--bdist-dir", folder / "bdist"]
    setup = [sys.executable, "-c", "from setuptools import setup; setup()", *build]
    subprocess.run(setup, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    python = folder / "env" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index"]
    subprocess.run([*pip, wheel], check=True, capture_output=True)
    # A path in a .pth file adds packages, but not the checkout to which a .pth beside them leads.
    (home,) = (folder / "env" / "lib").glob("python*/site-packages")
    (home / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "env" / "bin" / "dfkd"


def run(dfkd: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command in an empty folder, without the paths by which tests find the checkout."""
    own = {key: value for key, value in environment().items() if key != "PYTHONPATH"}
    return subprocess.run([dfkd, *words], cwd=folder, env=own, capture_output=True, text=True)


def test_the_demo_runs_in_an_empty_folder(dfkd: Path, tmp_path: Path) -> None:
    where = "import dfkd; print(dfkd.__file__)"
    python = [str(dfkd.with_name("python")), "-c", where]
    found = subprocess.run(python, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert Path(found.stdout).is_relative_to(dfkd.parents[1])
    settings = [word for setting in SMALL for word in ("--set", setting)]
    done = run(dfkd, tmp_path, "demo", *settings)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[0].startswith("dfkd pipeline: ")
    assert done.stdout.splitlines()[-1].startswith("wrote ")
    assert os.listdir(tmp_path) == ["runs"]
    root = tmp_path / "runs" / "miniature"
    measured = json.loads((root / "candidates.json").read_text())["candidates"]
    assert [each["kind"] for each in measured] == ["tower", "tower", "student", "student"]
    assert (root / "report.html").is_file()
    shipped = run(dfkd, tmp_path, "ship", str(root), "--max-mb", "3")
    assert shipped.returncode == 0, shipped.stderr
    picture = root / "contact-sheet.png"
    told = run(dfkd, tmp_path, "predict", str(root / "shipped"), str(picture))
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith(f"{picture}: ")


def test_a_manifest_of_ones_own_has_a_plan(dfkd: Path, tmp_path: Path) -> None:
    written = run(dfkd, tmp_path, "init", "cat, dog", "--output", "mine.yaml")
    assert written.returncode == 0, written.stderr
    planned = run(dfkd, tmp_path, "pipeline", "mine.yaml", "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert json.loads(planned.stdout)["synthesize"]["images"] > 0
    assert os.listdir(tmp_path) == ["mine.yaml"]


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["pipeline", "--help"]])
def test_help_needs_no_manifest(dfkd: Path, tmp_path: Path, words: list[str]) -> None:
    told = run(dfkd, tmp_path, *words)
    assert (told.returncode, told.stderr) == (0, "")
    assert "dfkd" in told.stdout


def test_an_unknown_command_is_refused(dfkd: Path, tmp_path: Path) -> None:
    told = run(dfkd, tmp_path, "deploy")
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr.startswith("error: command: must be one of demo, init, ")
