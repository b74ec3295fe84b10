"""The job on the bundled set with a tiny architecture, as a user runs it."""

import shutil
import subprocess
from pathlib import Path

import pytest
import safetensors.torch
from PIL import Image
from pydantic import TypeAdapter

from dfkd.config.distillation import Distillation
from dfkd.config.manifest import Manifest
from dfkd.distillation.student_store import locate_student
from dfkd.evaluation.scoring import evaluate
from dfkd.lab.few_shot.results import KEY, FewShotResults
from dfkd.models.student import build, card, save_student
from dfkd.storage.local import open_storage
from tests.helpers import jobs
from tests.helpers.jobs import contents, last_error
from tests.helpers.tiny_version import publish, write_manifest

CLASSES = ("clock", "book", "camera")
CURVES = ("untouched", "student", "library", "scratch")


OPTIONS = (
    *("--domains", "neon,chalk", "--shots", "1,4", "--seeds", "0,1", "--epochs", "1"),
    *("--learning-rate", "0.001", "--threads", "1"),
)


def fewshot(manifest: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The job in this process; a later option replaces one of `OPTIONS`."""
    return jobs.run_here("fewshot", manifest, *OPTIONS, *words)


def write(folder: Path) -> Path:
    """A manifest of a run with a published version, finished students and library weights."""
    library = folder / "library.safetensors"
    plain = Distillation(student="timm:test_resnet", weights="none", warmup_epochs=0)
    safetensors.torch.save_file(build(plain, 3, 32, seed=9).backbone.state_dict(), library)
    path = write_manifest(
        folder,
        classes=list(CLASSES),
        distillation={"seeds": [0, 1], "weights": str(library)},
    )
    manifest = Manifest.read(path)
    config = manifest.distillation
    publish(manifest)
    for seed in config.seeds:
        student = build(plain, 3, 32, seed).eval()
        save_student(
            locate_student(manifest, "vanilla", seed).storage, student, card(config, CLASSES, 32)
        )
    return path


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest whose run has students and nothing else; tests copy it."""
    return write(tmp_path_factory.mktemp("prepared"))


@pytest.fixture
def manifest(prepared: Path, tmp_path: Path) -> Path:
    """A run of a test's own."""
    return copied(prepared, tmp_path)


def copied(prepared: Path, folder: Path) -> Path:
    shutil.copytree(prepared.parent / "run", folder / "run")
    path = folder / "manifest.yaml"
    path.write_text(prepared.read_text().replace(f"root: {prepared.parent}", f"root: {folder}"))
    return path


@pytest.fixture(scope="module")
def undisturbed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never killed, by the job as a process."""
    path = copied(prepared, tmp_path_factory.mktemp("undisturbed"))
    done = jobs.run("fewshot", path, *OPTIONS)
    assert done.returncode == 0, done.stderr
    (path.parent / "stdout").write_text(done.stdout)
    return path


def results(manifest: Path) -> FewShotResults:
    stored = open_storage(Manifest.read(manifest).storage.root).get(KEY)
    return TypeAdapter(FewShotResults).validate_json(stored)


def cells(manifest: Path) -> set[str]:
    return {path.name for path in (manifest.parent / "run/fewshot/cells").glob("*")}


def test_a_run_leaves_results_table_and_curves(undisturbed: Path) -> None:
    folder = undisturbed.parent / "run" / "fewshot"
    *table, drawn, last = (undisturbed.parent / "stdout").read_text().splitlines()
    assert last == f"wrote {folder / 'results.json'}"
    assert drawn == f"curves {folder / 'curves.svg'}"
    starts = [line.split()[1] for line in table if line.startswith("|")]
    assert starts[2:7] == [*CURVES, "gain"]
    found = results(undisturbed)
    assert {row.domain for row in found.rows} == {"neon", "chalk"}
    assert len(found.rows) == len(cells(undisturbed)) == 2 * 2 * (3 + 2 + 2 + 2)
    assert "## neon" in (folder / "table.md").read_text()
    assert (folder / "curves.svg").read_text().startswith("<svg")
    with Image.open(folder / "curves.png") as image:
        assert image.format == "PNG"


def test_all_starts_learn_from_the_same_images_and_the_rest_is_tested(undisturbed: Path) -> None:
    """The bundled set has 20 images of each of the three classes in a domain."""
    rows = [row for row in results(undisturbed).rows if row.domain == "neon"]
    assert {row.trained for row in rows if row.shots == 0} == {(0, 0, 0)}
    assert {row.tested for row in rows if row.shots == 0} == {(20, 20, 20)}
    assert {(row.trained, row.tested) for row in rows if row.shots == 1} == {
        ((1, 1, 1), (19, 19, 19))
    }
    assert {(row.trained, row.tested) for row in rows if row.shots == 4} == {
        ((4, 4, 4), (16, 16, 16))
    }
    assert {row.curve for row in rows if row.shots == 4} == set(CURVES)


def test_untouched_is_each_student_as_it_was_evaluated(undisturbed: Path) -> None:
    manifest = Manifest.read(undisturbed, ("evaluation.models=student",))
    scored = {
        (row["seed"], row["domain"]): row["accuracy"]
        for row in evaluate(manifest, threads=1, folder="scored").results["rows"]
    }
    left = {
        (row.seed, row.domain): row.accuracy for row in results(undisturbed).rows if not row.shots
    }
    assert left == {key: scored[key] for key in left}


def test_a_training_too_short_to_change_an_answer_has_the_untouched_accuracy(
    manifest: Path,
) -> None:
    """So both are of the same test images, and training starts from the student's own answers."""
    job = fewshot(manifest, "--learning-rate", "1e-12", "--starts", "student")
    assert job.returncode == 0, job.stderr
    rows = {(r.curve, r.domain, r.shots, r.seed): r for r in results(manifest).rows if r.shots}
    assert len(rows) == 2 * 2 * 2 * 2
    for (curve, *about), row in rows.items():
        assert row.right == rows[("untouched", *about)].right, curve  # type: ignore[index]


def test_the_same_command_again_trains_nothing_and_changes_no_byte(
    undisturbed: Path, tmp_path: Path
) -> None:
    path = copied(undisturbed, tmp_path)
    before = contents(tmp_path / "run")
    assert fewshot(path).returncode == 0
    assert contents(tmp_path / "run") == before
    for cell in (tmp_path / "run/fewshot/cells").glob("scratch-k1-s0-*"):
        cell.write_text("[0, 0, 0]")
    assert fewshot(path).returncode == 0
    read = [
        row for row in results(path).rows if (row.curve, row.shots, row.seed) == ("scratch", 1, 0)
    ]
    assert [row.accuracy for row in read] == [0, 0]


@pytest.mark.faults
def test_a_killed_run_resumes_to_the_same_bytes(
    prepared: Path, undisturbed: Path, tmp_path: Path
) -> None:
    path, folder = copied(prepared, tmp_path), tmp_path / "run/fewshot"
    jobs.kill_when(lambda: len(cells(path)) >= 5, "fewshot", path, *OPTIONS)
    assert 5 <= len(cells(path)) < 36
    assert not (folder / "results.json").exists()
    done = fewshot(path)
    assert done.returncode == 0, done.stderr
    assert contents(folder) == contents(undisturbed.parent / "run/fewshot")


def test_what_changes_a_training_makes_it_anew_and_nothing_else_does(
    undisturbed: Path, tmp_path: Path
) -> None:
    path = copied(undisturbed, tmp_path)
    before = cells(path)
    for option in ("--seeds=1", "--shots=4", "--starts=scratch"):
        assert fewshot(path, option).returncode == 0
        assert cells(path) == before
    for option in ("--learning-rate=0.01", "--epochs=2"):
        fewshot(path, option, "--shots=1")
        made = {name.split("-")[0] for name in cells(path) - before}
        assert made == {"student", "library", "scratch"}
        before = cells(path)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--domains=neon,photo", ["--domains", "'photo'", "chalk"]),
        ("--domains=neon,neon", ["--domains", "once"]),
        ("--starts=student,chance", ["starts.1", "'chance'"]),
        ("--starts=", ["starts", "1 or more"]),
        ("--shots=1,0", ["shots.1", "equal to 1"]),
        ("--shots=2,2", ["--shots", "once"]),
        ("--seeds=0,0", ["--seeds", "once"]),
        ("--learning-rate=0", ["learning_rate", "greater than 0"]),
        ("--epochs=0", ["epochs", "equal to 1"]),
        ("--set=distillation.weights=none", ["--starts", "library"]),
        ("--set=distillation.seeds=[0, 7]", ["--starts", "seed 7", "dfkd distill"]),
        ("--set=distillation.student=resnet18", ["--starts", "dfkd distill"]),
        ("--set=evaluation.data=/nowhere", ["evaluation.data", "/nowhere"]),
        ("--set=prompts.method=mix", ["storage.root", "mix", "dfkd synthesize"]),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(
    manifest: Path, option: str, words: list[str]
) -> None:
    line = jobs.refusal("fewshot", manifest, *OPTIONS, option)
    assert all(word in line for word in words), line
    assert not cells(manifest)


def paint(manifest: Path, *images: int) -> Path:
    """Evaluation data of one domain with so many images of each class."""
    data = manifest.parent / "data"
    for number, (name, count) in enumerate(zip(CLASSES, images, strict=True)):
        (data / "flat" / name).mkdir(parents=True)
        for image in range(count):
            picture = Image.new("RGB", (8, 8), (80 * number, 9 * image, 0))
            picture.save(data / "flat" / name / f"{image}.png")
    return data


def test_a_domain_in_which_nothing_can_be_told_apart_is_refused(manifest: Path) -> None:
    words = [f"--set=evaluation.data={paint(manifest, 3, 1, 1)}"]
    line = jobs.refusal("fewshot", manifest, *words)
    assert "--domains: a domain to train on needs two classes" in line
    assert "'flat'" in line


def test_an_unreadable_image_ends_partial_with_everything_else_written(manifest: Path) -> None:
    data = paint(manifest, 3, 3, 3)
    (data / "flat" / "book" / "1.png").write_bytes(b"torn")
    options = (f"--set=evaluation.data={data}", "--domains=", "--starts=student")
    job = fewshot(manifest, *options)
    assert job.returncode == 3
    assert "book/1.png" in last_error(job)
    assert job.stdout.splitlines()[-1].startswith("wrote ")
    found = results(manifest)
    assert found.rows[0].tested == (3, 2, 3)
    assert len(found.data.unreadable) == 1
    assert found.data.notes == (
        "the layout is domain/class folders",
        "domain flat: too few images for 4 shots in 3 of 3 classes, 3 of clock; "
        "all but one are trained on",
    )


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{}",
        b"[0, 0]",
        b"[99, 0, 0]",
    ],
)
def test_a_damaged_cell_is_named(undisturbed: Path, tmp_path: Path, damage: bytes) -> None:
    path = copied(undisturbed, tmp_path)
    cell = next((tmp_path / "run/fewshot/cells").glob("scratch-k1-s0-*"))
    cell.write_bytes(damage)
    job = fewshot(path)
    assert job.returncode == 1
    assert str(cell) in last_error(job)
    cell.unlink()
    assert fewshot(path).returncode == 0


def test_a_dry_run_says_what_would_be_trained(manifest: Path) -> None:
    plan = jobs.plan("fewshot", manifest, *OPTIONS)
    assert plan["trainings"] == 2 * 2 * 2 * 3
    assert (plan["domains"], plan["images"]) == (["chalk", "neon"], 60 + 60)
    assert not (manifest.parent / "run/fewshot").exists()
    words = ("--dry-run", "--set", "distillation.weights=/nowhere.pth")
    assert "distillation.weights" in jobs.refusal("fewshot", manifest, *words)
