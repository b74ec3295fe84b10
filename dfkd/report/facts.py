"""Everything that the pages of a run show, collected from its storage by `collect`.

`gallery.py` reads a version's index and images.
"""

import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass as checked

from dfkd.config.distillation import Average
from dfkd.config.manifest import Manifest
from dfkd.dataset.published import PublishedVersion, current, open_version
from dfkd.errors import CorruptionError, as_utf8
from dfkd.evaluation.results import (
    ResultRow,
    Spread,
    Summary,
    images_of,
    read_results,
    sort_rows,
)
from dfkd.export.choice import Candidates, read_candidates
from dfkd.models.student import read_card
from dfkd.report.gallery import (
    MAX_PER_CLASS,
    MAX_PICTURES,
    Gallery,
    Index,
    gallery,
    read_index,
    shown_classes,
)
from dfkd.storage import cost_records, layout
from dfkd.storage.base import Storage
from dfkd.utils.strict_json import canonical, read_as
from dfkd.utils.types import CHECKED

UNSCORED: dict[str, Any] = {
    **{key: [] for key in ("classes", "rows", "summary", "students")},
    "average": "images",
    "data": {"domains": [], "notes": [], "unreadable": []},
}
"""What is shown of the results of a run without labelled images."""


@checked(frozen=True, config=CHECKED)
class RunOrigin:
    """Where a run came from; stored as report.json."""

    schema: Literal[1]
    command: str
    """Command that repeats the run."""
    commit: str | None
    """Commit of the checkout that the package was imported from."""
    manifest: dict[str, Any]


@dataclass(frozen=True)
class TrainedStudent:
    """One trained student."""

    name: str
    """Name of its folder."""
    method: str
    seed: int
    card: Mapping[str, Any]
    """The content of its student.json."""


@dataclass(frozen=True)
class MethodImages:
    """The published images of one method."""

    method: str
    version: PublishedVersion
    index: Index
    gallery: Gallery
    prompts: dict[str, Any]
    """Statistics of all prompts, as `prompts.statistics` describes them; empty without prompts."""


@dataclass(frozen=True)
class ScoredModel:
    """The scores of one model and method over all domains and seeds."""

    summary: Summary
    confusion: npt.NDArray[Any]
    """Counts [M, M], true class x predicted class, summed over domains and seeds."""
    parameters: int
    """Number of parameters of the network."""
    labeller: tuple[str, ...] = ("teacher",)
    """Who labelled (`results.json`)."""

    @property
    def label(self) -> str:
        """Name in charts and tables; a student is named after its method."""
        model, method = self.summary["model"], self.summary["method"]
        zero_shot = "teacher" if self.labeller == ("teacher",) else "labeller"
        return {"teacher": zero_shot, "student": method}.get(model, f"{model} {method}")

    def on(self, domain: str) -> Spread | None:
        """Accuracy on a domain, or the mean over domains for ''; None if it was not scored."""
        summary = self.summary
        if not domain:
            return Spread(mean=summary["mean"], std=summary["std"])
        return summary["domains"].get(domain)


@dataclass(frozen=True)
class Facts:
    """Everything about a run."""

    location: str
    """Location of the root, for display."""
    name: str
    classes: tuple[str, ...]
    average: Average
    """How accuracy on a domain is averaged."""
    images: dict[str, int]
    """Number of evaluation images by domain, in display order."""
    notes: tuple[str, ...]
    """Remarks on the evaluation data."""
    unreadable: tuple[str, ...]
    """Names of evaluation images that could not be read."""
    scored: list[ScoredModel]
    """The teacher first; empty for a run without labelled images."""
    method_images: list[MethodImages]
    trained_students: list[TrainedStudent]
    entries: list[cost_records.CostRecord]
    """What each stage cost."""
    origin: RunOrigin | None
    candidates: Candidates | None = None
    """What could be shipped; None for a run without candidates."""

    @property
    def teacher(self) -> ScoredModel | None:
        """The zero-shot scores of the labeller, by default the teacher; None if not scored."""
        return next((s for s in self.scored if s.summary["model"] == "teacher"), None)

    @property
    def students(self) -> list[ScoredModel]:
        """The students' scores, in the order of methods."""
        return [s for s in self.scored if s.summary["model"] == "student"]

    @property
    def learned(self) -> str:
        """What the students of the run learned: `distillation.target` of the first one."""
        targets = (student.card.get("target", "distances") for student in self.trained_students)
        manifest = self.origin.manifest if self.origin else {}
        planned = manifest.get("distillation", {}).get("target", "distances")
        return str(next(targets, planned))

    @property
    def best(self) -> ScoredModel | None:
        """The student of the method with the highest mean; the first of equal ones."""
        return max(self.students, key=lambda s: s.summary["mean"], default=None)


