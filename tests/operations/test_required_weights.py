"""What manifests need of the world, known before anything is fetched."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from dfkd.config.manifest import Manifest
from dfkd.errors import ManifestError
from dfkd.operations.required_weights import HubModel, hub_models, needs
from tests.helpers import small_manifest
from tests.helpers.hub_families import write_family
from tests.helpers.tiny_models import (
    VIT,
    model_config,
    official_yaml,
    write_generator,
    write_teacher,
)

VQGAN = "vqgan-imagenet-f16-16384"
OTHERS: dict[str, dict[str, Any]] = {
    "teacher": {"model": "ViT-B-32-quickgelu", "weights": "openai"},
    "distillation": {"weights": "none", "warmup_epochs": 0},
}
"""The other keys of a section of which a test gives some."""


def manifest(folder: Path, **sections: Any) -> Manifest:
    """Without `sections` it names only what the package ships."""
    given = {name: OTHERS.get(name, {}) | section for name, section in sections.items()}
    return small_manifest.read(folder, **{"distillation": OTHERS["distillation"], **given})


def wanted(config: Manifest) -> dict[str, str]:
    return {need.field: need.artifact.file for need in needs(config)}


def test_bundled_models_and_paths_need_no_download(tmp_path: Path) -> None:
    assert wanted(manifest(tmp_path)) == {}
    teacher = write_teacher(tmp_path / "teacher", model_config(VIT))
    generator = write_generator(tmp_path / "generator", official_yaml())
    config = manifest(
        tmp_path,
        teacher=asdict(teacher),
        generator={"kind": "vqgan", "vqgan": asdict(generator)},
    )
    assert wanted(config) == {}
    assert hub_models(config) == []


def test_names_stand_for_published_files(tmp_path: Path) -> None:
    config = manifest(
        tmp_path,
        teacher={"model": "RN50-quickgelu", "weights": "openai"},
        generator={"kind": "vqgan", "vqgan": {"config": VQGAN, "weights": VQGAN}},
        distillation={"student": "resnet50", "weights": "IMAGENET1K_V2"},
    )
    assert wanted(config) == {
        "generator.vqgan.config": f"{VQGAN}.yaml",
        "generator.vqgan.weights": f"{VQGAN}.ckpt",
        "distillation.weights": "resnet50-11ad3fa6.pth",
    }
    hub = "timm/resnet50_clip.openai"
    assert hub_models(config) == [HubModel("teacher.weights", "open_clip", hub)]


def test_each_student_s_weights_are_needed(tmp_path: Path) -> None:
    students = ["resnet18", "resnet50", "timm:resnet18", "timm:resnet34"]
    weights = ["IMAGENET1K_V1", "IMAGENET1K_V2", "pretrained", "none"]
    config = small_manifest.read(
        tmp_path, distillation={"student": students, "weights": weights, "warmup_epochs": 0}
    )
    assert [(need.field, need.artifact.file) for need in needs(config)] == [
        ("distillation.weights", "resnet18-f37072fd.pth"),
        ("distillation.weights", "resnet50-11ad3fa6.pth"),
    ]
    assert hub_models(config) == [HubModel("distillation.weights", "timm", "timm:resnet18")]


def test_models_of_a_hub_are_told_apart(tmp_path: Path) -> None:
    config = manifest(
        tmp_path,
        teacher={"model": "ViT-B-32", "weights": "laion2b_s34b_b79k"},
        distillation={"student": "timm:resnet18", "weights": "pretrained"},
    )
    assert wanted(config) == {}
    assert hub_models(config) == [
        HubModel("teacher.weights", "open_clip", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
        HubModel("distillation.weights", "timm", "timm:resnet18"),
    ]


def test_the_tokenizer_of_a_tower_of_another_family_is_a_file_of_a_hub(tmp_path: Path) -> None:
    """It lies beside the tower if that is a folder, and there it must be."""
    towers = [{"model": "ViT-L-14-CLIPA", "weights": "datacomp1b"}]
    config = manifest(tmp_path, candidates={"towers": towers})
    section = "candidates.towers.0"
    assert hub_models(config) == [
        HubModel(f"{section}.weights", "open_clip", "UCSC-VLAA/ViT-L-14-CLIPA-datacomp1B"),
        HubModel(f"{section}.model", "tokenizers", "bert-base-uncased/tokenizer.json"),
    ]
    folder = tmp_path / "siglip"
    config = manifest(tmp_path, candidates={"towers": [asdict(write_family(folder, "siglip"))]})
    assert hub_models(config) == []
    assert wanted(config) == {}
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ManifestError, match=r"towers.0.model: needs tokenizer.json in its folder"):
        needs(config)


def test_a_diffusion_model_of_the_hub_is_needed_by_methods_with_prompts(tmp_path: Path) -> None:
    generator = {"kind": "diffusers", "diffusers": {"weights": "sd-turbo"}}
    config = small_manifest.read(tmp_path, generator=generator, distillation=OTHERS["distillation"])
    (model,) = hub_models(config)
    assert (model.field, model.library) == ("generator.diffusers.weights", "diffusers")
    assert (model.id, model.licence[:12]) == ("stabilityai/sd-turbo", "Stability AI")
    assert wanted(config) == {}


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"teacher": {"model": "ViT-B-32"}}, "set teacher.model=ViT-B-32-quickgelu"),
        (
            {"candidates": {"towers": [{"model": "RN50", "weights": "openai"}]}},
            "set candidates.towers.0.model=RN50-quickgelu",
        ),
        ({"teacher": {"model": "ViT-B-16-SigLIP", "weights": "webli"}}, "distillation.labeller"),
        ({"teacher": {"model": "ViT-B-99"}}, "teacher.model: must be an open_clip architecture"),
        ({"teacher": {"weights": "opneai"}}, "teacher.weights: must be an existing file"),
        (
            {"generator": small_manifest.vqgan(weights="vqgan")},
            f"a published VQGAN .*{VQGAN}.*dfkd fetch",
        ),
        (
            {"generator": small_manifest.vqgan(config="none.yaml")},
            "generator.vqgan.config: must be an existing file",
        ),
        ({"distillation": {"weights": "IMAGENET9K"}}, "IMAGENET1K_V1"),
        ({"distillation": {"student": "resnet9", "weights": "DEFAULT"}}, "torchvision ResNet"),
    ],
)
def test_unknown_names_are_refused(sections: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=reason):
        needs(manifest(tmp_path, **sections))
