"""Where a run's students lie, and which data set and settings each belongs to."""

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import Any

import torch

from dfkd.config.fingerprint import identity, sha256_file
from dfkd.config.manifest import Manifest
from dfkd.config.methods import Method
from dfkd.dataset.versions import PublishedVersion, current, open_version
from dfkd.errors import CorruptionError, ManifestError
from dfkd.models.student import CARD, Student, load_student, names_file
from dfkd.models.teacher import resolve
from dfkd.models.weights.reading import existing_file
from dfkd.prompts.styles import dictionary
from dfkd.storage import layout
from dfkd.storage.local import Storage, open_storage
from dfkd.utils.strict_json import canonical

TRAINING_ONLY_KEYS = ("seeds", "workers", "loader_workers", "checkpoint_epochs")
"""Settings that say how a student is trained, not which one: a training may go on with others."""


@dataclass(frozen=True)
class StudentLocation:
    """The folder of one student, trained or to be trained."""

    method: Method
    seed: int
    version: PublishedVersion
    """The data set it learns from."""
    name: str
    storage: Storage
    """The folder: `student.safetensors`, `student.json`, `tensorboard/`, `checkpoints/`."""

    @property
    def finished(self) -> bool:
        """Whether the student is there."""
        return self.storage.exists(CARD)

    @property
    def location(self) -> str:
        """Of its card, for people."""
        return self.storage.location(CARD)


def locate_student(
    manifest: Manifest, method: Method, seed: int, version: str = ""
) -> StudentLocation:
    """Where the student of a method and seed belongs.

    Args:
        version: id of a published version that it learns from; the current one if none is named.

    Raises:
        ManifestError: nothing published for this method, or for other classes or images.
        WeightsError: the initial weights are a file that is not there.
    """
    root = open_storage(manifest.storage.root)
    found = _published(manifest, root.child(layout.data(method)), method, version)
    name = student_name(manifest, found.fingerprint, method, seed)
    return StudentLocation(method, seed, found, name, root.child(layout.student(name)))


def _published(manifest: Manifest, home: Storage, method: Method, name: str) -> PublishedVersion:
    version = open_version(home, name) if name else current(home)
    if version is None:
        raise ManifestError(
            "storage.root",
            f"must hold a published version of method {method}",
            manifest.storage.root,
            "run jobs/synthesize.py first",
        )
    wanted = {
        "classes": list(manifest.classes),
        "synthesis.image_size": manifest.synthesis.image_size,
        "teacher.template": manifest.teacher.template,
    }
    _refuse_foreign(version, method, wanted)
    return version


def _refuse_foreign(version: PublishedVersion, method: Method, wanted: dict[str, Any]) -> None:
    found = version.manifest["identity"]
    for field, value in wanted.items():
        if found.get(field) != value:
            raise ManifestError(
                field,
                f"must be that of the current version of method {method}, {found.get(field)!r}",
                value,
                "run jobs/synthesize.py with this manifest first",
            )


def load_located(
    found: StudentLocation, classes: tuple[str, ...], device: torch.device
) -> tuple[Student, dict[str, Any]]:
    """The finished student at a place, in eval mode, and its card.

    Raises:
        CorruptionError: it is not what was written, or chooses among other classes.
    """
    student, card = load_student(found.storage, device)
    if card["classes"] != list(classes):
        raise CorruptionError(
            f"{found.location}: is a student of {card['classes']}, not of the manifest's "
            "classes; delete its folder and distil again"
        )
    return student, card


def check_teacher(manifest: Manifest, method: Method, version: PublishedVersion) -> None:
    """Refuse live labels from another teacher than the one that made the version.

    On each node, as each reads weight files of its own.

    Raises:
        ManifestError: it differs; the text names where.
        WeightsError: its files are missing or damaged.
    """
    digests = resolve(manifest.teacher, manifest.cache).digests
    wanted = identity(manifest.with_method(method), digests)
    teachers = {key: value for key, value in wanted.items() if key.startswith("teacher.")}
    _refuse_foreign(version, method, teachers)


def student_name(manifest: Manifest, fingerprint: str, method: Method, seed: int) -> str:
    """`{method}-s{seed}-{hash12}`: the hash covers all that says which student it is.

    Args:
        fingerprint: of the data set that it learns from.
    """
    config = manifest.distillation
    settings = dataclasses.asdict(config)
    for key in TRAINING_ONLY_KEYS:
        del settings[key]
    if names_file(config.weights):
        settings["weights"] = sha256_file(existing_file("distillation.weights", config.weights))
    identity = {"distillation": settings, "version": fingerprint, "seed": seed}
    if config.texts == "styles":
        identity["styles"] = [manifest.prompts.template, *dictionary(manifest.prompts)]
    return f"{method}-s{seed}-{hashlib.sha256(canonical(identity)).hexdigest()[:12]}"
