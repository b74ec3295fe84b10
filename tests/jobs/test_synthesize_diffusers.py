"""The job that makes images, with a diffusion model as generator."""

import json
import shutil
from pathlib import Path

import pytest

from dfkd.errors import Exit
from tests.helpers.jobs import contents, plan, refusal, run_here
from tests.helpers.published import published
from tests.helpers.tiny_models import VIT, model_config, write_teacher
from tests.helpers.tiny_pipeline import read_manifest, tiny_teacher, write_pipeline


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher, its diffusion model and `manifest.yaml`."""
    folder = tmp_path_factory.mktemp("home")
    read_manifest(folder, write_pipeline(folder / "pipeline", tiny_teacher(folder)))
    return folder


@pytest.mark.usefixtures("two_cpus")
def test_a_run_is_published_and_resumed_to_the_same_bytes(home: Path) -> None:
    words = ("--set", "prompts.method=random", "--set", "cluster.workers=1")
    planned = plan("synthesize", home / "manifest.yaml", *words)
    assert (planned["optimisation_steps"], planned["sampling_steps"]) == (0, 20)
    found = run_here("synthesize", home / "manifest.yaml", *words)
    assert found.returncode == Exit.DONE, found.stderr
    data = home / "run/data"
    version = published(home / "run", "random")
    assert sum(receipt.samples for receipt in version.receipts()) == 10
    identity = json.loads((data / "random/versions" / version.id / "identity.json").read_bytes())
    assert identity["generator.kind"] == "diffusers"
    assert len(identity["generator.diffusers.weights/unet/weights.sha256"]) == 64
    unread = {
        "generator.diffusers.weights",
        "synthesis.views",
    }
    assert not unread & identity.keys()

    # As if it had been killed after all shards but one.
    made = contents(data)
    folder = data / "random/versions" / version.id
    for name in ("version.json", "README.md", "receipts/0001-00001.json.gz"):
        (folder / name).unlink()
    shutil.rmtree(folder / "index")
    shutil.rmtree(data / "random/current")
    found = run_here("synthesize", home / "manifest.yaml", *words)
    assert found.returncode == Exit.DONE, found.stderr
    assert contents(data) == made


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("generator.diffusers.steps=500", "generator.diffusers.steps: must suit LCMScheduler"),
        (
            "generator.diffusers.weights=/nowhere",
            "generator.diffusers.weights: must be an existing folder or ",
        ),
    ],
)
def test_bad_input_is_one_line_before_any_work(override: str, message: str, home: Path) -> None:
    words = ("--set", override, "--set", f"storage.root={home}/other")
    assert refusal("synthesize", home / "manifest.yaml", *words).startswith(message)
    assert not (home / "other").exists()


@pytest.mark.heavy
def test_another_teacher_is_refused_before_any_work(home: Path, tmp_path: Path) -> None:
    other = write_teacher(tmp_path, model_config(VIT, heads=4))
    words = [f"--set=teacher.{key}={getattr(other, key)}" for key in ("model", "weights")]
    line = refusal("synthesize", home / "manifest.yaml", *words, "--dry-run")
    assert "(num_attention_heads is 4 there and 2 here)" in line
