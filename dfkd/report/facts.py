"""Everything that a page shows, collected from a run's storage."""

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked
from safetensors import SafetensorError, safe_open

from dfkd.config.manifest import Average, Manifest
from dfkd.dataset.published import PublishedVersion, current, open_version, read_json
from dfkd.errors import CorruptionError, ManifestError
from dfkd.evaluation import footprint
from dfkd.evaluation.results import ResultRow, Summary, images_of, sort_rows, validate_results
from dfkd.models.student import WEIGHTS, read_card
from dfkd.report.gallery import (
    MAX_PER_CLASS,
    MAX_PICTURES,
    Gallery,
    Index,
    gallery,
    read_index,
    reduced_to_budget,
    shown_classes,
)
from dfkd.report.readers import (
    ExportedStudent,
    PromptFacts,
    TrainingCurve,
    read_curve,
    read_exported_student,
    read_prompts,
)
from dfkd.storage import cost_records, layout
from dfkd.storage.local import Storage
from dfkd.utils.strict_json import canonical
from dfkd.utils.types import CHECKED

ORIGIN = "report.json"
"""File with the facts that are not in the run's own objects, so that the page can be rewritten
from the folder alone.
"""

MAX_URI_CHARACTERS = 3_000_000
"""Maximum total length of all image URIs on a page."""

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Suffixes of tensors that are not parameters."""


@checked(frozen=True, config=CHECKED)
class RunOrigin:
    """Where a run came from; stored as report.json."""

    schema: Literal[1]
    command: str
    """Command that repeats the run."""
    commit: str | None
    """Commit of the checkout that the package was imported from."""
    manifest: dict[str, Any]
    students: Annotated[tuple[str, ...], Field(strict=False)]
    """Names of the folders under students/."""


@dataclass(frozen=True)
class MethodImages:
    """The published images of one method."""

    method: str
    version: PublishedVersion
    index: Index
    gallery: Gallery
    prompts: PromptFacts | None


@dataclass(frozen=True)
class TrainedStudent:
    """One trained student."""

    name: str
    """Name of its folder."""
    method: str
    seed: int
    architecture: str
    image_size: int
    parameters: int
    bytes: int
    sha256: str
    curve: TrainingCurve | None


@dataclass(frozen=True)
class ScoredModel:
    """The scores of one model and method over all domains and seeds."""

    summary: Summary
    confusion: npt.NDArray[Any]
    """Counts [M, M], true class x predicted class, summed over domains and seeds."""
    parameters: int
    """Number of parameters of the network."""
    ms: float | None
    """Milliseconds for one image on one core; None if not measured."""

    @property
    def label(self) -> str:
        """Name in charts and tables."""
        return label_of(self.summary["model"], self.summary["method"])

    @property
    def megabytes(self) -> float:
        """Size of the parameters in float32."""
        return footprint.megabytes(self.parameters)


def label_of(model: str, method: str) -> str:
    """Name of a model in charts and tables; a student is named after its method."""
    return {"teacher": model, "student": method}.get(model, f"{model} {method}")


@dataclass(frozen=True)
class Facts:
    """Everything about a run."""

    location: str
    name: str
    classes: tuple[str, ...]
    rows: list[ResultRow]
    average: Average
    """How accuracy on a domain is averaged."""
    images: dict[str, int]
    """Number of evaluation images by domain, in display order."""
    notes: tuple[str, ...]
    unreadable: tuple[str, ...]
    scored: list[ScoredModel]
    """The teacher first."""
    method_images: list[MethodImages]
    trained_students: list[TrainedStudent]
    entries: list[cost_records.CostRecord]
    exported_student: ExportedStudent | None
    origin: RunOrigin | None

    @property
    def teacher(self) -> ScoredModel | None:
        """The teacher's scores; None if it was not scored."""
        return next((s for s in self.scored if s.summary["model"] == "teacher"), None)

    @property
    def students(self) -> list[ScoredModel]:
        """The students' scores, in the order of methods."""
        return [s for s in self.scored if s.summary["model"] == "student"]

    @property
    def best(self) -> ScoredModel | None:
        """The student of the method with the highest mean; the first of equal ones."""
        return max(self.students, key=lambda s: s.summary["mean"], default=None)


def require_finished(storage: Storage) -> None:
    """Refuse a root without the results of a run (`ManifestError`)."""
    if not storage.exists("results.json"):
        raise ManifestError(
            "storage.root",
            "must hold a finished run, with results.json",
            storage.location(),
            "run jobs/pipeline.py first",
        )


def note_origin(
    storage: Storage, manifest: Manifest, command: str, students: Sequence[str]
) -> None:
    """Write report.json, so that the page can be rewritten without the manifest."""
    origin = RunOrigin(1, command, commit(), manifest.as_dict(), tuple(students))
    storage.put(ORIGIN, canonical(asdict(origin)))


def commit() -> str | None:
    """The commit of the checkout that contains this package; None outside a checkout."""
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    try:
        completed = subprocess.run(command, capture_output=True, text=True, timeout=10)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return completed.stdout.strip() or None if completed.returncode == 0 else None


