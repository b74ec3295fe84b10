"""The smallest runs of the conventional methods, for tests."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfkd.config.manifest import Manifest
from dfkd.lab.baselines.inverter import Classifier, PartRequest, RunContext
from dfkd.models.teacher import Teacher
from dfkd.prompts.styles import class_text_embeddings
from tests.helpers import small_manifest
from tests.helpers.small_manifest import SMALLEST

CLASSES = ("dog", "house")
CHAINED = ("dfad", "cmi", "pre")
METHODS = ("deepinversion", *CHAINED)
"""The image sources that know the classes alone; of the chained ones each part needs that before.
"""

TREE: dict[str, Any] = {
    **SMALLEST,
    "name": "inversion",
    "classes": list(CLASSES),
    "prompts": {"method": "vanilla"},
    "synthesis": {
        "images_per_class": 3,
        "shard_size": 2,
        "image_size": 64,
        "deepinversion": {"low_resolution_steps": 2, "steps": 3, "batch_size": 3},
        "dfad": {
            "latent": 8,
            "width": 4,
            "snapshots": 2,
            "rounds": 3,
            "student_steps": 1,
            "batch_size": 4,
        },
        "cmi": {"latent": 8, "width": 4, "steps": 2, "batch_size": 2, "student_steps": 2},
        "pre": {
            "latent": 8,
            "width": 4,
            "snapshots": 2,
            "rounds": 2,
            "student_steps": 2,
            "memory_steps": 2,
            "batch_size": 16,
        },
    },
    "cluster": {"workers": 1},
}


def read(*overrides: str, root: str = "unused") -> Manifest:
    """A manifest of two classes with three images each, in parts of two and of one."""
    with tempfile.TemporaryDirectory() as folder:
        return small_manifest.read(Path(folder), *overrides, **TREE | {"storage": {"root": root}})


def problem(teacher: Teacher, *labels: int) -> tuple[Classifier, PartRequest]:
    """A classifier of the two classes, and a run for images of these classes."""
    classifier = Classifier(teacher, class_text_embeddings(read(), teacher))
    return classifier, PartRequest(torch.tensor(labels), range(len(labels)))


def run_context(images: int = 4, *parts: Tensor) -> RunContext:
    """The context of a run of so many images, with the stored images of its first parts."""
    return RunContext(5, images, 64, parts.__getitem__)
