"""The status of a whole run: its stages, and the command that goes on."""

import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast

from dfkd.config.identity import as_stored
from dfkd.config.manifest import Manifest
from dfkd.config.methods import Method
from dfkd.distillation.student_names import exported_student
from dfkd.errors import CorruptionError, ManifestError
from dfkd.evaluation.results import CLASSIFIER, ZERO_SHOT, read_results
from dfkd.pipeline.attempts import Attempt, attempts
from dfkd.pipeline.status.activity import Activity, Cost, Holder
from dfkd.pipeline.status.advice import FileStatus, Stages
from dfkd.pipeline.status.students import (
    StudentStatus,
    expected_students,
    found_students,
    stored_students,
)
from dfkd.pipeline.status.versions import VersionStatus, read_versions
from dfkd.storage import layout
from dfkd.storage.base import Storage

CLOCK_SECONDS = 1.5
"""An object counts as newer only by more than this, because S3 tells times in whole seconds."""

Command = Callable[[str], str]
"""Gives the command line that runs a job, from the job's name."""


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """Where a run stands. `as_dict` is what `jobs/status.py --json` prints."""

    schema: Literal[1] = 1
    root: str
    at_work: tuple[Holder, ...]
    """The processes that hold leases. An evaluation or a report takes none."""
    synthesize: tuple[VersionStatus, ...]
    distill: tuple[StudentStatus, ...]
    evaluate: FileStatus
    """Of `results.json`."""
    report: FileStatus
    """Of `report.html`."""
    take_home: FileStatus
    """Of the exported student."""
    cost: tuple[Cost, ...]
    """One for each stage, method and seed, over all versions."""
    next: str | None
    """The command that goes on; None if there is nothing to do."""
    remark: str
    """What to know before running that command; may be empty."""

    def as_dict(self) -> dict[str, Any]:
        """All fields as plain values."""
        return asdict(self)


def read_status(root: Storage, manifest: Manifest | None, command: Command) -> RunStatus:
    """Where the run under a root stands.

    Args:
        manifest: the status is that of its versions and students; None for all that are found.

    Raises:
        ManifestError: there is neither a manifest nor a run.
        CorruptionError: an object that says how far the run is, is damaged.
        InfrastructureError: the store does not answer.
    """
    activity = Activity.read(root)
    stages = _stages(root, manifest, activity)
    step = stages.next()
    remarks = [step.remark, _wait(activity)] if step else []
    return RunStatus(
        root=root.location().rstrip("/"),
        at_work=activity.holders,
        synthesize=tuple(stages.versions),
        distill=tuple(stages.students),
        evaluate=stages.evaluate,
        report=stages.report,
        take_home=stages.take_home,
        cost=activity.cost,
        next=" ".join((command(step.job), *step.options)) if step else None,
        remark="; ".join(filter(None, remarks)),
    )


def _wait(activity: Activity) -> str:
    """The remark that names the processes at work; empty without any."""
    names = sorted({each.holder for each in activity.holders})
    if len(names) > 1:
        return f"once the {len(names)} processes at work have ended"
    return f"once {names[0]} has ended" if names else ""


def _stages(root: Storage, manifest: Manifest | None, activity: Activity) -> Stages:
    """The stages of a run; raises as `read_status`."""
    known = attempts(root)
    versions = _versions(root, manifest, activity, bool(known))
    listed = time.time()
    students = _students(root, manifest, versions, activity)
    finished = [listed - (s.age_seconds or 0.0) for s in students if s.state == "finished"]
    # Without a manifest, the newest student may be one that jobs/regenerate.py has refused.
    trained = max(finished, default=0.0) if manifest or not known else 0.0
    results = _written(root, layout.RESULTS)
    if not (manifest or versions or students or results):
        raise ManifestError(
            "manifest",
            "must be a manifest, or a root with versions, students or results of a run",
            root.location(),
            "give the manifest, or the storage.root of a run",
        )
    evaluate, report = FileStatus(state="not planned"), FileStatus(state="not planned")
    if manifest is None or manifest.evaluation.scored:
        evaluate = _file(results, trained, not results or _scores_all(root, manifest, students))
        report = _file(_written(root, layout.REPORT), results or 0.0)
    take_home = FileStatus(state="not planned")
    if students and manifest is not None:
        exported = _written(root, layout.TAKE_HOME)
        take_home = _file(exported, trained, not exported or _is_own(root, manifest, students))
    return Stages(
        planned=manifest is not None,
        versions=versions,
        students=students,
        evaluate=evaluate,
        report=report,
        take_home=take_home,
        # Only the newest attempt can be unfinished.
        regenerating=bool(known) and not known[-1].finished and _is_resumed(known[-1], manifest),
        study=manifest is None and any(root.folders(layout.CELLS)),
    )


