import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from dfkd.config import paths
from dfkd.config.distillation import Distillation, weights_file
from dfkd.errors import CorruptionError, ManifestError, WeightsError
from dfkd.models.labeller import distances
from dfkd.models.student import (
    CARD,
    WEIGHTS,
    Student,
    build,
    card,
    load_student,
    rescale_output,
    save_student,
)
from dfkd.storage.base import Storage
from dfkd.storage.local import open_storage
from tests.helpers.published import flip_bit

RANDOM = {"weights": "none", "warmup_epochs": 0}
SMALL = Distillation(student="resnet18", **RANDOM)


def pixels(size: int = 32) -> torch.Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_a_student_depends_on_its_seed_and_leaves_global_randomness_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (build(SMALL, 5, 32, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)
    )
    assert not torch.equal(first.backbone.conv1.weight, other.backbone.conv1.weight)
    assert first(pixels()).shape == (2, 5)


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("resnet18", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ("timm:test_resnet", [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
    ],
)
def test_pixels_are_normalised_as_the_library_s_weights_want_them(
    name: str, mean: list[float], std: list[float]
) -> None:
    student, normal = build(Distillation(student=name, **RANDOM), 2, 32, 0).eval(), pixels() - 0.5
    middle, spread = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
    features = student.features(normal * spread + middle)
    torch.testing.assert_close(features, student.backbone(normal), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("name", ["timm:resnet10t", "timm:vit_tiny_patch16_224"])
def test_timm_students_take_the_run_s_image_size(name: str) -> None:
    student = build(Distillation(student=name, **RANDOM), 4, 64, 0).eval()
    assert student(pixels(64)).shape == (2, 4)


@pytest.mark.parametrize(
    ("name", "norm"),
    [("resnet18", "bn2"), ("resnet50", "bn3"), ("timm:resnet18", "bn2"), ("timm:resnet50", "bn3")],
)
def test_residual_blocks_of_random_weights_start_as_the_identity(name: str, norm: str) -> None:
    """Without it a ResNet-50 of torchvision hardly learns in a few hundred steps."""
    backbone = build(Distillation(student=name, **RANDOM), 4, 32, 0).backbone
    for layer in (backbone.layer1, backbone.layer4):
        features = torch.rand(2, layer[1].conv1.in_channels, 4, 4)
        assert torch.equal(layer[1](features), features)
        assert not getattr(layer[1], norm).weight.any()


def test_a_model_that_cannot_have_the_image_size_is_refused() -> None:
    with pytest.raises(ManifestError, match=r"distillation\.student: cannot be built for 50 px"):
        build(Distillation(student="timm:nest_tiny", **RANDOM), 4, 50, 0)


@pytest.mark.parametrize(
    "backbone",
    [nn.Flatten(0), nn.Flatten(2), nn.MaxPool2d(2, return_indices=True), nn.BatchNorm1d(3)],
    ids=["a number for each pixel", "tokens", "two tensors", "ValueError"],
)
def test_a_model_that_gives_no_vector_for_an_image_is_refused(
    backbone: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timm, "create_model", lambda *_, **options: backbone)
    with pytest.raises(ManifestError, match=r"distillation\.student: .*; choose another model"):
        build(Distillation(student="timm:test_resnet", **RANDOM), 4, 32, 0)


def test_a_model_of_which_timm_says_that_a_value_is_wrong_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **options: object) -> None:
        raise ValueError("no such size")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(ManifestError, match=r"cannot be built for 32 px \(no such size\)"):
        build(Distillation(student="timm:test_resnet", **RANDOM), 4, 32, 0)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        *(
            ({"student": name, **RANDOM}, r"distillation\.student")
            for name in ("resnet19", "alexnet", "timm:no_such_model", "timm:resnet18.none")
        ),
        ({"weights": "IMAGENET1K_V2"}, r"distillation\.weights.*IMAGENET1K_V1"),
        ({"weights": "IMAGENET9K"}, r"distillation\.weights.*IMAGENET1K_V1"),
        ({"weights": "pretrained"}, r"distillation\.weights.*IMAGENET1K_V1"),
        ({"weights": "/nowhere/w.safetensors"}, r"distillation\.weights.*/nowhere"),
    ],
)
def test_impossible_combinations_are_refused(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(ManifestError, match=field):
        build(Distillation(**settings), 4, 32, 0)


@pytest.mark.parametrize("weights", ["IMAGENET1K_V1", "miniture"])
def test_timm_gives_its_weights_by_one_name_only(
    weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """timm itself knows no names, so any other one would silently mean the same weights."""
    created: list[bool] = []
    create = timm.create_model

    def record(name: str, pretrained: bool, **options: Any) -> Any:
        created.append(pretrained)
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", record)
    with pytest.raises(
        WeightsError, match=r"^distillation\.weights: must be none, .*or .*pretrained, got"
    ):
        build(Distillation(student="timm:test_resnet", weights=weights), 4, 32, 0)
    assert created == []
    build(Distillation(student="timm:test_resnet", weights="pretrained"), 4, 32, 0)
    assert created == [True]


@pytest.mark.parametrize("counted", [True, False], ids=["counted", "before-num_batches_tracked"])
def test_torchvisions_weights_come_from_the_cache(tmp_path: Path, counted: bool) -> None:
    config, cache = Distillation(weights="IMAGENET1K_V1"), str(tmp_path)
    with pytest.raises(WeightsError, match=r"IMAGENET1K_V1.*run dfkd fetch MANIFEST"):
        build(config, 4, 32, 0, cache)
    source = torchvision.models.resnet18()
    state = source.state_dict()
    if not counted:
        state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "resnet18-f37072fd.pth")
    built = build(config, 4, 32, 0, cache)
    assert torch.equal(built.backbone.layer4[1].conv2.weight, source.layer4[1].conv2.weight)
    assert built.head.out_features == 4
    torch.save({"conv1.weight": state["conv1.weight"]}, tmp_path / "resnet18-f37072fd.pth")
    with pytest.raises(WeightsError, match=r"lacks bn1\.bias"):
        build(config, 4, 32, 0, cache)


def test_weights_that_a_hub_does_not_give_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = Distillation(student="timm:test_resnet", weights="pretrained")
    with pytest.raises(WeightsError, match=r"pretrained.*give the path of a safetensors file"):
        build(config, 4, 32, 0)


def test_initial_weights_come_from_a_library_s_file_or_from_a_student(tmp_path: Path) -> None:
    source = build(SMALL, 5, 32, seed=3)
    library = {**source.backbone.state_dict(), "fc.weight": torch.zeros(1000, 512)}
    for name, state in (("library", library), ("student", source.state_dict())):
        path = tmp_path / f"{name}.safetensors"
        safetensors.torch.save_file(state, path)
        assert weights_file(str(path)) == path
        built = build(Distillation(weights=str(path)), 7, 32, seed=0)
        assert torch.equal(
            built.backbone.layer4[1].conv2.weight, source.backbone.layer4[1].conv2.weight
        )
        assert built.head.out_features == 7


def test_the_bundled_backbone_is_one_of_test_resnet() -> None:
    config = Distillation(student="timm:test_resnet", weights="miniature")
    saved = safetensors.torch.load_file(paths.BACKBONE)
    for name, tensor in build(config, 5, 64, 0).backbone.state_dict().items():
        assert torch.equal(tensor, saved[f"backbone.{name}"])
    with pytest.raises(WeightsError, match=r"backbone\.safetensors"):
        build(Distillation(student="resnet18", weights="miniature"), 5, 64, 0)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(build(SMALL, 5, 32, 0).state_dict(), path)
    with pytest.raises(WeightsError, match=r"distillation\.weights.*conv"):
        build(Distillation(student="resnet50", weights=str(path)), 5, 32, 0)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="readable"):
        build(Distillation(weights=str(path)), 5, 32, 0)


