"""Where a run stores its students; `student_names.py` gives the names of their folders."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dfkd.config.identity import identity
from dfkd.config.manifest import Manifest
from dfkd.config.methods import Method
from dfkd.dataset.published import PublishedVersion, current, open_version
from dfkd.distillation.student_names import student_name, student_names
from dfkd.errors import CorruptionError, ManifestError, WeightsError
from dfkd.models.labeller import file_hashes
from dfkd.models.student import CARD, Student, load_student
from dfkd.storage import layout
from dfkd.storage.base import Storage
from dfkd.storage.local import open_existing


@dataclass(frozen=True)
class StudentLocation:
    """The folder of one student, which may be finished or not."""

    method: Method
    seed: int
    version: PublishedVersion
    """The data set that it is trained on."""
    architecture: str
    """Which of `distillation.student` it is."""
    name: str
    """Name of the folder, from `student_name`."""
    storage: Storage
    """The folder: `student.safetensors`, `student.json`, `tensorboard/` and `checkpoints/`."""

    @property
    def finished(self) -> bool:
        """Whether the trained student is in storage."""
        return self.storage.exists(CARD)

    @property
    def location(self) -> str:
        """Where its card is, for display."""
        return self.storage.location(CARD)


def locate_student(
    manifest: Manifest, method: Method, seed: int, version: str = ""
) -> StudentLocation:
    """The location of the student of a method and seed.

    Args:
        version: id of the published version that it is trained on; the current one if empty.

    Raises:
        ManifestError: nothing is published for this method, or for other classes or sizes.
        WeightsError: the file of the initial weights does not exist.
    """
    (location,) = locate_students(manifest, [(method, seed)], version)
    return location


def locate_students(
    manifest: Manifest, students: Sequence[tuple[Method, int]] | None = None, version: str = ""
) -> list[StudentLocation]:
    """As `locate_student`, for several methods and seeds; for all of the manifest if None.

    They are of the first architecture in `distillation.student`.

    A version is read once, because the receipts of a large one take tens of megabytes.
    """
    root = open_existing(manifest.storage.root, "run dfkd synthesize first")
    if students is None:
        students = [*itertools.product(manifest.methods, manifest.distillation.seeds)]
    data_sets, found = {}, []
    for method, seed in students:
        if method not in data_sets:
            home = root.child(layout.data(method))
            opened = open_version(home, version) if version else current(home)
            if opened is None:
                rule = f"must hold a published version of method {method}"
                place, remedy = manifest.storage.root, "run dfkd synthesize first"
                raise ManifestError("storage.root", rule, place, remedy)
            _require_own(manifest, method, opened)
            data_sets[method] = opened
        data_set = data_sets[method]
        name = student_name(manifest, data_set.fingerprint, method, seed)
        storage = root.child(layout.student(name))
        architecture = manifest.distillation.architecture
        found.append(StudentLocation(method, seed, data_set, architecture, name, storage))
    return found


def locate_candidates(manifest: Manifest, version: str = "") -> list[StudentLocation]:
    """The students that could be shipped: of each architecture and seed, on the last method's data.

    Arguments and errors are those of `locate_student`.
    """
    chosen = [(manifest.methods[-1], seed) for seed in manifest.distillation.seeds]
    return [
        location
        for architecture in manifest.distillation.student
        for location in locate_students(manifest.with_student(architecture), chosen, version)
    ]


def locate_all(manifest: Manifest) -> list[StudentLocation]:
    """Every student that a manifest trains: of each method and seed, and the other candidates."""
    first = locate_students(manifest)
    names = {each.name for each in first}
    return [*first, *(each for each in locate_candidates(manifest) if each.name not in names)]


def _require_own(manifest: Manifest, method: Method, version: PublishedVersion) -> None:
    """Raise `ManifestError` unless students of the manifest could learn from the version."""
    required = {
        "classes": manifest.as_dict()["classes"],  # with their meanings
        "synthesis.image_size": manifest.synthesis.image_size,
        "teacher.template": manifest.teacher.template,
    }
    _refuse_foreign(version, method, required)


def require_students(manifest: Manifest, root: Storage, version: PublishedVersion) -> None:
    """Check that a version has the students of a manifest with one method, or can get them.

    It only reads, so a plan may call it.

    Raises:
        ManifestError: the version has other classes, or another teacher made it.
        WeightsError: a file of initial weights or of the teacher is missing or damaged.
    """
    method, config = manifest.method, manifest.distillation
    _require_own(manifest, method, version)
    names = student_names(manifest, version.fingerprint, method)
    finished = all(root.child(layout.student(name)).exists(CARD) for name in names)
    # Only training needs the teacher.
    if not finished and (config.embeds or not config.stored_labels):
        check_teacher(manifest, method, version)


def _refuse_foreign(version: PublishedVersion, method: Method, required: dict[str, Any]) -> None:
    """Raise `ManifestError` if the version's identity has another value of a required field."""
    identity = version.facts["identity"]
    for field, value in required.items():
        if identity.get(field) != value:
            raise ManifestError(
                field,
                f"must be that of version {version.id} of method {method}, {identity.get(field)!r}",
                value,
                "run dfkd synthesize with this manifest first",
            )


