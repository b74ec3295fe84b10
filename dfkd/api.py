"""The stages as functions: the public interface of `import dfkd`, also used by the jobs.

Each stage reads what the stage before has left in `storage.root`, resumes after a kill, and reuses
what is finished. If the caller has started Ray, it is used and left running. Otherwise the call
joins the cluster that RAY_ADDRESS names, or starts a local one and stops it at the end.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from dfkd.cluster.connection import cluster_address, connected
from dfkd.cluster.making import BuiltVersion, build, identify, is_published, require_space
from dfkd.cluster.students import FinishedStudent, distill_all
from dfkd.cluster.worker import synthesis_engine
from dfkd.config.manifest import Manifest
from dfkd.config.paths import manifest_file
from dfkd.config.presets import PRESETS
from dfkd.dataset.versions import refuse_unfinished
from dfkd.distillation.student_store import locate_all
from dfkd.errors import ManifestError
from dfkd.evaluation import scoring
from dfkd.evaluation.scoring import Evaluated
from dfkd.export.candidates import write_candidates
from dfkd.export.predict import FACTS
from dfkd.models.student import Student
from dfkd.models.student import load_student as load
from dfkd.operations.preflight import check_synthesis, note_surprises
from dfkd.report import page
from dfkd.report.contact_sheet import write_contact_sheet
from dfkd.storage import layout
from dfkd.storage.local import open_storage, open_to_read
from dfkd.utils.device import pick_device
from dfkd.utils.hardware import cpu_count, thread_limit
from dfkd.utils.images import decode_image, preprocess, read_picture
from dfkd.utils.pixels import from_bytes
from dfkd.utils.yaml import check, expand_preset, merge, read_tree

__all__ = [
    "BuiltVersion",
    "Evaluated",
    "FinishedStudent",
    "NamedStudent",
    "Picture",
    "distill",
    "evaluate",
    "export_candidates",
    "load_student",
    "read_manifest",
    "synthesize",
    "write_report",
]

Picture = str | Path | bytes | Image.Image
"""Path of a picture file, its encoded bytes, or an open PIL image."""


def read_manifest(path: str | Path, **values: Any) -> Manifest:
    """Read the manifest in a YAML file, with new values for some of its keys.

    Args:
        path: of the file, or the name of one that the package ships, e.g. `miniature`.
        **values: new values by key; a section is a mapping of the keys to change, e.g.
            `classes=["rocket", "tree"], synthesis={"steps": 50}`. Values are plain values or paths.
            A name with dots is that of a key in a section: `**{"synthesis.views": 4}`.

    Returns:
        The manifest that all stages take.

    Raises:
        ManifestError: the file or a value breaks a rule, which the text names.
    """
    tree = read_tree(manifest_file(path))
    for key, value in values.items():
        nested = _plain(value)
        for name in reversed(key.split(".")):
            nested = {name: nested}
        tree = merge(tree, nested)
    return check(Manifest, expand_preset(tree, PRESETS))


def _plain(value: Any) -> Any:
    """`value` with texts in place of paths, and dicts in place of other mappings."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def synthesize(
    manifest: Manifest,
    *,
    abandon: bool = False,
    accept_partial: bool = False,
    on_version: Callable[[BuiltVersion], object] = lambda built: None,
) -> list[BuiltVersion]:
    """Make prompts and images, and publish one version of the data set for each method.

    Args:
        manifest: of the run.
        abandon: abandon another manifest's unfinished work instead of refusing.
        accept_partial: publish although some tasks are quarantined.
        on_version: called with each version as soon as it is published.

    Returns:
        One version for each of `Manifest.methods`, in that order, with its counts.

    Raises:
        ManifestError: weights, names or sizes do not fit; nothing has been started.
        FingerprintError: another manifest's work is unfinished here.
        PartialError: tasks are quarantined; the same call tries them again.
        InfrastructureError: storage or cluster failed; the same call resumes.
    """
    note_surprises(manifest, check_synthesis(manifest)[0])
    singles = [manifest.with_method(method) for method in manifest.methods]
    planned = [(single, identify(single)) for single in singles]
    _check_all_methods_first(planned, abandon)
    versions = []
    engine = None
    with contextlib.ExitStack() as ray_runtime:
        for single, identity in planned:
            # A finished version needs no cluster; the others share one, and its workers.
            if engine is None and not is_published(single, identity):
                ray_runtime.enter_context(connected())
                engine = ray_runtime.enter_context(synthesis_engine(manifest.cluster))
            versions.append(build(single, identity, abandon, accept_partial, engine=engine))
            on_version(versions[-1])
    return versions


