"""A package that dfkd does not know, installed by pip, runs through the real jobs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import jobs, small_manifest

PACKAGE = jobs.ROOT / "tests" / "plugin"

SETTINGS = {
    "classes": ["dog", "house"],
    "generator": {"kind": "colours", "colours": {"side": 4}},
    "prompts": {"method": ["vanilla", "shout"], "shout": {"marks": 3}},
    "synthesis": {"images_per_class": 4, "shard_size": 2, "image_size": 64, "views": 1},
    "distillation": {
        "student": "timm:test_resnet", "weights": "none", "warmup_epochs": 0, "epochs": 1,
        "batch_size": 4,
    },
    "cluster": {"workers": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages into which pip has installed the foreign one."""
    target = tmp_path_factory.mktemp("site")
    command = [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--no-build-isolation", "--target", str(target), str(PACKAGE)),
    ]
    subprocess.run(command, check=True)
    return target


def among(packages: Path) -> dict[str, str]:
    """The environment of a job that finds these packages, as do the workers that it starts."""
    paths = [str(packages), *filter(None, [os.environ.get("PYTHONPATH")])]
    return jobs.environment() | {"PYTHONPATH": os.pathsep.join(paths)}


@pytest.mark.heavy
def test_a_prompt_method_and_a_generator_of_another_package(site: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    manifest = small_manifest.write(tmp_path, storage={"root": str(root)}, **SETTINGS)
    for job in ("synthesize", "distill"):
        done = jobs.run(job, manifest, env=among(site))
        assert done.returncode == 0, done.stderr
    assert len(list(root.glob("students/*/student.safetensors"))) == 2

    (version,) = root.glob("data/shout/versions/*")
    identity = json.loads((version / "identity.json").read_bytes())
    assert identity["prompts.shout.marks"] == 3
    assert identity["prompts.shout.package"] == "dfkd-shout 1.2.3"
    assert identity["generator.colours.side"] == 4
    assert identity["generator.colours.package"] == "dfkd-shout 1.2.3"

    shown = jobs.run("synthesize", manifest, "--print-manifest", env=among(site))
    assert "    marks: 3\n" in shown.stdout
    assert "    learning_rate: 0.1\n" in shown.stdout


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("prompts.shout.marks=9", "prompts.shout.marks: must be less than or equal to 5, got 9"),
        ("prompts.shout.mark=1", "prompts.shout.mark: is not a key of prompts.shout, which has m"),
        ("prompts.method=whisper", "contrastive_variant, mix, random, shout, vanilla, got 'whi"),
        ("generator={kind: colours}", "generator.colours.side: is required"),
    ],
)
def test_its_settings_are_checked_like_ours(
    site: Path, tmp_path: Path, override: str, message: str
) -> None:
    manifest = small_manifest.write(tmp_path, **SETTINGS)
    refused = jobs.run("synthesize", manifest, "--set", override, env=among(site))
    assert refused.returncode == 2
    assert message in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_without_the_package_its_names_are_unknown(tmp_path: Path) -> None:
    refused = jobs.run("synthesize", small_manifest.write(tmp_path, **SETTINGS))
    assert refused.returncode == 2
    assert "generator.colours: is neither a key nor a kind of generator" in refused.stderr
    assert "install its package" in refused.stderr


def test_nothing_in_dfkd_knows_it() -> None:
    for file in (jobs.ROOT / "dfkd").rglob("*.py"):
        assert "shout" not in file.read_text().lower()
