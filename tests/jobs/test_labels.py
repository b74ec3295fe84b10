"""Classes that nobody trained: scored by the evaluation, and named by the student taken home."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from dfkd.config.manifest import Manifest
from dfkd.distillation.embedding import encode_classes
from dfkd.distillation.student_store import locate_student
from dfkd.evaluation.scoring import evaluate
from dfkd.export.candidates import write_candidates
from dfkd.export.folder import synthesised_images
from dfkd.export.model_card import EMBEDDING_EXAMPLE
from dfkd.export.predict import Predictor, main
from dfkd.models.labeller import file_hashes
from dfkd.models.student import build, card, load_student, save_student
from dfkd.utils.images import USUAL
from tests.helpers import jobs
from tests.helpers.tiny_version import CLASSES, EMBEDDING, publish, write_manifest
from tests.jobs.test_evaluate import PURE, write_teacher

OTHERS = ("rose", "leaf", "sky")
NAMES = ",".join(OTHERS)
pytestmark = pytest.mark.heavy


def put_student(manifest: Manifest) -> None:
    """A student that gives each colour the text embedding of the class in `OTHERS`."""
    student = build(manifest.distillation, EMBEDDING, 32, seed=0).eval()
    colours = torch.tensor(list(PURE.values())) / 255
    with torch.inference_mode():
        features = student.features(colours[:, :, None, None].expand(3, 3, 32, 32))
        student.head.bias.zero_()
        texts = 0.9 * encode_classes(manifest, OTHERS)
        student.head.weight.copy_((torch.linalg.pinv(features) @ texts).T)
    own = encode_classes(manifest, manifest.classes)
    meta = card(manifest.distillation, manifest.classes, 32, EMBEDDING)
    location = locate_student(manifest, "vanilla", 0)
    assert save_student(location.storage, student.with_classes(own), meta)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of a finished run whose data show the run's classes, and others."""
    folder = tmp_path_factory.mktemp("run")
    for names in (CLASSES, OTHERS):
        for name, colour in zip(names, PURE.values(), strict=True):
            (folder / "data" / "flat" / name).mkdir(parents=True)
            Image.new("RGB", (40, 32), colour).save(folder / "data" / "flat" / name / "0.png")
    path = write_manifest(
        folder,
        teacher=write_teacher(folder),
        distillation={"target": "embedding"},
        evaluation={"data": str(folder / "data")},
    )
    manifest = Manifest.read(path)
    publish(manifest, digests=file_hashes(manifest.teacher))
    put_student(manifest)
    evaluate(manifest, 1)
    write_candidates(manifest, threads=1)
    return path


@pytest.fixture(scope="module")
def labels(run: Path) -> Path:
    """The labels that the job writes for other classes."""
    job = jobs.run_here("labels", run, "--classes", ", ".join(OTHERS))
    assert job.returncode == 0, job.stderr
    return Path(job.stdout.removeprefix("wrote ").strip())


def taken_home(run: Path) -> Path:
    return run.parent / "run" / "candidates" / "timm-test_resnet"


def test_other_classes_are_scored_without_training(run: Path) -> None:
    root = run.parent / "run"
    own = (root / "results.json").read_bytes()
    job = jobs.run_here("evaluate", run, "--classes", NAMES, "--threads", "1")
    assert job.returncode == 0, job.stderr
    assert job.stdout.splitlines()[-1] == f"wrote {root / 'other-classes' / 'results.json'}"
    found = json.loads((root / "other-classes" / "results.json").read_text())
    assert found["classes"] == list(OTHERS)
    rows = {row["model"]: row for row in found["rows"]}
    assert rows.keys() == {"teacher", "student"}
    assert (rows["student"]["accuracy"], rows["student"]["images"]) == (1.0, 3)
    assert (root / "results.json").read_bytes() == own
    assert jobs.plan("evaluate", run, "--classes", NAMES)["images"] == 3


@pytest.mark.parametrize("job", ["evaluate", "labels"])
def test_what_cannot_be_named_is_refused_in_one_line(job: str, run: Path, tmp_path: Path) -> None:
    own_classes_only = ("--set", "distillation.target=distances")
    manifest = Manifest.read(run, own_classes_only[1:])
    location = locate_student(manifest, "vanilla", 0)
    if not location.finished:
        student = build(manifest.distillation, 3, 32, seed=0)
        save_student(location.storage, student, card(manifest.distillation, CLASSES, 32))
    teacher = tmp_path / "other.safetensors"
    weights = safetensors.torch.load_file(manifest.teacher.weights)
    safetensors.torch.save_file({key: 2 * value for key, value in weights.items()}, teacher)
    for options, message in (
        (("--classes", NAMES, *own_classes_only), "distillation.target: must be embedding"),
        (("--classes", "rose"), "classes: must be two or more"),
        (("--classes", "rose, rose"), "classes: "),
        (("--classes", NAMES, "--set", f"teacher.weights={teacher}"), "teacher.weights"),
    ):
        # A dry run does not read the teacher.
        dry = () if message == "teacher.weights" else ("--dry-run",)
        for more in {(), dry}:
            assert message in jobs.refusal(job, run, *options, *more)


