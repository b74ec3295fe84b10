import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from dfkd.config.distillation import Distillation, Texts
from dfkd.config.manifest import Manifest, StorageConfig
from dfkd.distillation.student_names import TRAINING_ONLY_KEYS, student_name, student_names
from dfkd.distillation.student_store import (
    check_initial_weights,
    check_teacher,
    load_located,
    locate_student,
    locate_students,
)
from dfkd.errors import CorruptionError, ManifestError, WeightsError
from dfkd.models.labeller import file_hashes
from dfkd.models.student import build, card, save_student
from tests.helpers.tiny_models import GENERATOR, RESNET, TEACHER, model_config, write_teacher
from tests.helpers.tiny_version import publish, write_manifest

MANIFEST = Manifest(
    name="named",
    classes=("a", "b"),
    storage=StorageConfig(root="runs/named"),
    teacher=TEACHER,
    generator=GENERATOR,
)


def named(fingerprint: str = "f", seed: int = 0, **settings: Any) -> str:
    """The name of a student with some settings of distillation."""
    config = dataclasses.replace(MANIFEST.distillation, **settings)
    manifest = dataclasses.replace(MANIFEST, distillation=config)
    return student_name(manifest, fingerprint, "mix", seed)


@pytest.mark.parametrize(
    "change",
    [{"workers": 2}, {"checkpoint_epochs": 9}, {"seeds": (0, 1, 2)}],
)
def test_how_a_student_is_trained_does_not_rename_it(change: dict[str, Any]) -> None:
    assert named(**change) == named()


def test_the_same_initial_weights_at_another_path_are_the_same_student(tmp_path: Path) -> None:
    weights = [tmp_path / name for name in ("a.safetensors", "copy.safetensors", "b.safetensors")]
    for path, content in zip(weights, (b"1", b"1", b"2"), strict=True):
        path.write_bytes(content)
    same, moved, other = (named(weights=str(path)) for path in weights)
    assert same == moved != other


def test_other_students_of_the_manifest_do_not_rename_the_first() -> None:
    several, weights = ("resnet18", "resnet50"), ("IMAGENET1K_V1", "IMAGENET1K_V2")
    assert named(student=several) == named(student=several, weights=weights) == named()
    both = MANIFEST.with_values(distillation={"student": several, "weights": weights})
    second = named(student="resnet50", weights="IMAGENET1K_V2")
    assert student_names(both, "f", "mix") == [named(), second]


CHANGED: dict[str, Any] = {
    "warmup_epochs": 9,
    "epochs": 9,
    "learning_rate": 0.2,
    "finetune_factor": 0.2,
    "optimizer": "adamw",
    "schedule": "constant",
    "augmentation": ("flip",),
    "precision": "bfloat16",
    "student": "resnet50",
    "weights": "none",
    "batch_size": 64,
    "target": "embedding",
    "labeller": (dataclasses.replace(TEACHER, template="a {class}"),),
    "texts": "styles",
    "standardise": False,
}


def test_whatever_can_change_a_weight_renames_it() -> None:
    keys = {field.name for field in dataclasses.fields(Distillation)} - {*TRAINING_ONLY_KEYS}
    assert {*CHANGED} == keys
    # Random weights allow no warm-up, and stored labels no augmentation.
    base: dict[str, Any] = {"warmup_epochs": 0, "augmentation": ()}
    names = [
        *(named(fingerprint, seed, **base) for fingerprint in "fg" for seed in (0, 1)),
        *(named(**base | {key: value}) for key, value in CHANGED.items()),
    ]
    assert len(set(names)) == len(names)


def test_other_initial_weights_on_a_node_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"1")
    manifest = Manifest.read(write_manifest(tmp_path, distillation={"weights": str(path)}))
    version = publish(manifest)
    name = student_name(manifest, version.fingerprint, "vanilla", 0)
    check_initial_weights(manifest, version, "vanilla", 0, name)
    path.write_bytes(b"2")
    with pytest.raises(WeightsError, match=r"^distillation\.weights: must be the same on every"):
        check_initial_weights(manifest, version, "vanilla", 0, name)


def test_missing_weights_are_refused() -> None:
    with pytest.raises(WeightsError, match=r"distillation\.weights"):
        named(weights="/nowhere.safetensors")