@pytest.mark.parametrize(
    ("student", "key"),
    [("resnet18", "layer1.2.conv1.weight"), ("timm:vit_tiny_patch16_224", "blocks.12.norm1.bias")],
)
def test_weights_of_a_deeper_network_are_refused_and_a_head_is_dropped(
    student: str, key: str, tmp_path: Path
) -> None:
    """Its first blocks would fit: a ResNet-34 has all tensors of a ResNet-18."""
    backbone = build(Distillation(student=student, **RANDOM), 5, 32, 0).backbone.state_dict()
    config = Distillation(student=student, weights=str(tmp_path / "w.safetensors"))
    heads = ("head.1.weight", "classifier.weight", "last_linear.weight")
    for name, fits in ((key, False), ("other", False), *((head, True) for head in heads)):
        safetensors.torch.save_file({**backbone, name: torch.zeros(1)}, config.initial_weights)
        with contextlib.nullcontext() if fits else pytest.raises(WeightsError, match=name):
            build(config, 5, 32, 0)


def test_folding_gives_distances_from_standardised_outputs() -> None:
    student = build(SMALL, 5, 32, 0).eval()
    folded = rescale_output(student, shift=1.25, scale=0.5)
    assert torch.allclose(folded(pixels()), student(pixels()) * 0.5 + 1.25, atol=1e-5)


