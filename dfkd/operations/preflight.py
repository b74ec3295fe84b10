"""Checks before any work starts: refuse files, names and sizes that do not fit together."""

import shutil
import sysconfig
from pathlib import Path

import torch

from dfkd.config.manifest import Manifest
from dfkd.config.plan import image_count
from dfkd.dataset.loader import steps_per_epoch
from dfkd.distillation.text_only import check_texts
from dfkd.errors import ManifestError
from dfkd.evaluation.data import open_data
from dfkd.models.generators.generator import Generator
from dfkd.models.labeller import Labeller, check_classes, errors_name
from dfkd.models.student import Student, build
from dfkd.models.teacher import Teacher
from dfkd.operations.required_weights import towers
from dfkd.prompts.maker import check_prompts
from dfkd.prompts.styles import check_styled_prompts
from dfkd.utils.progress import say


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
    check_classes(teacher, manifest.meanings, manifest.teacher.template)
    check_prompts(manifest, teacher)
    for method in manifest.methods:
        single = manifest.with_method(method)
        single.source.check(single, teacher)
    if not manifest.follows_prompts:
        return teacher, None
    generator = manifest.generator.settings.load(cpu, "float32", cache)
    generator.require(teacher, manifest.synthesis.image_size)
    return teacher, generator


def note_surprises(manifest: Manifest, teacher: Teacher) -> None:
    """Say what generator and prompt methods want a person to know about these classes."""
    notes = []
    if manifest.follows_prompts:
        notes += manifest.generator.settings.notes(manifest.meanings)
    for single in map(manifest.with_method, manifest.methods):
        if single.follows_prompts:
            notes += single.prompt_settings.load(single, teacher).notes()
    for note in dict.fromkeys(notes):  # sources may share prompts
        say(f"note: {note}")


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


def check_distillation(manifest: Manifest) -> list[Student]:
    """Refuse students that cannot be built, or whose initial weights are missing.

    Returns them, one for each of `distillation.student`.
    """
    size, classes = manifest.synthesis.image_size, len(manifest.classes)
    return [
        build(manifest.distillation.of_student(each), classes, size, seed=0, cache=manifest.cache)
        for each in manifest.distillation.student
    ]


def check_batches(manifest: Manifest) -> None:
    """Refuse a batch size larger than the number of images."""
    steps_per_epoch(image_count(manifest), manifest.distillation.batch_size)


def check_evaluation(manifest: Manifest) -> None:
    """Refuse missing evaluation data or classes, and unusable towers of candidates.

    Only folder and file names are read, not the images.
    """
    if manifest.evaluation.scored:
        open_data(manifest.evaluation, manifest.classes)
    check_towers(manifest)


_ONE_FILE = 2e9
"""Bytes of the weights of one ONNX file at most: a protocol buffer has less than 2 GiB."""


def check_towers(manifest: Manifest) -> None:
    """Refuse labellers and towers that cannot be loaded, exported or tell the classes apart."""
    # Text-only classifiers are trained on candidates, and on the labeller for the results.
    tuned = list(manifest.towers.values()) if "text-only" in manifest.candidates.classifiers else []
    if "text-only" in manifest.evaluation.scored:
        tuned += manifest.labellers.values()
    labels, exported = [*manifest.labellers.values()], [*manifest.towers.values()]
    for section, config in towers(manifest).items():
        if section == "teacher" and config not in (*tuned, *exported):
            continue  # which synthesis checks
        with errors_name(section):
            cpu, cache = torch.device("cpu"), manifest.cache
            model: Labeller
            if config in tuned:
                model = teacher = Teacher.load(config, cpu, cache=cache)
                check_texts(teacher, manifest.meanings, config.template)
            else:
                model = Labeller.load(config, cpu, cache=cache)
                check_classes(model, manifest.meanings, config.template)
            size = 4 * sum(weight.numel() for weight in model.visual.parameters())
            if config in exported and size > _ONE_FILE:
                raise ManifestError(
                    "teacher.model",
                    "is a candidate, whose float32 image tower must have at most 2 GB",
                    f"{config.model} of {size / 1e9:.1f} GB",
                    "leave it out of candidates.towers",
                )
            if manifest.distillation.texts == "styles" and config in labels:
                check_styled_prompts(manifest, model)
