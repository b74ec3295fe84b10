"""Initial weights of a few-shot training: the distilled student, library weights or random ones.

All three have the architecture of `distillation.student`, take images of `synthesis.image_size` and
end in one linear layer over the manifest's classes. The student keeps its own layer, converted to
logits (`dfkd.lab.few_shot.tuning.from_distances`); the others get a random layer from the
few-shot seed.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch

from dfkd.config.distillation import weights_file
from dfkd.config.manifest import Manifest
from dfkd.distillation.student_names import weights_identity
from dfkd.distillation.student_store import StudentLocation, load_located, locate_student
from dfkd.errors import ManifestError
from dfkd.lab.few_shot.results import Curve, curves
from dfkd.lab.few_shot.settings import FewShot, Start
from dfkd.lab.few_shot.tuning import from_distances
from dfkd.models.student import Student, build, read_card


@dataclass(frozen=True)
class InitialWeights:
    """The initial weights of a start and few-shot seed."""

    start: Start
    weights: str
    """Identifies the backbone: equal texts mean equal weights."""
    make: Callable[[], Student]
    """Makes the classifier, whose outputs are logits, on the device to work on."""


def initial_weights(
    manifest: Manifest, start: Start, seed: int, device: torch.device
) -> InitialWeights:
    """The initial weights of a start for a few-shot seed.

    Seeds use the students of `distillation.seeds` in turn. With several, the standard deviation
    over seeds includes the variance of distillation; with one, it is over draws of images alone.

    Raises:
        ManifestError: the student is missing, or the library weights cannot be loaded.
    """
    if start == "student":
        location = student_of_seed(manifest, seed)
        sha256 = read_card(location.storage)["sha256"]
        return InitialWeights(
            start,
            f"student {sha256}",
            lambda: from_distances(load_located(location, manifest.classes, device)[0]),
        )
    config, size, weights = manifest.distillation, manifest.synthesis.image_size, f"seed {seed}"
    # Library weights are the same for every seed; random ones follow from it.
    if start == "library":
        weights = f"library {weights_identity(config.weights)}"
    else:
        # `build` refuses a warm-up of a random backbone, but it concerns distillation only.
        config = dataclasses.replace(config, weights="none", warmup_epochs=0)

    def make() -> Student:
        classes = len(manifest.classes)
        return build(config, classes, size, seed, manifest.cache).to(device)

    return InitialWeights(start, weights, make)


def student_of_seed(manifest: Manifest, seed: int) -> StudentLocation:
    """The location of a few-shot seed's student, which is of the last method (as the export).

    Raises:
        ManifestError: the student is not finished.
    """
    location = locate_student(manifest, manifest.methods[-1], student_seed(manifest, seed))
    if not location.finished:
        raise ManifestError(
            "--starts",
            f"needs the student of method {location.method} seed {location.seed} at "
            f"{location.location}",
            "student",
            "run jobs/distill.py with this manifest, or leave student out",
        )
    return location


def student_seed(manifest: Manifest, seed: int) -> int:
    """The distillation seed for a few-shot seed n: `distillation.seeds[n % len(seeds)]`."""
    seeds = manifest.distillation.seeds
    return seeds[seed % len(seeds)]


def check_starts(
    manifest: Manifest, config: FewShot, device: torch.device, students: bool = True
) -> None:
    """Make each start once, to raise errors before any training.

    Args:
        students: whether the start `student` is made too; a plan does not need it.

    Raises:
        ManifestError: as `initial_weights`, or there are no weights for the start `library`.
        CorruptionError: a student is damaged.
    """
    if "library" in config.starts and manifest.distillation.weights == "none":
        raise ManifestError(
            "--starts",
            "must do without library where distillation.weights is none",
            list(config.starts),
            "leave library out",
        )
    for start in config.starts:
        if start != "student":  # these differ between seeds in random numbers only
            initial_weights(manifest, start, config.seeds[0], device).make()
        elif students:
            once = {student_seed(manifest, seed): seed for seed in config.seeds}
            for seed in once.values():
                initial_weights(manifest, start, seed, device).make()


def curve_captions(manifest: Manifest, config: FewShot) -> dict[Curve, str]:
    """A description of each curve, for display."""
    library = manifest.distillation.weights
    if file := weights_file(library):
        library = file.name
    used = ", ".join(str(n) for n in sorted({student_seed(manifest, s) for s in config.seeds}))
    captions: dict[Curve, str] = {
        "untouched": "the distilled student before any training, on the same test images",
        "student": f"distilled, {manifest.methods[-1]} images, seed {used}",
        "library": f"weights {library}",
        "scratch": "random weights",
    }
    return {curve: captions[curve] for curve in curves(config.starts)}