def load_located(
    location: StudentLocation, classes: tuple[str, ...], device: torch.device
) -> tuple[Student, dict[str, Any]]:
    """The finished student at a location, in eval mode, and its card.

    Raises:
        CorruptionError: the files are damaged, or the student has other classes.
    """
    student, card = load_student(location.storage, device)
    if card["classes"] != list(classes):
        raise CorruptionError(
            f"{location.location}: is a student of {card['classes']}, not of the manifest's "
            "classes; delete its folder and distil again"
        )
    return student, card


def check_initial_weights(
    manifest: Manifest, version: PublishedVersion, method: Method, seed: int, name: str
) -> None:
    """Check that this node's initial weights and labellers are those after which a student was
    named.

    Raises:
        WeightsError: they differ, or are missing. Of a library's weights only the name is compared.
    """
    if student_name(manifest, version.fingerprint, method, seed) != name:
        config = manifest.distillation
        named = [config.initial_weights]
        if not config.labelled_by_teacher:
            named += [each.weights for each in manifest.labellers.values()]
        raise WeightsError(
            "distillation.weights" if config.labelled_by_teacher else "distillation",
            "must be the same on every node",
            f"{', '.join(named)}, with which {name} has another name",
            "copy the driver's files to each node",
        )


def check_teacher(manifest: Manifest, method: Method, version: PublishedVersion) -> None:
    """Check that a teacher that labels is the one that made the version.

    Call it on each node, because each node reads its own weight files. The files of other labellers
    are part of a student's name.

    Raises:
        ManifestError: the teacher differs; the message names the field.
        WeightsError: the teacher's files are missing or damaged.
    """
    if "teacher" not in manifest.distillation.labeller:
        return
    digests = file_hashes(manifest.teacher, manifest.cache)
    expected = identity(manifest.with_method(method), digests)
    # Keys of both, because some are there for some teachers only, such as `teacher.preprocessing`.
    keys = {*expected, *version.facts["identity"]}
    teachers = {key: expected.get(key) for key in sorted(keys) if key.startswith("teacher.")}
    _refuse_foreign(version, method, teachers)


def require_replaceable_classes(
    manifest: Manifest, method: Method, version: PublishedVersion
) -> None:
    """Check that the students of a version can get other classes from the manifest's labeller.

    Raises:
        ManifestError: they learn distances, or another teacher made the version.
        WeightsError: the teacher's files are missing or damaged.
    """
    require_embeddings(manifest)
    check_teacher(manifest, method, version)


def require_embeddings(manifest: Manifest) -> None:
    """Raise `ManifestError` if the manifest's students learn distances."""
    if not manifest.distillation.embeds:
        raise ManifestError(
            "distillation.target",
            "must be embedding or both for other classes: a student of distances has only its own",
            manifest.distillation.target,
            "distil with distillation.target=embedding or both",
        )