def _check_all_methods_first(
    planned: Sequence[tuple[Manifest, dict[str, Any]]], abandon: bool
) -> None:
    """Raise now the errors that would appear only after the first method's images are made: of
    unfinished work (unless `abandon`), or of a disk without room for all versions.
    """
    root = open_storage(planned[0][0].storage.root)
    for single, identity in planned:
        if not abandon:
            refuse_unfinished(root.child(layout.data(single.method)), identity)
    require_space(planned)


def distill(
    manifest: Manifest, *, on_student: Callable[[FinishedStudent], object] = lambda finished: None
) -> list[FinishedStudent]:
    """Train the students of a manifest on the current versions, or reuse finished ones.

    The first of `distillation.student` is trained for each method and seed, the others for each
    seed on the last method's images.

    Args:
        manifest: of the run.
        on_student: called with each student as soon as it is in storage.

    Returns:
        One student for each method and, within it, each of `distillation.seeds`; then those of the
        other architectures.

    Raises:
        ManifestError: nothing is published, or settings do not fit; nothing has been started.
        CorruptionError: a shard differs from its receipt.
        InfrastructureError: workers died too often; the same call resumes.
    """
    # Refuse a method without a published version before the students of another one are trained.
    located = locate_all(manifest)
    missing = [each for each in located if not each.finished]
    students = {}
    with connected() if _needs_ray(manifest, len(missing)) else contextlib.nullcontext():
        for finished in distill_all(manifest, located):
            students[finished.student.name] = finished
            on_student(finished)
    return [students[each.name] for each in located]


def _needs_ray(manifest: Manifest, students: int) -> bool:
    """Whether so many students train on a cluster, with several ranks, or side by side here.

    Otherwise the job does not wait for Ray to start.
    """
    if not students:
        return False
    if cluster_address() or manifest.distillation.rank_limits != (1, 1):
        return True
    gpus = torch.cuda.device_count() if manifest.cluster.gpus_per_worker != 0 else 0
    slots = gpus or cpu_count()
    return min(students, slots, manifest.cluster.workers or slots) > 1


def evaluate(manifest: Manifest, *, threads: int = 0, classes: Sequence[str] = ()) -> Evaluated:
    """Score the teacher, the text-only classifiers and all students, by domain and class.

    Writes `results.json` and, if there are students, `contact-sheet.png` under the run's root.
    Unreadable images are left out and listed in `results["data"]["unreadable"]`.

    Args:
        manifest: of the run; all its students must be finished.
        threads: CPU threads for the models and for decoding; 0 uses all that the process may use.
        classes: classes to score instead of the manifest's, without training again the students,
            which must be of embeddings. Only the results are written, into `other-classes/`.

    Returns:
        The results (see `dfkd.evaluation.results`) and their locations.

    Raises:
        ManifestError: unusable data, a missing student, or one that knows only its own classes;
            nothing has been scored.
        CorruptionError: a student is damaged.
        DfkdError: no image can be read.
    """
    with thread_limit(threads) as thread_count:
        folder = layout.OTHER_CLASSES if classes else ""
        evaluated = scoring.evaluate(manifest, thread_count, folder=folder, classes=tuple(classes))
        if classes:
            return evaluated
    if not evaluated.versions:
        return evaluated
    root = open_storage(manifest.storage.root)
    sheet = write_contact_sheet(root, manifest.name, evaluated.versions)
    return dataclasses.replace(evaluated, sheet=sheet)