def png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "png")
    return stream.getvalue()


def test_both_graphs_agree_with_the_student(run: Path) -> None:
    facts = json.loads((taken_home(run) / "candidate.json").read_text())
    check = facts["check"]
    assert check["images"] == 12
    assert check["model.onnx"]["max_difference"] < 1e-5
    location = locate_student(Manifest.read(run), "vanilla", 0)
    student, _ = load_student(location.storage)
    _, images = synthesised_images(location.version, 32, USUAL)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    expected = student(pixels).argmin(1).tolist()
    encoded = [png(image) for image in images]
    for name, int8 in (("model.onnx", False), ("model.int8.onnx", True)):
        predictor = Predictor(taken_home(run), int8=int8)
        nearest = [int(predictor.distances(image).argmin()) for image in encoded]
        assert check[name]["equal_predictions"] == np.equal(nearest, expected).mean()
    assert facts["student"]["embedding_dim"] == EMBEDDING
    rules = json.loads((taken_home(run) / "preprocess.json").read_text())
    assert (rules["output"]["name"], rules["output"]["shape"]) == ("embedding", ["N", EMBEDDING])


@pytest.mark.parametrize("other", [False, True])
def test_the_folder_names_its_classes_and_any_others(
    other: bool, run: Path, labels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = Manifest.read(run)
    student, _ = load_student(locate_student(manifest, "vanilla", 0).storage)
    if other:
        student = student.with_classes(encode_classes(manifest, OTHERS))
    predictor = Predictor(taken_home(run), labels=labels if other else None)
    assert predictor.labels == (OTHERS if other else CLASSES)
    for index, name in enumerate(OTHERS):
        picture = run.parent / "data" / "flat" / name / "0.png"
        colour = torch.tensor(list(PURE.values())[index]) / 255
        expected = student(colour[None, :, None, None].expand(1, 3, 32, 32))[0]
        found = predictor.distances(picture.read_bytes())
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
        options = ["--labels", str(labels)] if other else []
        assert main([str(taken_home(run)), str(picture), "--top", "1", *options]) == 0
        nearest = predictor.labels[int(expected.argmin())]
        assert capsys.readouterr().out.startswith(f"{picture}: {nearest} ")


def test_labels_of_another_kind_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = str(next((run.parent / "data").rglob("*.png")))
    for content, rule in (
        ('{"rose": [1, 0, 0, 0, 0, 0, 0, 0]}', "--labels: must be of the student's own labeller"),
        ('{"rose": [1.0], "leaf": "x"}', "--labels: must be a file that dfkd labels wrote"),
        ("{", "--labels: must be a file that dfkd labels wrote"),
    ):
        wrapped = f'{{"labeller": "0", "labels": {content}}}' if content != "{" else content
        (tmp_path / "labels.json").write_text(wrapped)
        options = ["--labels", str(tmp_path / "labels.json")]
        assert main([str(taken_home(run)), picture, *options]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert rule in err


def test_the_card_s_example_does_what_the_command_does(run: Path, tmp_path: Path) -> None:
    model_card = (taken_home(run) / "README.md").read_text()
    script = model_card.split("```python\n")[1].split("```")[0]
    assert script == EMBEDDING_EXAMPLE
    assert f"`embedding`, float32 [N, {EMBEDDING}]" in model_card
    picture = run.parent / "data" / "flat" / "leaf" / "0.png"
    for file in taken_home(run).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "picture.png").write_bytes(picture.read_bytes())
    hidden = "import sys; sys.modules.update(torch=None, dfkd=None, torchvision=None)\n"
    job = subprocess.run(
        [sys.executable, "-c", hidden + script], cwd=tmp_path, capture_output=True, text=True
    )
    assert job.returncode == 0, job.stderr
    chances = Predictor(tmp_path).probabilities(picture.read_bytes())
    found = {name: float(chance) for name, chance in map(str.split, job.stdout.splitlines())}
    assert found == {
        name: pytest.approx(chance, abs=6e-4) for name, chance in zip(CLASSES, chances, strict=True)
    }


def test_a_trained_student_knows_the_texts_of_its_classes(run: Path) -> None:
    options = ("--set", "distillation.seeds=3", "--set", "distillation.epochs=1")
    manifest = Manifest.read(run, options[1::2])
    assert jobs.run_here("distill", run, *options).returncode == 0
    location = locate_student(manifest, "vanilla", 3)
    student, meta = load_student(location.storage)
    assert (meta["target"], meta["embedding_dim"]) == ("embedding", EMBEDDING)
    own = encode_classes(manifest, manifest.classes)
    torch.testing.assert_close(student.texts, own)
