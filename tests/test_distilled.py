import dataclasses
from pathlib import Path

import pytest

from dfkd.distilled import check_teacher, place, student_name
from dfkd.errors import ManifestError, WeightsError
from dfkd.manifest import Manifest
from dfkd.teacher import resolve
from dfkd.training import Distillation
from models import RESNET, model_config, write_teacher
from surrogates import publish, write_manifest

CONFIG = Distillation()


def test_a_name_says_method_and_seed() -> None:
    name = student_name(CONFIG, "f" * 64, "mix", 3)
    assert name.startswith("mix-s3-")
    assert len(name) == len("mix-s3-") + 12


@pytest.mark.parametrize(
    "change",
    [{"workers": 2}, {"loader_workers": 3}, {"checkpoint_epochs": 9}, {"seeds": (0, 1, 2)}],
)
def test_how_a_student_is_trained_does_not_rename_it(change: dict[str, int]) -> None:
    assert student_name(dataclasses.replace(CONFIG, **change), "f", "mix", 0) == student_name(
        CONFIG, "f", "mix", 0
    )


def test_whatever_can_change_a_weight_renames_it(tmp_path: Path) -> None:
    weights = [tmp_path / name for name in ("a.safetensors", "copy.safetensors", "b.safetensors")]
    for path, content in zip(weights, (b"1", b"1", b"2"), strict=True):
        path.write_bytes(content)
    same, moved, other = (
        student_name(Distillation(weights=str(path)), "f", "mix", 0) for path in weights
    )
    assert same == moved
    names = [
        same,
        other,
        *(student_name(CONFIG, f, "mix", seed) for f in "fg" for seed in (0, 1)),
        student_name(dataclasses.replace(CONFIG, learning_rate=0.2), "f", "mix", 0),
        student_name(dataclasses.replace(CONFIG, batch_size=64), "f", "mix", 0),
        student_name(dataclasses.replace(CONFIG, stem="small"), "f", "mix", 0),
    ]
    assert len(set(names)) == len(names)


def test_missing_weights_are_refused() -> None:
    with pytest.raises(WeightsError, match=r"distillation\.weights"):
        student_name(Distillation(weights="/nowhere.safetensors"), "f", "mix", 0)


def test_a_student_needs_a_published_version_of_its_classes(tmp_path: Path) -> None:
    manifest = Manifest.read(write_manifest(tmp_path))
    with pytest.raises(ManifestError, match=r"published version of method vanilla.*synthesize"):
        place(manifest, "vanilla", 0)
    version = publish(manifest)
    found = place(manifest, "vanilla", 0)
    assert found.version.id == version.id
    assert not found.finished
    assert found.location.endswith(f"{found.name}/student.json")
    for change in ("classes=[a, b, c]", "synthesis.image_size=64", "teacher.template=The {class}"):
        other = Manifest.read(tmp_path / "manifest.yaml", (change,))
        with pytest.raises(ManifestError, match=rf"{change.partition('=')[0]}.*current version"):
            place(other, "vanilla", 0)


def test_live_labels_must_come_from_the_teacher_of_the_version(tmp_path: Path) -> None:
    teachers = [write_teacher(tmp_path / name, model_config(RESNET)) for name in ("a", "moved")]
    path = write_manifest(tmp_path, teacher=dataclasses.asdict(teachers[0]))
    manifest = Manifest.read(path)
    publish(manifest, digests=resolve(teachers[0]).digests)
    check_teacher(manifest, place(manifest, "vanilla", 0))
    moved = dataclasses.replace(manifest, teacher=teachers[1])
    check_teacher(moved, place(moved, "vanilla", 0))
    other = write_teacher(tmp_path / "other", model_config({**RESNET, "width": 16}))
    foreign = dataclasses.replace(manifest, teacher=other)
    with pytest.raises(ManifestError, match=r"teacher\..*sha256.*current version"):
        check_teacher(foreign, place(foreign, "vanilla", 0))