def note_origin(storage: Storage, manifest: Manifest, command: str) -> None:
    """Write report.json, so that the page can be rewritten without the manifest.

    The commit stays that of the first call for this manifest, because its code made the run.
    """
    origin = RunOrigin(1, command, commit(), manifest.as_dict())
    before = _read_origin(storage)
    if before and before.manifest == origin.manifest:
        origin = replace(origin, commit=before.commit)
    storage.put(layout.REPORT_FACTS, canonical(asdict(origin)))


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


def collect(storage: Storage, root: Storage | None = None) -> Facts:
    """Collect all facts of the finished run under a root.

    The data sets are those that the scored students learned from; without scores, the current ones.

    Args:
        storage: the run's root or, with `root`, a folder in it with results.
        root: root of the run that has the data, students and records for such a folder.

    Raises:
        ManifestError: the run is not finished.
        CorruptionError: an object of the run is damaged.
    """
    candidates = read_candidates(storage) if storage.exists(layout.CANDIDATES) else None
    origin = _read_origin(storage)
    # A run without labelled images has candidates and no results, or only those of an earlier one.
    evaluation = origin.manifest.get("evaluation") if origin else None
    unlabelled = isinstance(evaluation, Mapping) and evaluation.get("data") == "none"
    unscored = candidates is not None and (unlabelled or not storage.exists(layout.RESULTS))
    results = UNSCORED if unscored else read_results(storage)
    classes, rows = tuple(results["classes"]), sort_rows(results["rows"])
    run = root or storage
    scored = []
    for summary in results["summary"]:
        model, key = summary["model"], (summary["model"], summary["method"])
        confusions = [row["confusion"] for row in rows if (row["model"], row["method"]) == key]
        total = np.array(confusions, dtype=np.int64).sum(axis=0)
        labeller = tuple(results.get("labeller", ["teacher"]))
        scored.append(ScoredModel(summary, total, results["parameters"][model], labeller))
    students = _trained_students(run, rows, results["students"])
    # Never the current version of a method with a scored student: its scores are of another one.
    opened: dict[str, PublishedVersion | None]
    if any(model.summary["model"] == "student" for model in scored):
        learned = {student.method: student.card.get("version") for student in students}
        opened = {
            method: open_version(run.child(layout.data(method)), version[:16])
            for method, version in learned.items()
            if version
        }
    else:
        methods = run.folders(layout.DATA)
        opened = {method: current(run.child(layout.data(method))) for method in methods}
    if unscored:
        classes = next((version.classes for version in opened.values() if version), ())
    versions = {
        method: version
        for method, version in opened.items()
        if version and version.classes == classes
    }
    strips = max(len(shown_classes(classes)) * len(versions), 1)
    per_class = min(MAX_PER_CLASS, max(MAX_PICTURES // strips, 1))
    images = []
    for method, version in versions.items():
        index = read_index(version)
        prompts = version.prompts_summary() if version.facts.get("prompts") else {}
        shown = gallery(version, index, per_class)
        images.append(MethodImages(method, version, index, shown, prompts))
    name = origin.manifest.get("name") if origin else None
    location = as_utf8(storage.location())
    return Facts(
        location=location,
        name=str(name or Path(location).name),
        classes=classes,
        average=results["average"],
        images=images_of(results),
        notes=tuple(results["data"]["notes"]),
        unreadable=tuple(results["data"]["unreadable"]),
        scored=scored,
        method_images=images,
        trained_students=students,
        # The folder of a regeneration has none: those of the root are of all versions.
        entries=cost_records.read(storage),
        origin=origin,
        candidates=candidates,
    )


def _trained_students(
    storage: Storage, rows: Sequence[ResultRow], names: Collection[str]
) -> list[TrainedStudent]:
    """The scored students whose folders are still there.

    Args:
        names: of the folders of all scored students.

    Raises:
        CorruptionError: a student's card is damaged.
    """
    folders = set(names).intersection(storage.folders(layout.STUDENTS))
    scored = dict.fromkeys((r["method"], r["seed"]) for r in rows if r["model"] == "student")
    students = []
    for method, seed in scored:
        for name in folders:
            if name.startswith(f"{method}-s{seed}-"):
                card = read_card(storage.child(layout.student(name)))
                students.append(TrainedStudent(name, method, seed, card))
    return students


def _read_origin(storage: Storage) -> RunOrigin | None:
    """The content of report.json; None if there is none, `CorruptionError` if it is damaged."""
    if not storage.exists(layout.REPORT_FACTS):
        return None
    try:
        return read_as(TypeAdapter(RunOrigin), storage.get(layout.REPORT_FACTS))
    except ValueError as error:
        raise CorruptionError(
            f"{storage.location(layout.REPORT_FACTS)}: {error}; delete it and run "
            "dfkd pipeline again, which writes it anew"
        ) from None
