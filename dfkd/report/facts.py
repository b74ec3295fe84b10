"""What a page shows, collected from a run's storage: results, versions, students, origin."""

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
from dfkd.dataset.published import read_json
from dfkd.dataset.versions import PublishedVersion, current, open_version
from dfkd.errors import CorruptionError, ManifestError
from dfkd.evaluation import footprint
from dfkd.evaluation.results import ResultRow, Summary, images_of, sort_rows, validate_results
from dfkd.models.student import WEIGHTS, read_card
from dfkd.report.gallery import (
    MAX_PICTURES,
    PER_CLASS,
    Gallery,
    Index,
    gallery,
    read_index,
    shown_classes,
    thinned,
)
from dfkd.report.readers import (
    PromptFacts,
    Takehome,
    TrainingCurve,
    read_curve,
    read_prompts,
    read_takehome,
)
from dfkd.storage import cost_records, layout
from dfkd.storage.local import Storage
from dfkd.utils.strict_json import canonical
from dfkd.utils.types import CHECKED

ORIGIN = "report.json"
"""What a page needs beside the run's own objects, so that a folder is enough to write it again."""

URIS = 3_000_000
"""Characters of all images on a page."""

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Ends of the names of tensors that are no parameters."""


@checked(frozen=True, config=CHECKED)
class RunOrigin:
    """Where a run came from; kept as report.json."""

    schema: Literal[1]
    command: str
    """That makes the run, or finds it made."""
    commit: str | None
    """Of the checkout that the package was run from."""
    manifest: dict[str, Any]
    students: Annotated[tuple[str, ...], Field(strict=False)]
    """Names of the folders under students/."""


@dataclass(frozen=True)
class MethodImages:
    """The images of one prompt method."""

    method: str
    version: PublishedVersion
    index: Index
    gallery: Gallery
    prompts: PromptFacts | None


@dataclass(frozen=True)
class Trained:
    """One student."""

    name: str
    """Of its folder."""
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
    """One model and method over all domains and seeds."""

    summary: Summary
    confusion: npt.NDArray[Any]
    """M x M counts, true x predicted, summed over domains and seeds."""
    parameters: int
    """Of what answers an image."""
    ms: float | None
    """One image on one core; None where it was not measured."""

    @property
    def label(self) -> str:
        """What charts and tables call it."""
        return label_of(self.summary["model"], self.summary["method"])

    @property
    def megabytes(self) -> float:
        """Of the parameters in float32."""
        return footprint.megabytes(self.parameters)


def label_of(model: str, method: str) -> str:
    """What charts and tables call a model: a student by its method."""
    return {"teacher": model, "student": method}.get(model, f"{model} {method}")


@dataclass(frozen=True)
class Facts:
    """A whole run."""

    location: str
    name: str
    classes: tuple[str, ...]
    rows: list[ResultRow]
    average: Average
    """What accuracy on a domain is."""
    images: dict[str, int]
    """Evaluation images of each domain, in the order in which domains are shown."""
    notes: tuple[str, ...]
    unreadable: tuple[str, ...]
    scored: list[ScoredModel]
    """The teacher first."""
    made: list[MethodImages]
    trained: list[Trained]
    entries: list[cost_records.CostRecord]
    takehome: Takehome | None
    origin: RunOrigin | None

    @property
    def teacher(self) -> ScoredModel | None:
        """None if it was not scored."""
        return next((s for s in self.scored if s.summary["model"] == "teacher"), None)

    @property
    def students(self) -> list[ScoredModel]:
        """In the order of methods."""
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
    """Write report.json, from which a folder's page can be written without its manifest."""
    origin = RunOrigin(1, command, commit(), manifest.as_dict(), tuple(students))
    storage.put(ORIGIN, canonical(asdict(origin)))


def commit() -> str | None:
    """The commit of the checkout that this package lies in; None if it lies in none."""
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None


def collect(storage: Storage, root: Storage | None = None, version: str = "") -> Facts:
    """All facts of the finished run under a root.

    Args:
        storage: the run's root or, with `root`, a folder in it that holds results about `version`.
        root: of the run that has the data, students and records of such a folder.
        version: id of a published version; the current ones if none is named.

    Raises:
        ManifestError: no run has been finished there.
        CorruptionError: something that it left is damaged.
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
        made=_made(root or storage, methods, classes, version),
        trained=_trained(root or storage, rows, origin),
        entries=[] if root else cost_records.read(storage),
        takehome=read_takehome(storage),
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


def _made(
    storage: Storage, methods: Sequence[str], classes: tuple[str, ...], version: str
) -> list[MethodImages]:
    """The current version of each method; of all methods with data where no student was scored."""
    names = list(methods or storage.folders(layout.DATA))
    homes = {name: storage.child(layout.data(name)) for name in names}
    versions = {
        name: open_version(home, version) if version else current(home)
        for name, home in homes.items()
    }
    present = {name: v for name, v in versions.items() if v is not None and v.classes == classes}
    strips = len(shown_classes(classes)) * max(len(present), 1)
    per_class = min(PER_CLASS, max(MAX_PICTURES // strips, 1))
    indices = {name: read_index(version) for name, version in present.items()}
    galleries = thinned(
        [gallery(version, indices[name], per_class) for name, version in present.items()], URIS
    )
    return [
        MethodImages(name, v, indices[name], shown, read_prompts(v, name))
        for (name, v), shown in zip(present.items(), galleries, strict=True)
    ]


def _trained(
    storage: Storage, rows: Sequence[ResultRow], origin: RunOrigin | None
) -> list[Trained]:
    """The students that were scored: those that report.json names, or the only ones there are."""
    named = set(origin.students) if origin else None
    folders = storage.folders(layout.STUDENTS)
    keys = dict.fromkeys((r["method"], r["seed"]) for r in rows if r["model"] == "student")
    seeds = {method: sum(m == method for m, _ in keys) for method, _ in keys}
    found = []
    for method, seed in keys:
        matching = [
            name
            for name in folders
            if name.startswith(f"{method}-s{seed}-") and (named is None or name in named)
        ]
        if len(matching) == 1:
            label = method if seeds[method] == 1 else f"{method} {seed}"
            student = _student(
                storage.child(layout.student(matching[0])), matching[0], method, seed
            )
            curve = read_curve(storage.child(layout.student(matching[0])), method, seed, label)
            found.append(Trained(**student, curve=curve))
    return found


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
    """Numbers that training can change, from the header of the weights."""
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
