"""The job on a small run: a teacher of random weights, and students that know three colours."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pytest
import safetensors.torch
import torch
from PIL import Image

from dfkd.config.manifest import Manifest
from dfkd.config.methods import Method
from dfkd.distillation.student_store import locate_student
from dfkd.evaluation.results import validate_results
from dfkd.models import teacher_architecture
from dfkd.models.student import Student, build, card, save_student
from tests.helpers import jobs
from tests.helpers.tiny_version import CLASSES, publish, write_manifest

PURE = {"red": (200, 60, 60), "green": (60, 200, 60), "blue": (60, 60, 200)}
TOWERS = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
}


def evaluate(manifest: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The job in this process."""
    return jobs.run_here("evaluate", manifest, "--threads", "1", *options)


def write_teacher(folder: Path) -> dict[str, object]:
    config, weights = folder / "teacher.json", folder / "teacher.safetensors"
    config.write_text(json.dumps(TOWERS))
    model = teacher_architecture.build(teacher_architecture.read_architecture(str(config)))
    safetensors.torch.save_file(model.state_dict(), weights)
    return {"model": str(config), "weights": str(weights)}


def paint(root: Path, domain: str, name: str, count: int = 2) -> None:
    (root / domain / name).mkdir(parents=True)
    for index in range(count):
        Image.new("RGB", (40, 32), PURE[name]).save(root / domain / name / f"{index}.png")


def student_of_colours(manifest: Manifest, seed: int, swap: bool = False) -> Student:
    """A random backbone whose head is solved: each colour is nearest its class, or red to green."""
    student = build(manifest.distillation, 3, 32, seed).eval()
    colours = torch.tensor([PURE[name] for name in CLASSES]) / 255
    wanted = torch.full((3, 3), 1.2) - 0.9 * torch.eye(3)[[1, 0, 2] if swap else [0, 1, 2]]
    with torch.inference_mode():
        pixels = colours[:, :, None, None].expand(3, 3, 32, 32)
        features = student.backbone((pixels - student.mean) / student.std)
        student.head.bias.zero_()
        student.head.weight.copy_((torch.linalg.pinv(features) @ wanted).T)
    return student


def finish(manifest: Manifest, method: Method, seed: int, swap: bool = False) -> None:
    meta = card(manifest.distillation, manifest.classes, 32)
    target = locate_student(manifest, method, seed).storage
    assert save_student(target, student_of_colours(manifest, seed, swap), meta)