def test_styles_rename_a_student_whose_labels_use_them() -> None:
    """The fingerprint of an inversion's data set does not cover the styles."""
    changes = [{"styles": ("oil", "ink")}, {"styles": "miniature"}, {"template": "{style} {class}"}]

    def names(texts: Texts) -> set[str]:
        config = dataclasses.replace(MANIFEST.distillation, texts=texts)
        manifests = [
            dataclasses.replace(
                MANIFEST,
                distillation=config,
                prompts=dataclasses.replace(MANIFEST.prompts, **change),
            )
            for change in [{}, *changes]
        ]
        return {student_name(manifest, "f", "dfad", 0) for manifest in manifests}

    assert len(names("styles")) == 1 + len(changes)
    assert len(names("template")) == 1


def test_a_student_needs_a_published_version_of_its_classes(tmp_path: Path) -> None:
    manifest = Manifest.read(write_manifest(tmp_path))
    with pytest.raises(ManifestError, match=r"storage\.root: must be there.*synthesize"):
        locate_student(manifest, "vanilla", 0)
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    with pytest.raises(ManifestError, match=r"published version of method vanilla.*synthesize"):
        locate_student(manifest, "vanilla", 0)
    version = publish(manifest)
    found = locate_student(manifest, "vanilla", 0)
    assert found.version.id == version.id
    assert not found.finished
    assert found.location.endswith(f"{found.name}/student.json")
    for change in ("classes=[a, b, c]", "synthesis.image_size=64", "teacher.template=The {class}"):
        other = Manifest.read(tmp_path / "manifest.yaml", (change,))
        key = change.partition("=")[0]
        with pytest.raises(ManifestError, match=f"{key}: must be that of version {version.id} "):
            locate_student(other, "vanilla", 0)


def test_students_of_a_method_share_what_is_read_of_its_version(tmp_path: Path) -> None:
    """The receipts of a large version, for each of many students, would fill the driver."""
    manifest = Manifest.read(write_manifest(tmp_path), ("distillation.seeds=[0, 1]",))
    publish(manifest)
    first, second = locate_students(manifest)
    assert first == locate_student(manifest, "vanilla", 0)
    assert second == locate_student(manifest, "vanilla", 1)
    assert first.version is second.version


def test_a_student_of_the_same_classes_in_another_order_is_refused(tmp_path: Path) -> None:
    manifest = Manifest.read(write_manifest(tmp_path))
    publish(manifest)
    found, config = locate_student(manifest, "vanilla", 0), manifest.distillation
    student = build(config, 3, 32, seed=0)
    save_student(found.storage, student, card(config, manifest.classes[::-1], 32))
    with pytest.raises(CorruptionError, match=r"is a student of \['blue', 'green', 'red'\], not"):
        load_located(found, manifest.classes, torch.device("cpu"))


def test_live_labels_must_come_from_the_teacher_of_the_version(tmp_path: Path) -> None:
    teachers = [write_teacher(tmp_path / name, model_config(RESNET)) for name in ("a", "moved")]
    path = write_manifest(tmp_path, teacher=dataclasses.asdict(teachers[0]))
    manifest = Manifest.read(path)
    version = publish(manifest, digests=file_hashes(teachers[0]))
    check_teacher(manifest, "vanilla", version)
    moved = dataclasses.replace(manifest, teacher=teachers[1])
    check_teacher(moved, "vanilla", version)
    other = write_teacher(tmp_path / "other", model_config({**RESNET, "width": 16}))
    foreign = dataclasses.replace(manifest, teacher=other)
    with pytest.raises(ManifestError, match=rf"teacher\..*sha256: .*version {version.id} "):
        check_teacher(foreign, "vanilla", version)


def test_what_only_the_teacher_of_the_version_has_is_missed(tmp_path: Path) -> None:
    """The same file without a tag is normalised in another way."""
    teacher = write_teacher(tmp_path / "a", model_config(RESNET))
    manifest = Manifest.read(write_manifest(tmp_path, teacher=dataclasses.asdict(teacher)))
    hashes = file_hashes(teacher) | {"teacher.preprocessing": "0" * 64}
    version = publish(manifest, digests=hashes)
    with pytest.raises(ManifestError, match=r"teacher.preprocessing.sha256: must be that of"):
        check_teacher(manifest, "vanilla", version)
