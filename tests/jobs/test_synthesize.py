"""The job that makes images, as a process: it resumes after kill -9 and refuses bad input."""

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dfkd.storage import cost_records
from dfkd.storage.local import open_storage
from tests.helpers import small_manifest
from tests.helpers.jobs import contents, kill_when, plan, refusal, run, run_here
from tests.helpers.published import published

TREE: dict[str, Any] = {
    "classes": ["dog", "house", "car"],
    "prompts": {
        "method": "contrastive",
        "contrastive": {"scale": 3.0, "updates": 5, "batch_size": 3, "learning_rate": 0.05},
    },
    "synthesis": {
        "images_per_class": 6, "shard_size": 2, "batch_size": 2, "image_size": 64,
        "views": 1,
    },
    "generator": small_manifest.vqgan(steps=8),
    "cluster": {"workers": 1},
}  # fmt: skip


def write(folder: Path) -> Path:
    return small_manifest.write(folder, storage={"root": str(folder / "run")}, **TREE)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the small manifest."""
    folder = tmp_path_factory.mktemp("undisturbed")
    found = run("synthesize", write(folder))
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[-1].startswith("wrote ")
    return folder


def test_a_run_publishes_a_version_and_leaves_what_it_cost(undisturbed: Path) -> None:
    version = published(undisturbed / "run", "contrastive")
    assert sum(receipt.samples for receipt in version.receipts()) == 18
    assert version.facts["shards"] == 9
    assert json.loads(version.storage.get("prompts.json"))["prompts"] == 18
    (entry,) = cost_records.read(open_storage(str(undisturbed / "run")))
    assert entry.key == "records/synthesize-contrastive.json"
    assert (entry.images, entry.device) == (18, "cpu")
    assert entry.bytes == sum(receipt.bytes for receipt in version.receipts())
    assert 1 <= entry.workers <= os.cpu_count()
    assert 0 < entry.worker_seconds < entry.seconds * entry.workers


@pytest.mark.faults
@pytest.mark.timeout(700)
def test_killed_at_any_moment_it_resumes_to_the_same_bytes(
    undisturbed: Path, tmp_path: Path, two_cpus: None
) -> None:
    """Once among the prompts and once among the shards."""
    manifest = write(tmp_path)
    moments = random.Random(0)
    for kind in ("prompts", "receipts"):
        made, after = f"run/data/*/versions/*/{kind}/*", moments.uniform(0.0, 0.5)
        kill_when(lambda made=made: any(tmp_path.glob(made)), "synthesize", manifest, after=after)
    found = run_here("synthesize", manifest)
    assert found.returncode == 0, found.stderr
    assert contents(tmp_path / "run/data") == contents(undisturbed / "run/data")


def test_a_run_shows_its_shards_on_tensorboard(undisturbed: Path) -> None:
    events = EventAccumulator(str(undisturbed / "run/tensorboard/synthesis-contrastive"))
    events.Reload()
    assert len(events.Scalars("loss")) == 9
    assert [event.step for event in events.Scalars("confidence")] == list(range(2, 19, 2))
    assert set(events.Tags()["images"]) == {"samples/dog", "samples/house", "samples/car"}


def test_a_finished_run_is_not_made_again(
    undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is a cluster started or joined for it: here none answers."""
    before = contents(undisturbed / "run")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.2:1")
    found = run_here("synthesize", undisturbed / "manifest.yaml")
    assert found.returncode == 0, found.stderr
    assert contents(undisturbed / "run") == before


@pytest.mark.heavy
def test_another_manifest_does_not_resume_unfinished_work(tmp_path: Path) -> None:
    manifest = write(tmp_path)
    version = tmp_path / "run/data/contrastive/versions/0123456789abcdef"
    version.mkdir(parents=True)
    (version / "identity.json").write_text('{"generator.vqgan.steps": 99}')
    line = refusal("synthesize", manifest)
    assert "generator.vqgan.steps: 99 there, 8 here" in line
    assert "--abandon" in line


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("classes=[dog, '&nbsp;', cat]", "classes: "),
        ("synthesis.image_size=60", "synthesis.image_size: must be a multiple"),
        ("teacher.weights=/nowhere.pt", "teacher.weights: "),
        ("generator.vqgan.weights=/nowhere.ckpt", "generator.vqgan.weights: "),
        ("synthesis.images_per_class=2000000000", "storage.root: "),
        ("prompts.template='{class} " + "very " * 30 + "{style}'", "prompts.template: "),
    ],
)
def test_bad_input_is_one_line_before_any_work(tmp_path: Path, override: str, message: str) -> None:
    assert refusal("synthesize", write(tmp_path), "--set", override).startswith(message)
    assert not (tmp_path / "run" / "data").exists()


@pytest.mark.heavy
def test_the_plan_and_the_resolved_manifest_are_shown_without_work(tmp_path: Path) -> None:
    manifest = write(tmp_path)
    planned = plan("synthesize", manifest)
    assert (planned["tasks"], planned["images"], planned["optimisation_steps"]) == (9, 18, 144)
    assert planned["sampling_steps"] == 0
    assert planned["bytes_at_most"] > 18 * 64 * 64 * 3
    printed = run_here("synthesize", manifest, "--print-manifest", "--set", "seed=5").stdout
    assert yaml.safe_load(printed)["seed"] == 5
    assert not (tmp_path / "run").exists()