def collect(storage: Storage, root: Storage | None = None, version: str = "") -> Facts:
    """Collect all facts of the finished run under a root.

    Args:
        storage: the run's root or, with `root`, a folder in it with results about `version`.
        root: root of the run that has the data, students and records for such a folder.
        version: id of a published version; empty for the current ones.

    Raises:
        ManifestError: the run is not finished.
        CorruptionError: an object of the run is damaged.
    """
    require_finished(storage)
    results = read_json(storage, "results.json")
    validate_results(results)
    classes = tuple(results["classes"])
    rows = sort_rows(results["rows"])
    origin = _origin(storage)
    ms = footprint.read(root or storage).ms
    scored = [
        _scored(summary, rows, len(classes), results["parameters"], ms)
        for summary in results["summary"]
    ]
    name = origin.manifest.get("name") if origin else None
    methods = [s.summary["method"] for s in scored if s.summary["model"] == "student"]
    return Facts(
        location=storage.location(),
        name=str(name or Path(storage.location()).name),
        classes=classes,
        rows=rows,
        average=results["average"],
        images=images_of(results),
        notes=tuple(results["data"]["notes"]),
        unreadable=tuple(results["data"]["unreadable"]),
        scored=scored,
        method_images=_method_images(root or storage, methods, classes, version),
        trained_students=_trained_students(root or storage, rows, origin),
        entries=[] if root else cost_records.read(storage),
        exported_student=read_exported_student(storage),
        origin=origin,
    )


def _origin(storage: Storage) -> RunOrigin | None:
    if not storage.exists(ORIGIN):
        return None
    try:
        return TypeAdapter(RunOrigin).validate_json(storage.get(ORIGIN), strict=True)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]["msg"]
        raise CorruptionError(
            f"{storage.location(ORIGIN)}: {problem}; delete it, and run jobs/report.py "
            "with the run's manifest"
        ) from None


def _scored(
    summary: Summary,
    rows: Sequence[ResultRow],
    classes: int,
    parameters: Mapping[str, int],
    ms: Mapping[str, float],
) -> ScoredModel:
    total = np.zeros((classes, classes), dtype=np.int64)
    for row in rows:
        if (row["model"], row["method"]) == (summary["model"], summary["method"]):
            total += np.array(row["confusion"], dtype=np.int64)
    model = summary["model"]
    return ScoredModel(summary, total, parameters[model], ms.get(model))


def _method_images(
    storage: Storage, methods: Sequence[str], classes: tuple[str, ...], version: str
) -> list[MethodImages]:
    """The published version of each scored method; of every method with data if no student was
    scored.
    """
    names = list(methods or storage.folders(layout.DATA))
    homes = {name: storage.child(layout.data(name)) for name in names}
    versions = {
        name: open_version(home, version) if version else current(home)
        for name, home in homes.items()
    }
    present = {
        name: published_version
        for name, published_version in versions.items()
        if published_version is not None and published_version.classes == classes
    }
    # Divide the limit on pictures among the strips first; `reduced_to_budget` then limits the
    # bytes.
    strips = len(shown_classes(classes)) * max(len(present), 1)
    per_class = min(MAX_PER_CLASS, max(MAX_PICTURES // strips, 1))
    indices = {name: read_index(version) for name, version in present.items()}
    galleries = reduced_to_budget(
        [gallery(version, indices[name], per_class) for name, version in present.items()],
        MAX_URI_CHARACTERS,
    )
    return [
        MethodImages(
            name,
            published_version,
            indices[name],
            method_gallery,
            read_prompts(published_version, name),
        )
        for (name, published_version), method_gallery in zip(
            present.items(), galleries, strict=True
        )
    ]


def _trained_students(
    storage: Storage, rows: Sequence[ResultRow], origin: RunOrigin | None
) -> list[TrainedStudent]:
    """The scored students: those that report.json names, or the only candidates."""
    named = set(origin.students) if origin else None
    folders = storage.folders(layout.STUDENTS)
    scored_keys = dict.fromkeys((r["method"], r["seed"]) for r in rows if r["model"] == "student")
    seeds = {method: sum(m == method for m, _ in scored_keys) for method, _ in scored_keys}
    students = []
    for method, seed in scored_keys:
        matching = [
            name
            for name in folders
            if name.startswith(f"{method}-s{seed}-") and (named is None or name in named)
        ]
        # Several folders match if settings were changed; without report.json the right one is
        # unknown.
        if len(matching) == 1:
            label = method if seeds[method] == 1 else f"{method} {seed}"
            student = _student(
                storage.child(layout.student(matching[0])), matching[0], method, seed
            )
            curve = read_curve(storage.child(layout.student(matching[0])), method, seed, label)
            students.append(TrainedStudent(**student, curve=curve))
    return students


def _student(storage: Storage, name: str, method: str, seed: int) -> dict[str, Any]:
    card = read_card(storage)
    return {
        "name": name,
        "method": method,
        "seed": seed,
        "architecture": card["architecture"],
        "image_size": card["image_size"],
        "parameters": _parameters(storage),
        "bytes": card["bytes"],
        "sha256": card["sha256"],
    }


def _parameters(storage: Storage) -> int:
    """Number of trainable values, from the header of the weights file."""
    with tempfile.TemporaryDirectory(prefix="dfkd-weights-") as folder:
        path = Path(folder, WEIGHTS)
        storage.get_file(WEIGHTS, path)
        try:
            with safe_open(path, "numpy") as tensors:
                return sum(
                    int(np.prod(tensors.get_slice(key).get_shape()))
                    for key in tensors.keys()  # noqa: SIM118 - it is no mapping
                    if not key.endswith(STATISTICS) and key not in ("mean", "std")
                )
        except SafetensorError as error:
            raise CorruptionError(
                f"{storage.location(WEIGHTS)}: {error}; delete the student's folder and distil "
                "again"
            ) from None
