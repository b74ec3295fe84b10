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
from dfkd.export.choice import (
    Limits,
    point_of,
    points,
    read_candidates,
    read_shipped,
    ship,
)
from dfkd.operations import attempts
from dfkd.storage import lease
from dfkd.storage.local import open_storage
from dfkd.utils.strict_json import canonical
from tests.helpers.candidates import candidate, put_folders, tree
from tests.helpers.jobs import contents, last_error, plan, refusal, run_here
from tests.helpers.own_ray import own_ray
from tests.helpers.published import published
from tests.helpers.small_manifest import vqgan
from tests.helpers.tiny_version import write_manifest

CLASSES = ("clock", "book", "key")
SHIPPED = "timm:test_efficientnet"
"""The student that is shipped in int8; results are those of the first one."""


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
        distillation={"epochs": 1, "student": ["timm:test_resnet", SHIPPED]},
        candidates={"towers": []},
        evaluation={"data": str(tmp_path / "data"), "average": "classes"},
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
    """Published, shipped; refused by the gate; a share made anew and accepted; the rest swept."""
    found = regenerate(manifest, place)
    assert found.returncode == Exit.DONE, found.stderr
    root = open_storage(place)
    first = published(place).id
    assert f"current: none -> {first}" in found.stdout
    assert "comparison.html" not in found.stdout
    assert found.stdout.splitlines()[-1] == f"wrote {root.location('report.html')}"
    results = root.get("results.json")
    (old,) = (each for each in points(read_candidates(root)) if each.name == f"{SHIPPED} int8")
    ship(root, old, Limits(max_mb=1.0))
    file = root.get("shipped/model.int8.onnx")

    with monkeypatch.context() as strict:
        strict.setattr(attempts, "MINIMUM_PER_CLASS", 5)
        found = regenerate(manifest, place, "regeneration.tolerance=1.0")
    assert found.returncode == Exit.PARTIAL
    line = found.stderr.strip().splitlines()[-1]
    assert "does not become current (images of each class, at least 5, got 4 of clock)" in line
    assert published(place).id == first
    assert root.get("results.json") == results
    assert root.get("shipped/model.int8.onnx") == file
    refused = json.loads(root.get("regenerations/00000001/decision.json"))
    assert refused["current"] == first
    assert "refused" in root.get("regenerations/00000001/comparison.html").decode()

    some = ["regeneration.share=0.5", "regeneration.classes=[book]", "regeneration.tolerance=1.0"]
    found = regenerate(manifest, place, *some)
    assert found.returncode == Exit.DONE, found.stderr
    assert f"current: {first} -> " in found.stdout
    second = published(place)
    assert [r.version == first for r in second.receipts()].count(False) == 1
    assert second.facts["identity"]["salt"] == 2
    decision = json.loads(root.get("regenerations/00000002/decision.json"))
    assert decision["challenger"] == second.id
    for name in ("challenger", "current"):
        validate_results(json.loads(root.get(f"regenerations/00000002/{name}/results.json")))
    # What the gate has compared is the shipped file before and after.
    shipped = read_shipped(root)
    assert shipped is not None
    assert (shipped.candidate, shipped.precision, shipped.limits.max_mb) == (SHIPPED, "int8", 1.0)
    new = point_of(read_candidates(root), shipped)
    assert (decision["current_accuracy"], decision["accuracy"]) == (old.mean, new.mean)
    assert f"mean accuracy of {SHIPPED} int8, at most" in decision["rules"][0]["text"]
    assert f"shipped {SHIPPED} int8 {root.location('shipped')}" in found.stdout
    assert json.loads(root.get("shipped/candidate.json"))["data"]["version"] == second.id
    assert root.get("shipped/model.int8.onnx") != file
    assert root.get("results.json") == root.get("regenerations/00000002/challenger/results.json")
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
    assert refused["challenger"] not in root.child("data/vanilla").folders("versions/")
    assert len(root.folders("students/")) == 2


def test_a_second_regeneration_is_refused_while_one_is_at_work(
    manifest: Path, tmp_path: Path
) -> None:
    root = open_storage(str(tmp_path / "run"))
    with lease.holding(root, "regenerate") as first:
        found = regenerate(manifest, tmp_path / "run")
    assert found.returncode == Exit.RETRY
    line = last_error(found)
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


@pytest.mark.parametrize("name", ["teacher", "timm:test_vit"])
@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_what_new_images_do_not_change_is_not_compared(
    manifest: Path, tmp_path: Path, name: str, options: tuple[str, ...]
) -> None:
    """A tower, or a student that the manifest does not train."""
    content = tree(candidate(name, ([0.8], 3.2, 2.0), ([0.7], 1.9, 0.5)))
    root = open_storage(str(tmp_path / "run"))
    root.put("candidates.json", canonical(content))
    put_folders(tmp_path / "run", content)
    ship(root, points(read_candidates(root))[0], Limits())
    before = contents(tmp_path / "run")
    rule = f"distillation.student: must have {name}, which shipped/ holds"
    assert rule in refusal("regenerate", manifest, *options)
    assert contents(tmp_path / "run") == before


def test_the_plan_makes_nothing(manifest: Path, tmp_path: Path) -> None:
    planned = plan("regenerate", manifest)
    assert (planned["salt"], planned["fresh_tasks"], planned["fresh_images"]) == (0, 6, 12)
    assert not (tmp_path / "run").exists()


def test_a_plan_counts_tasks_without_making_them(manifest: Path) -> None:
    """A zero too many must not fill the memory."""
    planned = plan("regenerate", manifest, "--set", f"synthesis.images_per_class={10**15}")
    assert planned["fresh_images"] == 3 * 10**15