def _is_resumed(attempt: Attempt, manifest: Manifest | None) -> bool:
    """Whether jobs/regenerate.py with the manifest resumes an attempt; True without a manifest."""
    if manifest is None:
        return True
    if manifest.methods != (attempt.method,):
        return False
    salted = replace(manifest, salt=attempt.number)
    return as_stored(salted, attempt.identity) == attempt.identity


def _versions(
    root: Storage, manifest: Manifest | None, activity: Activity, renewed: bool
) -> tuple[VersionStatus, ...]:
    """The versions of each method; see `read_versions`."""
    # No other program writes folders under data/, so their names are methods.
    methods = manifest.methods if manifest else cast(tuple[Method, ...], root.folders(layout.DATA))
    return tuple(
        version
        for method in methods
        for version in read_versions(root, method, manifest, activity, renewed)
    )


def _students(
    root: Storage,
    manifest: Manifest | None,
    versions: tuple[VersionStatus, ...],
    activity: Activity,
) -> tuple[StudentStatus, ...]:
    """The students of the manifest, or all that are stored."""
    stored = stored_students(root)
    if manifest is None:
        return tuple(found_students(stored, activity))
    own = [version for version in versions if version.own]
    return tuple(expected_students(manifest, own, stored, activity))


def _written(root: Storage, key: str) -> float | None:
    """When an object was written, in seconds since 1970; None if there is none."""
    return next((entry.written for entry in root.entries(key) if entry.key == key), None)


def _file(written: float | None, sources: float, complete: bool = True) -> FileStatus:
    """The status of an object.

    Args:
        written: when it was written; None if it does not exist.
        sources: when the newest of what it is made from was written.
        complete: whether everything is in it.
    """
    if written is None:
        return FileStatus(state="absent")
    current = complete and sources <= written + CLOCK_SECONDS
    age = max(0.0, time.time() - written)
    return FileStatus(state="finished" if current else "outdated", age_seconds=age)


def _is_own(root: Storage, manifest: Manifest, students: Collection[StudentStatus]) -> bool:
    """Whether `student/` is the student that the manifest exports, see `dfkd.take_home`."""
    own = manifest.methods[-1], manifest.distillation.seeds[0]
    try:
        name = exported_student(root)
    except CorruptionError:
        return False  # the next export writes it anew
    return name in {each.name for each in students if (each.method, each.seed) == own}


def _scores_all(
    root: Storage, manifest: Manifest | None, students: Collection[StudentStatus]
) -> bool:
    """Whether `results.json` scores every model of the manifest, and no other students than its
    own; True without a manifest.
    """
    if manifest is None:
        return True
    seeds, models = manifest.distillation.seeds, manifest.evaluation.models
    expected: set[tuple[str, str, int]] = set()
    if "teacher" in models:
        expected.add(("teacher", ZERO_SHOT, 0))
    if "text-only" in models:
        expected |= {("text-only", CLASSIFIER, seed) for seed in seeds}
    if "student" in models:
        expected |= {("student", method, seed) for method in manifest.methods for seed in seeds}
    try:
        results = read_results(root)
    except CorruptionError:
        return False  # jobs/evaluate.py writes them anew
    if "student" in models and set(results["students"]) != {each.name for each in students}:
        return False
    return expected <= {(row["model"], row["method"], row["seed"]) for row in results["rows"]}
