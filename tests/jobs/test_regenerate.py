"""Regeneration as a scheduler runs it: published, refused at the gate, a share made anew, swept."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ceph import missing
from dfkd.errors import Exit
from dfkd.evaluation.results import validate_results
from dfkd.operations import attempts
from dfkd.storage import lease
from dfkd.storage.local import open_storage
from tests.helpers.jobs import plan, refusal, run_here
from tests.helpers.own_ray import own_ray
from tests.helpers.published import published
from tests.helpers.small_manifest import vqgan
from tests.helpers.tiny_version import write_manifest

CLASSES = ("clock", "book", "key")


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The root of a run on a real S3 server, or in a directory where there is no server."""
    root = str(tmp_path / "run") if missing() else request.getfixturevalue("s3_root")
    # Its workers have the environment of this moment, which a shared Ray would lack.
    with own_ray():
        yield root


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """A manifest file, with two to four images a class to evaluate on."""
    noise = np.random.default_rng(0)
    for images, name in enumerate(CLASSES, start=2):
        for number in range(images):
            place = tmp_path / "data" / "photo" / name / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(place)
    return write_manifest(
        tmp_path,
        classes=list(CLASSES),
        synthesis={
            "images_per_class": 4, "shard_size": 2, "image_size": 64, "batch_size": 4,
            "views": 0,
        },
        generator=vqgan(steps=1),
        distillation={"epochs": 1},
        evaluation={"data": str(tmp_path / "data")},
        cluster={"workers": 1},
    )  # fmt: skip


def regenerate(
    manifest: Path, root: Path | str, *settings: str
) -> subprocess.CompletedProcess[str]:
    """The job in this process."""
    words = [f"--set={setting}" for setting in (f"storage.root={root}", *settings)]
    return run_here("regenerate", manifest, *words)


@pytest.mark.slow
@pytest.mark.s3
@pytest.mark.timeout(700)
def test_three_in_a_row(manifest: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Published; refused by the gate; a share made anew and accepted; the rest swept."""
    found = regenerate(manifest, place)
    assert found.returncode == Exit.DONE, found.stderr
    root = open_storage(place)
    first = published(place).id
    assert f"current: none -> {first}" in found.stdout
    assert "comparison.html" not in found.stdout
    assert found.stdout.splitlines()[-1] == f"wrote {root.location('report.html')}"
    results = root.get("results.json")

    with monkeypatch.context() as strict:
        strict.setattr(attempts, "MINIMUM_PER_CLASS", 5)
        found = regenerate(manifest, place, "regeneration.tolerance=1.0")
    assert found.returncode == Exit.PARTIAL
    line = found.stderr.strip().splitlines()[-1]
    assert "does not become current (images of each class, at least 5, got 4 of clock)" in line
    assert published(place).id == first
    assert root.get("results.json") == results
    refused = json.loads(root.get("regenerations/00000001/decision.json"))
    assert refused["current"] == first
    assert "refused" in root.get("regenerations/00000001/comparison.html").decode()

    some = ["regeneration.share=0.5", "regeneration.classes=[book]", "regeneration.tolerance=1.0"]
    some.append("evaluation.average=classes")
    found = regenerate(manifest, place, *some)
    assert found.returncode == Exit.DONE, found.stderr
    assert f"current: {first} -> " in found.stdout
    second = published(place)
    assert [r.version == first for r in second.receipts()].count(False) == 1
    assert second.facts["identity"]["salt"] == 2
    decision = json.loads(root.get("regenerations/00000002/decision.json"))
    assert decision["candidate"] == second.id
    for name, figure in (("candidate", "accuracy"), ("current", "current_accuracy")):
        scored = json.loads(root.get(f"regenerations/00000002/{name}/results.json"))
        validate_results(scored)
        (students,) = (line for line in scored["summary"] if line["model"] == "student")
        assert (scored["average"], students["mean"]) == ("classes", decision[figure])
    assert root.get("results.json") == root.get("regenerations/00000002/candidate/results.json")
    assert second.fingerprint in root.get("report.html").decode()

    sweep = (f"--set=storage.root={place}", "--keep=1", "--grace=0")
    planned = plan("clean", manifest, *sweep)
    assert {f"vanilla/{second.id}"} == planned["keep"].keys()
    gone = {key for removal in planned["remove"] for key in removal["objects"]}
    assert all(root.exists(key) for key in gone)
    found = run_here("clean", manifest, *sweep)
    assert found.returncode == Exit.DONE, found.stderr
    assert f"removed {len(gone)} objects, {planned['bytes']} bytes" in found.stdout
    assert not any(root.exists(key) for key in gone)
    assert published(place).id == second.id
    assert refused["candidate"] not in root.child("data/vanilla").folders("versions/")
    assert len(root.folders("students/")) == 1


def test_a_second_regeneration_is_refused_while_one_is_at_work(
    manifest: Path, tmp_path: Path
) -> None:
    root = open_storage(str(tmp_path / "run"))
    with lease.holding(root, "regenerate") as first:
        found = regenerate(manifest, tmp_path / "run")
    assert found.returncode == Exit.RETRY
    (line,) = found.stderr.strip().splitlines()
    assert line.startswith(f"error: lease regenerate: is held by {first.holder} until ")
    assert list(root.list("regenerations/")) == []


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        (
            "prompts.method=[vanilla, mix]",
            "prompts.method and synthesis.source: must make one",
        ),
        ("evaluation.models=teacher", "evaluation.models: must name student"),
        ("evaluation.data=none", "evaluation.data: must be labelled images to regenerate"),
        ("regeneration.classes=[owl]", "regeneration.classes: must be among classes"),
        ("regeneration.share=0", "regeneration.share"),
        ("distillation.batch_size=13", "distillation.batch_size: must not exceed the 12 images"),
        ("teacher.weights=nowhere.pt", "teacher.weights: must be an existing file"),
    ],
)
@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_what_cannot_be_regenerated_is_refused_at_once(
    manifest: Path, tmp_path: Path, setting: str, complaint: str, options: tuple[str, ...]
) -> None:
    assert complaint in refusal("regenerate", manifest, "--set", setting, *options)
    assert not (tmp_path / "run").exists()


def test_the_plan_makes_nothing(manifest: Path, tmp_path: Path) -> None:
    planned = plan("regenerate", manifest)
    assert (planned["salt"], planned["fresh_tasks"], planned["fresh_images"]) == (0, 6, 12)
    assert not (tmp_path / "run").exists()


def test_a_plan_counts_tasks_without_making_them(manifest: Path) -> None:
    """A zero too many must not fill the memory."""
    planned = plan("regenerate", manifest, "--set", f"synthesis.images_per_class={10**15}")
    assert planned["fresh_images"] == 3 * 10**15