def export_candidates(manifest: Manifest, *, threads: int = 0) -> str:
    """Export every candidate of a run, and score and time each as exported.

    Candidates are the students and the towers of `candidates.towers`. Their folders are under
    `candidates/` (`dfkd.export.folder` describes them), and their figures in `candidates.json`
    (`dfkd.export.candidates`). Without labelled images, a few more images are synthesised to
    compare on.

    Args:
        manifest: of a run whose students are finished.
        threads: as for `evaluate`.

    Returns:
        The location of `candidates.json`.

    Raises:
        ManifestError: a student is not finished.
        CorruptionError: a student or another object of the run is missing or damaged.
    """
    with thread_limit(threads) as thread_count:
        return write_candidates(manifest, thread_count)


def write_report(manifest: Manifest, command: str = "") -> str:
    """Write `report.html`, the page about a run, from the run's storage.

    Args:
        manifest: of an evaluated run.
        command: command that repeats the run; the page shows it.

    Returns:
        The location of the page.

    Raises:
        ManifestError: the run is not evaluated.
        CorruptionError: an object of the run is damaged.
    """
    return page.write(manifest, command)


@dataclass(frozen=True)
class NamedStudent:
    """A finished student that classifies pictures by class name."""

    student: Student
    """The network: pixels [N, 3, H, W] float32 in [0, 1] to distances [N, M]."""
    classes: tuple[str, ...]
    """The M class names, in the order of the distances."""
    image_size: int
    """Side in pixels of the network's input; pictures of any size are resized to it."""

    def distances(self, pictures: Sequence[Picture]) -> Tensor:
        """Distances of N pictures from each class.

        Returns:
            float32 [N, M] on the CPU: the student's estimates of the teacher's squared spherical
            distances; smaller is closer.

        Raises:
            TypeError: a single picture is given, not a sequence.
            ValueError: no picture is given, or one of them cannot be decoded.
            OSError: a file cannot be read.
        """
        if isinstance(pictures, str | bytes):
            raise TypeError("pictures: must be a list or another sequence, got one picture")
        resized = np.stack([_decoded(picture, self.image_size) for picture in pictures])
        batch = torch.from_numpy(resized).to(self.student.mean.device)
        with torch.inference_mode():
            distances: Tensor = self.student(from_bytes(batch).contiguous())
        return distances.cpu()

    def predict(self, pictures: Sequence[Picture]) -> list[str]:
        """The name of the nearest class of each picture; raises the errors of `distances`."""
        return [self.classes[index] for index in self.distances(pictures).argmin(dim=1).tolist()]


def _decoded(picture: Picture, image_size: int) -> npt.NDArray[np.uint8]:
    """The preprocessed picture, uint8 [S, S, 3] with S = `image_size`."""
    if isinstance(picture, Image.Image):
        return preprocess(picture, image_size)
    if isinstance(picture, bytes):
        return decode_image(picture, image_size)
    try:
        return decode_image(read_picture(picture), image_size)
    except ValueError as error:
        raise ValueError(f"{picture}: {error}") from None


def load_student(
    source: FinishedStudent | str | Path, device: torch.device | None = None
) -> NamedStudent:
    """Load a student returned by `distill`, or the one in a folder `{storage.root}/students/...`.

    Args:
        source: the student or its folder.
        device: device to run on; None uses the GPU if there is one.

    Raises:
        ManifestError: `source` is the exported student, which `dfkd.export.predict` runs.
        CorruptionError: an object is missing or damaged.
    """
    storage = (
        source.student.storage if isinstance(source, FinishedStudent) else open_to_read(str(source))
    )
    if storage.exists(FACTS):
        rule = "must be a folder {storage.root}/students/NAME, not an exported student"
        raise ManifestError("source", rule, storage.location(), "use dfkd.export.predict for it")
    student, card = load(storage, device or pick_device())
    return NamedStudent(student, tuple(card["classes"]), card["image_size"])
