"""A study so small that all of it takes seconds: two classes, two images, one step."""

from pathlib import Path
from typing import Any

import yaml

BASE = {
    "name": "base",
    "classes": ["clock", "book"],
    "storage": {"root": "?"},
    "teacher": {"model": "miniature", "weights": "miniature"},
    "generator": {
        "kind": "vqgan", "vqgan": {"config": "miniature", "weights": "miniature", "steps": 1},
    },
    "prompts": {"method": "vanilla", "styles": "miniature"},
    "synthesis": {
        "images_per_class": 2, "shard_size": 2, "image_size": 64, "batch_size": 2, "views": 0,
    },
    "distillation": {
        "student": "timm:test_resnet", "weights": "none", "warmup_epochs": 0, "epochs": 1,
        "batch_size": 4, "augmentation": ["flip"],
    },
    "cluster": {"workers": 1},
}  # fmt: skip
METHODS = {
    "Baseline": {"prompts": {"method": "vanilla"}},
    "Random_Prompt": {"prompts": {"method": "random"}},
}
EPOCHS = {1: {"distillation": {"epochs": 1}}, 2: {"distillation": {"epochs": 2}}}


def description(**changes: Any) -> dict[str, Any]:
    """The content of a study's file."""
    return {
        "name": "tiny",
        "title": "Tiny & small",
        "shows": ["Table 1"],
        "kind": "table",
        "base": "base.yaml",
        "axes": [{"name": "Method", "values": METHODS}],
        "seeds": [0, 1],
        "quick": {"settings": {"storage": {"root": "quick"}}},
        **changes,
    }


def write(folder: Path, start: dict[str, Any] | None = None, **changes: Any) -> Path:
    """The file of a study with its base, to which `start` adds keys; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    tree = {**BASE, "storage": {"root": str(folder / "root")}, **(start or {})}
    (folder / "base.yaml").write_text(yaml.safe_dump(tree))
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(description(**changes), sort_keys=False))
    return path
