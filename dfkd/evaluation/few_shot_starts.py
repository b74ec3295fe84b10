"""What a few-shot training starts from: the distilled student, library weights, or nothing.

All three have the architecture of `distillation.student`, take images of `synthesis.image_size` and
end in one linear layer over the manifest's classes. The student brings that layer along, as logits
(`dfkd.evaluation.few_shot_tuning.from_distances`); of the others it is fresh, drawn by the few-shot
seed.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from dfkd.config.distillation import Start
from dfkd.config.fingerprint import sha256_file
from dfkd.config.manifest import Manifest
from dfkd.distillation.student_store import StudentLocation, load_located, locate_student
from dfkd.errors import ManifestError
from dfkd.evaluation.few_shot_results import Curve, curves
from dfkd.evaluation.few_shot_tuning import from_distances
from dfkd.models.student import Student, build, names_file, read_card
from dfkd.models.weights.reading import existing_file

LIBRARY = "fewshot.library"


@dataclass(frozen=True)
class InitialWeights:
    """One start of one few-shot seed."""

    start: Start
    weights: str
    """Which ones: origins with the same text have the same backbone."""
    make: Callable[[], Student]
    """A classifier that gives logits, on the device to work on."""


def initial_weights(
    manifest: Manifest, start: Start, seed: int, device: torch.device
) -> InitialWeights:
    """The start of a few-shot seed.

    Of several students each seed takes another one, so that the standard deviation over seeds
    includes that of distillation.

    Raises:
        ManifestError: the student is not there, or the weights of a library do not fit.
    """
    if start == "student":
        found = student_of_seed(manifest, seed)
        sha256 = read_card(found.storage)["sha256"]
        return InitialWeights(start, f"student {sha256}", lambda: _student(manifest, found, device))
    weights = manifest.fewshot.library if start == "library" else "none"
    # A warm-up, which is distillation's own, is refused where the backbone is random.
    config = dataclasses.replace(manifest.distillation, weights=weights, warmup_epochs=0)
    size = manifest.synthesis.image_size

    def make() -> Student:
        classes = len(manifest.classes)
        return build(config, classes, size, seed, manifest.cache, LIBRARY).to(device)

    return InitialWeights(
        start, f"library {_digest(weights)}" if weights != "none" else f"seed {seed}", make
    )


def student_of_seed(manifest: Manifest, seed: int) -> StudentLocation:
    """Where the student of a few-shot seed lies: of the last method, as that to take home.

    Raises:
        ManifestError: it is not finished.
    """
    found = locate_student(manifest, manifest.methods[-1], student_seed(manifest, seed))
    if not found.finished:
        raise ManifestError(
            "fewshot.starts",
            f"needs the student of method {found.method} seed {found.seed} at {found.location}",
            list(manifest.fewshot.starts),
            "run jobs/distill.py with this manifest, or leave student out",
        )
    return found


def student_seed(manifest: Manifest, seed: int) -> int:
    """The distillation seed of the student that a few-shot seed takes."""
    seeds = manifest.distillation.seeds
    return seeds[seed % len(seeds)]


def _student(manifest: Manifest, found: StudentLocation, device: torch.device) -> Student:
    student, _ = load_located(found, manifest.classes, device)
    return from_distances(student)


def _digest(weights: str) -> str:
    return sha256_file(existing_file(LIBRARY, weights)) if names_file(weights) else weights


def check_starts(manifest: Manifest, device: torch.device) -> None:
    """Make each start once, so that what is missing or does not fit is refused before any work.

    Raises:
        ManifestError: as `initial_weights`, or `fewshot.library` names no weights.
        CorruptionError: a student is not what was written.
    """
    config = manifest.fewshot
    if "library" in config.starts and config.library == "none":
        raise ManifestError(
            LIBRARY, "must name weights", config.library, "leave library out of fewshot.starts"
        )
    for start in config.starts:
        students = {student_seed(manifest, seed): seed for seed in config.seeds}
        for seed in students.values() if start == "student" else config.seeds[:1]:
            initial_weights(manifest, start, seed, device).make()


def curve_captions(manifest: Manifest) -> dict[Curve, str]:
    """What each curve shows, for people."""
    config = manifest.fewshot
    library = Path(config.library).name if names_file(config.library) else config.library
    used = ", ".join(str(n) for n in sorted({student_seed(manifest, s) for s in config.seeds}))
    words: dict[Curve, str] = {
        "untouched": "the distilled student before any training, on the same test images",
        "student": f"distilled, {manifest.methods[-1]} images, seed {used}",
        "library": f"weights {library}",
        "scratch": "random weights",
    }
    return {curve: words[curve] for curve in curves(config.starts)}