def prepare(
    folder: Path,
    seeds: Sequence[int],
    swapped: tuple[Method, int],
    digests: Mapping[str, str] = MappingProxyType({}),
) -> Manifest:
    """A run of vanilla and mix; the student `swapped` takes red for green and back."""
    for name in CLASSES:
        paint(folder / "data", "flat", name)
    paint(folder / "data", "ink", "red", count=4)
    path = write_manifest(
        folder,
        teacher=write_teacher(folder),
        prompts={"method": ["vanilla", "mix"]},
        distillation={"seeds": list(seeds)},
        evaluation={"data": str(folder / "data")},
    )
    manifest = Manifest.read(path)
    for method in manifest.prompts.method:
        publish(manifest, method, digests)
        for seed in manifest.distillation.seeds:
            finish(manifest, method, seed, swap=(method, seed) == swapped)
    return manifest


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest file of a run of two seeds."""
    folder = tmp_path_factory.mktemp("run")
    prepare(folder, seeds=[0, 1], swapped=("vanilla", 1))
    return folder / "manifest.yaml"


def test_a_run_is_scored_and_written(run: Path) -> None:
    job = evaluate(run)
    root = run.parent / "run"
    assert job.returncode == 0, job.stderr
    assert job.stdout.splitlines()[-1] == f"wrote {root / 'results.json'}"
    found = json.loads((root / "results.json").read_text())
    validate_results(found)
    scores = {
        (row["model"], row["method"], row["seed"], row["domain"]): row["accuracy"]
        for row in found["rows"]
    }
    assert scores.keys() == {
        *(("teacher", "zero-shot", 0, domain) for domain in ("flat", "ink")),
        *(
            ("student", method, seed, domain)
            for method in ("vanilla", "mix")
            for seed in (0, 1)
            for domain in ("flat", "ink")
        ),
    }
    assert scores["student", "mix", 0, "flat"] == scores["student", "mix", 1, "ink"] == 1.0
    assert scores["student", "vanilla", 0, "ink"] == 1.0
    assert scores["student", "vanilla", 1, "flat"] == pytest.approx(1 / 3)
    assert scores["student", "vanilla", 1, "ink"] == 0.0
    assert [row["images"] for row in found["rows"]] == [6, 4] * 5
    heads = [line.split() for line in job.stdout.splitlines()][1:3]
    assert heads[0] == ["teacher", "student", "student"]
    assert heads[1] == ["accuracy,", "%", "zero-shot", "vanilla", "mix", "images"]
    assert "note: domain ink has no image of blue, green" in job.stdout
    with Image.open(root / "contact-sheet.png") as sheet:
        assert sheet.width > 2 * 8 * 32


def test_means_over_classes_are_everywhere_where_they_are_asked_for(
    run: Path, tmp_path: Path
) -> None:
    """The student of seed 1 takes red for green and back: right in blue, 1 of 6 images."""
    for name, count in zip(CLASSES, (4, 1, 1), strict=True):
        paint(tmp_path, "odd", name, count)
        paint(tmp_path, "flat", name, 1)
    settings = {
        "data": tmp_path, "models": "student", "average": "classes", "domains": "[odd, flat]",
    }  # fmt: skip
    options = [f"--set=evaluation.{key}={value}" for key, value in settings.items()]
    job = evaluate(run, *options)
    assert job.returncode == 0, job.stderr
    found = json.loads((run.parent / "run" / "results.json").read_text())
    validate_results(found)
    assert found["average"] == "classes"
    assert found["data"]["domains"] == ["odd", "flat"]
    (worse,) = (r for r in found["rows"] if r["accuracy"] < 0.2)
    assert (worse["domain"], worse["accuracy"]) == ("odd", pytest.approx(1 / 6))
    lines = [line.split() for line in job.stdout.splitlines()]
    assert ["class", "mean,", "%", "vanilla", "mix", "images"] in lines
    assert ["odd", "66.7", "100.0", "6"] in lines
    assert ["±", "over", "seeds", "47.1", "0.0"] in lines
    assert "note: the layout is domain/class folders" in job.stdout


def test_nothing_is_scored_without_labelled_images(run: Path) -> None:
    line = jobs.refusal("evaluate", run, "--set=evaluation.data=none")
    assert line.startswith("evaluation.data: must be labelled images of the classes")


def test_a_text_only_classifier_of_each_seed_is_scored(run: Path, tmp_path: Path) -> None:
    common = (
        "--set=evaluation.models=[text-only, teacher]",
        "--set=candidates.styles=2",
        f"--set=storage.root={tmp_path}",
    )
    job = evaluate(run, *common)
    assert job.returncode == 0, job.stderr
    found = json.loads((tmp_path / "results.json").read_text())
    validate_results(found)
    rows = [(row["model"], row["method"], row["seed"]) for row in found["rows"][::2]]
    classifiers = [("text-only", "classifier", 0), ("text-only", "classifier", 1)]
    assert rows == [("teacher", "zero-shot", 0), *classifiers]
    assert found["parameters"]["text-only"] == found["parameters"]["teacher"]
    assert ["teacher", "text-only"] in [line.split() for line in job.stdout.splitlines()]
    before = (tmp_path / "results.json").read_bytes()
    assert evaluate(run, *common).returncode == 0
    assert (tmp_path / "results.json").read_bytes() == before


def test_a_missing_student_is_named_with_the_job_that_trains_it(run: Path) -> None:
    line = jobs.refusal("evaluate", run, "--set", "distillation.seeds=[0, 5]")
    assert "method vanilla seed 5" in line
    assert "dfkd distill" in line


def test_a_dry_run_says_what_would_be_scored(run: Path) -> None:
    job = jobs.run("evaluate", run, "--dry-run")  # as a process: the command line is the same job
    assert job.returncode == 0, job.stderr
    plan = json.loads(job.stdout)
    assert (plan["domains"], plan["images"], plan["students"]) == (["flat", "ink"], 10, 4)
    assert plan["teacher"] == 1


def test_a_dry_run_refuses_a_tower_that_the_run_would_refuse(run: Path) -> None:
    towers = "--set=candidates.towers=[{model: RN50, weights: nowhere.pt}]"
    options = ("--set=evaluation.models=[text-only]", towers, "--dry-run")
    assert jobs.refusal("evaluate", run, *options).startswith("candidates.towers.0.weights: ")


def test_an_unreadable_image_ends_partial_with_everything_else_written(
    run: Path, tmp_path: Path
) -> None:
    """Scored by the teacher alone, which needs no student."""
    for name in CLASSES:
        paint(tmp_path / "data", "flat", name)
    (tmp_path / "data" / "flat" / "red" / "0.png").write_bytes(b"torn")
    options = ("--set", "evaluation.models=teacher", "--set", f"storage.root={tmp_path}")
    job = evaluate(run, *options, "--set", f"evaluation.data={tmp_path / 'data'}")
    assert job.returncode == 3
    assert job.stdout.splitlines()[-1] == f"wrote {tmp_path / 'results.json'}"
    line = job.stderr.strip().splitlines()[-1]
    assert "1 images could not be read" in line
    assert "red/0.png" in line
    found = json.loads((tmp_path / "results.json").read_text())
    assert {row["model"] for row in found["rows"]} == {"teacher"}
    assert not (tmp_path / "contact-sheet.png").exists()
    assert found["rows"][0]["images"] == 5
    assert len(found["data"]["unreadable"]) == 1
