import dataclasses
from pathlib import Path

import pytest
import safetensors.torch
import torch

from dfkd.config.manifest import Manifest
from dfkd.errors import ManifestError, WeightsError
from dfkd.lab.few_shot import tuning as starts
from dfkd.lab.few_shot.settings import FewShot
from dfkd.lab.few_shot.tuning import InitialWeights
from dfkd.models.student import build
from tests.helpers.tiny_version import publish, write_manifest

CPU = torch.device("cpu")
CACHED = "resnet18-f37072fd.pth"
"""IMAGENET1K_V1 under torchvision's own name."""


def read(folder: Path, *settings: str) -> Manifest:
    return Manifest.read(write_manifest(folder), settings)


def test_equal_texts_of_weights_mean_equal_backbones(tmp_path: Path) -> None:
    manifest = read(tmp_path)
    first, again, other = (
        starts.initial_weights(manifest, "scratch", seed, CPU) for seed in (0, 0, 1)
    )
    assert first.weights == again.weights != other.weights
    weights = [each.make().backbone.state_dict() for each in (first, again, other)]
    name = next(key for key in weights[0] if key.endswith("conv1.weight"))
    assert torch.equal(weights[0][name], weights[1][name])
    assert not torch.equal(weights[0][name], weights[2][name])


def test_random_weights_are_built_although_the_student_has_a_warm_up(tmp_path: Path) -> None:
    warmed = ("distillation.weights=pretrained", "distillation.warmup_epochs=150")
    scratch = starts.initial_weights(read(tmp_path, *warmed), "scratch", 0, CPU).make()
    plain = starts.initial_weights(read(tmp_path), "scratch", 0, CPU).make()
    assert torch.equal(scratch.head.weight, plain.head.weight)


def test_library_weights_from_a_file_stay_those_of_the_file_when_it_moves(tmp_path: Path) -> None:
    plain = read(tmp_path)
    source = build(plain.distillation, 3, 32, seed=5)

    def library(name: str, seed: int = 0) -> InitialWeights:
        safetensors.torch.save_file(source.backbone.state_dict(), tmp_path / name)
        manifest = read(tmp_path, f"distillation.weights={tmp_path / name}")
        return starts.initial_weights(manifest, "library", seed, CPU)

    found = library("one.safetensors")
    assert found.weights == library("moved.safetensors").weights
    made = found.make()
    pairs = zip(made.backbone.parameters(), source.backbone.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(made.head.weight, source.head.weight)
    assert not torch.equal(made.head.weight, library("one.safetensors", seed=1).make().head.weight)


def test_library_weights_come_from_the_cache(tmp_path: Path) -> None:
    library = ("distillation.student=resnet18", "distillation.weights=IMAGENET1K_V1")
    manifest = read(tmp_path, *library, f"cache={tmp_path}")
    start = starts.initial_weights(manifest, "library", 0, CPU)
    with pytest.raises(WeightsError, match=r"^distillation\.weights: .*dfkd fetch"):
        start.make()
    plain = dataclasses.replace(manifest.distillation, weights="none", warmup_epochs=0)
    source = build(plain, 3, 32, seed=5).backbone.state_dict()
    head = {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    torch.save({**source, **head}, tmp_path / CACHED)
    made = start.make()
    assert torch.equal(made.backbone.conv1.weight, source["conv1.weight"])
    (tmp_path / CACHED).write_bytes(b"cut")
    with pytest.raises(WeightsError, match=r"^distillation\.weights: "):
        start.make()


@pytest.mark.parametrize(
    ("weights", "error"),
    [
        ("none", r"--starts: must do without library"),
        ("a/b.pth", r"distillation\.weights: must be an existing file"),
    ],
)
def test_library_weights_that_cannot_be_are_refused(
    tmp_path: Path, weights: str, error: str
) -> None:
    manifest = read(tmp_path, f"distillation.weights={weights}")
    config = FewShot(starts=("library",))
    for students in (True, False):
        with pytest.raises(ManifestError, match=error):
            starts.check_starts(manifest, config, CPU, students)


def test_a_start_is_described_by_its_students_or_by_its_file_without_the_folder(
    tmp_path: Path,
) -> None:
    settings = ("distillation.weights=/home/me/imagenet.pth", "distillation.seeds=[3, 8]")
    config = FewShot(starts=("library", "student"))
    captions = starts.curve_captions(read(tmp_path, *settings), config)
    assert captions["library"] == "weights imagenet.pth"
    assert captions["student"] == "distilled, vanilla images, seed 3, 8"


def test_the_student_is_that_of_the_last_method(tmp_path: Path) -> None:
    manifest = read(tmp_path, "prompts.method=[vanilla, mix]")
    for method in manifest.methods:
        publish(manifest, method)
    with pytest.raises(ManifestError, match="needs the student of method mix seed 0"):
        starts.initial_weights(manifest, "student", 0, CPU)
    assert starts.curve_captions(manifest, FewShot())["student"] == "distilled, mix images, seed 0"
