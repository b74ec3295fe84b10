"""Runs whose labels come from other models than the teacher, up to what is shipped."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import dfkd
from dfkd.config.manifest import Manifest
from dfkd.errors import ManifestError
from dfkd.export.labels import write_labels
from dfkd.export.predict import Predictor
from dfkd.models.labeller import Labeller, file_hashes
from tests.helpers import jobs
from tests.helpers.hub_families import write_family
from tests.helpers.tiny_models import RESNET, model_config, write_teacher
from tests.helpers.tiny_version import CLASSES, publish, write_manifest

pytestmark = pytest.mark.heavy
COLOURS = {"red": (230, 60, 60), "green": (60, 230, 60), "blue": (60, 60, 230)}


def section(folder: Path, **keys: str) -> dict[str, Any]:
    config = write_teacher(folder, model_config(RESNET))
    return {"model": config.model, "weights": config.weights, **keys}


def manifest_of(folder: Path, labeller: Any, **distillation: Any) -> Manifest:
    """A manifest with a published version and images to score."""
    for name in CLASSES:
        (folder / "data" / "flat" / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 32), COLOURS[name]).save(folder / "data" / "flat" / name / "0.png")
    teacher = section(folder / "teacher")
    path = write_manifest(
        folder,
        classes=[{"name": "red", "prompt": "a red brush"}, "green", "blue"],
        teacher=teacher,
        distillation={"epochs": 1, "labeller": labeller, **distillation},
        evaluation={"data": str(folder / "data")},
    )
    manifest = Manifest.read(path)
    publish(manifest, digests=file_hashes(manifest.teacher))
    return manifest


def test_two_labellers_are_named_wherever_their_student_is(tmp_path: Path) -> None:
    other = section(tmp_path / "other", template="a {class}")
    manifest = manifest_of(tmp_path, ["teacher", other], augmentation=["flip"])
    dfkd.distill(manifest)
    evaluated = dfkd.evaluate(manifest)
    assert evaluated.results["labeller"] == ["teacher", other["model"]]
    content = json.loads(Path(dfkd.export_candidates(manifest)).read_text())
    student, teacher, tower = (
        next(each for each in content["candidates"] if each["name"] == name)
        for name in ("timm:test_resnet", "teacher", other["model"])
    )
    assert (student["kind"], teacher["kind"], tower["kind"]) == ("student", "tower", "tower")
    root = Path(manifest.storage.root)
    facts = json.loads((root / student["folder"] / "candidate.json").read_text())
    expected = [
        (each.model, each.template, file_hashes(each)["teacher.weights"])
        for each in manifest.labellers.values()
    ]
    assert [tuple(each.values()) for each in facts["labellers"]] == expected
    assert expected[1][2] in (root / student["folder"] / "README.md").read_text()
    page = Path(dfkd.write_report(manifest)).read_text()
    assert "labelled by" in page
    assert other["model"] in page
    (moments,) = (root / "labels").iterdir()
    assert moments.name.endswith(".safetensors")
    # Other labels are another student; the first one stays.
    alone = manifest.with_values(distillation={"labeller": ("teacher",)})
    (finished,) = dfkd.distill(alone)
    assert not finished.reused
    assert dfkd.distill(manifest)[0].reused


def test_images_that_do_not_change_are_labelled_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = manifest_of(tmp_path, section(tmp_path / "other"), epochs=4, augmentation=[])
    seen = []
    encode = Labeller.encode_image

    def counted(self: Labeller, pixels: Tensor, *rest: Any) -> Tensor:
        seen.append(len(pixels))
        return encode(self, pixels, *rest)

    monkeypatch.setattr(Labeller, "encode_image", counted)
    (finished,) = dfkd.distill(manifest)
    card = json.loads(finished.student.storage.get("student.json"))
    # Once to standardise, and once in all four epochs; an epoch shows all 24 images.
    assert card["steps"] == 4 * 4
    assert sum(seen) == 2 * 24


def test_a_labeller_with_the_teachers_files_makes_the_teachers_student(tmp_path: Path) -> None:
    own = section(tmp_path / "teacher")
    # Without standardisation, for which the version has mean and spread of made-up distances.
    manifest = manifest_of(tmp_path, own, augmentation=["flip"], standardise=False)
    teacher = manifest.with_values(distillation={"labeller": ("teacher",)})
    pictures = [Image.new("RGB", (32, 32), colour) for colour in COLOURS.values()]
    first, second = (
        dfkd.load_student(dfkd.distill(each)[0], torch.device("cpu")).distances(pictures)
        for each in (manifest, teacher)
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize("family", ["siglip2", "clipa"])
def test_a_model_with_a_tokenizer_of_a_hub_labels_embeddings_and_names_other_classes(
    tmp_path: Path, family: str
) -> None:
    config = write_family(tmp_path / "other", family)
    labeller = {"model": config.model, "weights": config.weights, "template": "{class}"}
    manifest = manifest_of(tmp_path, labeller, target="both", augmentation=[])
    dfkd.distill(manifest)
    content = json.loads(Path(dfkd.export_candidates(manifest)).read_text())
    folder = Path(manifest.storage.root, content["candidates"][-1]["folder"])
    labels = Path(write_labels(manifest, ("rose", "leaf")))
    assert Predictor(folder, False, labels).labels == ("rose", "leaf")
    # The vectors of another model mean nothing to the student.
    written = json.loads(labels.read_text())
    labels.write_text(json.dumps(written | {"labeller": "0" * 64}))
    with pytest.raises(ManifestError, match="must be of the student's own labeller"):
        Predictor(folder, False, labels)


def test_the_plan_tells_what_labels_cost(tmp_path: Path) -> None:
    manifest_of(tmp_path, ["teacher", section(tmp_path / "other")], augmentation=["flip"])
    plan = jobs.run_here("distill", tmp_path / "manifest.yaml", "--dry-run")
    told = json.loads(plan.stdout)["labellers"]
    assert list(told) == ["teacher", str(tmp_path / "other" / "model.json")]
    for each in told.values():
        assert each["parameters"] > 0
        assert each["gigabytes"] == pytest.approx(4e-9 * each["parameters"], rel=0.01)
        assert each["tflop_per_step"] > 0
        assert each["seconds_per_step_at_least"] > 0
