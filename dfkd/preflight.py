"""All that can be refused before any work starts: files, names and sizes that do not fit."""

import torch

from dfkd.domains import open_data
from dfkd.errors import ManifestError
from dfkd.generator import VQGAN
from dfkd.manifest import Manifest
from dfkd.methods import coupled, prompt_method
from dfkd.prompts import check_prompts
from dfkd.student import build
from dfkd.teacher import Teacher, check_classes, require_batch_norm


def check_synthesis(manifest: Manifest) -> None:
    """Refuse weights that are missing or foreign, names that say nothing, sizes that clash.

    The models are really loaded, on the CPU: seconds now instead of a failure on every worker.

    Raises:
        ManifestError: naming the field.
    """
    cpu, cache = torch.device("cpu"), manifest.cache
    teacher = Teacher.load(manifest.teacher, cpu, cache=cache)
    check_classes(teacher, manifest.classes, manifest.teacher.template)
    check_prompts(manifest, teacher)
    for method in filter(coupled, manifest.methods):
        require_batch_norm(teacher, method)
    if any(map(prompt_method, manifest.methods)):
        _check_generator(manifest)


def _check_generator(manifest: Manifest) -> None:
    cpu = torch.device("cpu")
    factor = VQGAN.load(manifest.generator, cpu, cache=manifest.cache).downsampling
    if manifest.synthesis.image_size % factor:
        raise ManifestError(
            "synthesis.image_size",
            f"must be a multiple of the generator's {factor}",
            manifest.synthesis.image_size,
            f"use {max(1, manifest.synthesis.image_size // factor) * factor}",
        )


def check_distillation(manifest: Manifest) -> None:
    """Refuse a student that cannot be built, or whose initial weights are missing."""
    size, classes = manifest.synthesis.image_size, len(manifest.classes)
    build(manifest.distillation, classes, size, seed=0, cache=manifest.cache)


def check_evaluation(manifest: Manifest) -> None:
    """Refuse evaluation data that is missing or that lacks a class; looks at names only."""
    open_data(manifest.evaluation, manifest.classes)