CLASSES = ("a", "b", "c")
EMBEDDING_CARD = card(dataclasses.replace(SMALL, target="embedding"), CLASSES, 32, embedding_dim=6)


def save(storage: Storage, seed: int = 0) -> tuple[Student, bool]:
    """A student in a storage, and whether it is the first one there."""
    student = build(SMALL, len(CLASSES), 32, seed).eval()
    return student, save_student(storage, student, card(SMALL, CLASSES, 32))


def test_a_saved_student_loads_with_the_same_outputs(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    student, first = save(storage)
    assert first
    loaded, stored = load_student(storage)
    assert torch.equal(loaded(pixels()), student(pixels()))
    assert not any(p.requires_grad for p in loaded.parameters())
    assert stored["classes"] == list(CLASSES)


def test_a_student_of_embeddings_is_saved_with_its_classes_and_can_get_others(
    tmp_path: Path,
) -> None:
    noise = torch.Generator().manual_seed(1)
    own, other = (F.normalize(torch.randn(m, 6, generator=noise), dim=1) for m in (3, 4))
    student, storage = build(SMALL, 6, 32, 0).eval().with_classes(own), open_storage(str(tmp_path))
    assert save_student(storage, student, EMBEDDING_CARD)
    loaded, stored = load_student(storage)
    assert (stored["target"], stored["classes"]) == ("embedding", list(CLASSES))
    assert torch.equal(loaded(pixels()), student(pixels()))
    assert torch.equal(loaded.embed(pixels()), F.normalize(loaded.with_classes(None)(pixels())))
    replaced = loaded.with_classes(other)(pixels())
    torch.testing.assert_close(replaced, distances(loaded.embed(pixels()), other))
    assert loaded(pixels()).shape == (2, 3)


def test_texts_of_another_number_of_classes_are_refused(tmp_path: Path) -> None:
    storage, texts = open_storage(str(tmp_path)), F.normalize(torch.rand(2, 6), dim=1)
    student = build(SMALL, 6, 32, 0).with_classes(texts)
    save_student(storage, student, EMBEDDING_CARD)
    with pytest.raises(CorruptionError, match="has other tensors than its architecture; delete"):
        load_student(storage)


def test_equal_and_opposite_vectors_have_finite_distances() -> None:
    student = build(SMALL, 2, 32, 0).eval()
    embedding = student.with_classes(torch.eye(2)).embed(pixels())[:1]
    found = student.with_classes(torch.cat([embedding, -embedding]))(pixels())[0]
    torch.testing.assert_close(found, torch.tensor([0.0, torch.pi**2 / 2]), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda file: file.unlink(), r"is missing; delete .* distil again"),
        (lambda file: flip_bit(file, -1), r"sha256 differs .* distil again"),
    ],
    ids=["gone", "a flipped bit"],
)
def test_a_student_with_damaged_weights_is_to_be_distilled_again(
    damage: Callable[[Path], None], reason: str, tmp_path: Path
) -> None:
    storage = open_storage(str(tmp_path))
    save(storage)
    damage(tmp_path / WEIGHTS)
    with pytest.raises(CorruptionError, match=rf"safetensors: {reason}"):
        load_student(storage)


def test_the_first_finished_student_stays(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    student, _ = save(storage)
    assert not save(storage, seed=1)[1]
    assert torch.equal(load_student(storage)[0].head.weight, student.head.weight)


def test_weights_left_by_a_killed_attempt_are_the_ones_described(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    save(storage)
    storage.delete(CARD)
    assert save(storage, seed=1)[1]
    load_student(storage)
