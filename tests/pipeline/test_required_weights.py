"""What manifests need of the world, known before anything is fetched."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from dfkd.config.manifest import Manifest
from dfkd.errors import ManifestError, WeightsError
from dfkd.pipeline.required_weights import HubModel, hub_models, needs
from tests.helpers import small_manifest
from tests.helpers.tiny_models import (
    VIT,
    model_config,
    official_yaml,
    write_generator,
    write_teacher,
)

VQGAN = "vqgan-imagenet-f16-1024"
OTHERS: dict[str, dict[str, Any]] = {
    "teacher": {"model": "ViT-B-32-quickgelu", "weights": "openai"},
    "generator": {"config": "miniature", "weights": "miniature"},
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
        generator=asdict(generator),
    )
    assert wanted(config) == {}
    assert hub_models(config) == []


def test_names_stand_for_published_files(tmp_path: Path) -> None:
    config = manifest(
        tmp_path,
        teacher={"model": "RN50-quickgelu", "weights": "openai"},
        generator={"config": VQGAN, "weights": VQGAN},
        distillation={"student": "resnet50", "weights": "IMAGENET1K_V2"},
    )
    assert wanted(config) == {
        "teacher.weights": "RN50.pt",
        "generator.config": f"{VQGAN}.yaml",
        "generator.weights": f"{VQGAN}.ckpt",
        "distillation.weights": "resnet50-11ad3fa6.pth",
    }


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


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"teacher": {"model": "ViT-B-32"}}, "set teacher.model=ViT-B-32-quickgelu"),
        (
            {
                "text_only": {"model": "RN50", "weights": "openai"},
                "evaluation": {"models": ["teacher", "text-only"]},
            },
            "set text_only.model=RN50-quickgelu",
        ),
        ({"teacher": {"model": "ViT-B-99"}}, "teacher.model: must be an open_clip architecture"),
        ({"teacher": {"weights": "opneai"}}, "teacher.weights: must be an existing file"),
        ({"generator": {"weights": "vqgan"}}, f"a published VQGAN .*{VQGAN}.*jobs/fetch.py"),
        ({"generator": {"config": "none.yaml"}}, "generator.config: must be an existing file"),
        ({"distillation": {"weights": "IMAGENET9K"}}, "IMAGENET1K_V1"),
        ({"distillation": {"student": "resnet9", "weights": "DEFAULT"}}, "torchvision ResNet"),
    ],
)
def test_unknown_names_are_refused(sections: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=reason):
        needs(manifest(tmp_path, **sections))


def test_a_fetched_file_must_be_of_its_kind(tmp_path: Path) -> None:
    config = manifest(tmp_path, generator={"config": VQGAN, "weights": VQGAN})
    yaml_need, weights_need = needs(config)
    files = write_generator(tmp_path / "generator", official_yaml())
    yaml_need.check(Path(files.config))
    weights_need.check(Path(files.weights))
    page = tmp_path / "page"
    page.write_text("<html>Please log in</html>")
    with pytest.raises(WeightsError, match=r"official VQGAN model\.yaml"):
        yaml_need.check(page)
    with pytest.raises(WeightsError, match="readable checkpoint"):
        weights_need.check(page)


def test_library_weights_of_few_shot_are_needed_too() -> None:
    manifest = Manifest.read(
        "manifests/miniature.yaml",
        (
            *("distillation.student=resnet18", "distillation.weights=none"),
            *("fewshot.starts=[student, library]", "fewshot.library=IMAGENET1K_V1"),
        ),
    )
    (need,) = needs(manifest)
    assert (need.field, need.artifact.file) == ("fewshot.library", "resnet18-f37072fd.pth")
    without = Manifest.read("manifests/miniature.yaml", ("fewshot.starts=student",))
    assert needs(without) == []
