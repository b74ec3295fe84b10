"""Checks before any work starts: refuse files, names and sizes that do not fit together."""

import json
import shutil
import sysconfig
from pathlib import Path

import torch

from dfkd.config.manifest import Manifest
from dfkd.config.methods import has_dependent_images, prompt_method
from dfkd.config.paths import DIFFUSION, MINIATURE
from dfkd.config.plan import image_count, part_count
from dfkd.dataset.loader import steps_per_epoch
from dfkd.distillation.text_only import load_tower
from dfkd.errors import ManifestError
from dfkd.evaluation.data import open_data
from dfkd.models.generators import kinds
from dfkd.models.generators.generator import Generator
from dfkd.models.student import Student, build
from dfkd.models.teacher import Teacher, check_classes, require_batch_norm
from dfkd.prompts.maker import check_prompts
from dfkd.utils.progress import say

SIDE = 16
"""Pixels: dfad's generator doubles the resolution four times, pre's encoder halves it thrice."""
NAMED = 12
"""Number of unknown classes that a note names."""


def check_later_stages(manifest: Manifest) -> None:
    """Refuse what distillation and evaluation would refuse after the hours of synthesis.

    Raises:
        ManifestError: naming the field.
    """
    check_distillation(manifest)
    check_batches(manifest)
    check_evaluation(manifest)


def check_synthesis(manifest: Manifest) -> tuple[Teacher, Generator | None]:
    """Refuse missing or foreign weights, meaningless class names, and sizes that clash.

    The models are loaded on the CPU: that takes seconds now instead of a failure on every worker
    later.

    Returns:
        The teacher, and the generator if a method has prompts.

    Raises:
        ManifestError: naming the field.
    """
    _check_compiler(manifest)
    cpu, cache = torch.device("cpu"), manifest.cache
    teacher = Teacher.load(manifest.teacher, cpu, cache=cache)
    check_classes(teacher, manifest.classes, manifest.teacher.template)
    check_prompts(manifest, teacher)
    for method in filter(has_dependent_images, manifest.methods):
        require_batch_norm(teacher, method)
    _check_adversarial(manifest)
    if not any(map(prompt_method, manifest.methods)):
        return teacher, None
    generator = kinds.load(manifest, cpu)
    generator.require(teacher, manifest.synthesis.image_size)
    return teacher, generator


def note_unknown_names(manifest: Manifest) -> None:
    """Say which classes the bundled diffusion model was not trained to draw."""
    bundled = (manifest.generator.kind, manifest.generator.weights) == ("diffusers", MINIATURE)
    if not bundled or not any(map(prompt_method, manifest.methods)):
        return
    names = json.loads((DIFFUSION / "scores.json").read_text())["names"]
    if unknown := [name for name in manifest.classes if name.lower() not in names]:
        say(
            f"note: generator.weights: the bundled model was not trained to draw "
            f"{', '.join(map(repr, unknown[:NAMED]))}{' and others' * (len(unknown) > NAMED)}; it "
            f"draws {len(names)} things, which dfkd/bundled/MODEL_CARD.md lists"
        )


def _check_compiler(manifest: Manifest) -> None:
    """Refuse `synthesis.compile` where each worker would try in vain to build the graph.

    On a cluster this machine is taken for the workers', which have the same image.
    """
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    compiler = shutil.which("g++") or shutil.which("clang++")
    if manifest.synthesis.compile and not (compiler and header.is_file()):
        raise ManifestError(
            "synthesis.compile",
            "needs a C++ compiler and the headers of Python",
            True,
            "install g++ and python3-dev, or set it to false",
        )


def _check_adversarial(manifest: Manifest) -> None:
    """Refuse sizes that the networks of dfad and pre cannot handle, and parts without a round."""
    size, parts = manifest.synthesis.image_size, part_count(manifest)
    rounds = {"dfad": manifest.inversion.dfad.rounds, "pre": manifest.inversion.pre.rounds}
    for method in rounds.keys() & set(manifest.methods):
        if size % SIDE:
            nearest = max(1, size // SIDE) * SIDE
            raise ManifestError(
                "synthesis.image_size",
                f"must be a multiple of {SIDE} for {method}",
                size,
                f"use {nearest}",
            )
        if rounds[method] < parts:
            raise ManifestError(
                f"inversion.{method}.rounds",
                f"must be at least one for each of the {parts} parts",
                rounds[method],
                "raise it, or synthesis.shard_size",
            )


def check_distillation(manifest: Manifest) -> Student:
    """Refuse a student that cannot be built, or whose initial weights are missing; returns it."""
    size, classes = manifest.synthesis.image_size, len(manifest.classes)
    return build(manifest.distillation, classes, size, seed=0, cache=manifest.cache)


def check_batches(manifest: Manifest) -> None:
    """Refuse a batch size larger than the number of images."""
    steps_per_epoch(image_count(manifest), manifest.distillation.batch_size)


def check_evaluation(manifest: Manifest) -> None:
    """Refuse missing evaluation data or classes, and an unusable tower of the text-only classifier.

    Only folder and file names are read, not the images. If nothing is scored, nothing is checked.
    """
    if manifest.evaluation.scored:
        open_data(manifest.evaluation, manifest.classes)
    check_text_only(manifest)


def check_text_only(manifest: Manifest) -> None:
    """Refuse an unusable tower of the text-only classifier, if that is scored."""
    if "text-only" in manifest.evaluation.scored:
        load_tower(manifest, torch.device("cpu"))
