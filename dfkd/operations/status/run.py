"""The status of a whole run: its stages, and the command that goes on."""

import time
from collections.abc import Callable, Collection
from dataclasses import replace

from dfkd.config.identity import as_stored
from dfkd.config.manifest import Manifest
from dfkd.errors import CorruptionError, ManifestError
from dfkd.evaluation.results import read_results
from dfkd.export.choice import read_candidates
from dfkd.operations.attempts import Attempt, attempts
from dfkd.operations.status.activity import Activity
from dfkd.operations.status.advice import next_step
from dfkd.operations.status.schema import FileStatus, RunStatus
from dfkd.operations.status.students import (
    StudentStatus,
    expected_students,
    found_students,
    stored_students,
)
from dfkd.operations.status.versions import read_versions
from dfkd.storage import layout
from dfkd.storage.base import Storage

CLOCK_SECONDS = 1.5
"""An object counts as newer only by more than this, because S3 tells times in whole seconds."""

Command = Callable[[str], str]
"""Gives the command line that runs a job, from the job's name."""


def read_status(root: Storage, manifest: Manifest | None, command: Command) -> RunStatus:
    """Where the run under a root stands.

    Args:
        manifest: the status is that of its versions and students; None for all that are found.

    Raises:
        ManifestError: there is neither a manifest nor a run.
        CorruptionError: an object that says how far the run is, is damaged.
        InfrastructureError: the store does not answer.
    """
    activity, known = Activity.read(root), attempts(root)
    renewed = bool(known)
    # No other program writes folders under data/, so their names are methods.
    versions = [
        version
        for method in (manifest.methods if manifest else root.folders(layout.DATA))
        for version in read_versions(root, method, manifest, activity, renewed)
    ]
    listed, stored = time.time(), stored_students(root)
    own = [version for version in versions if version.own]
    students = (
        list(expected_students(manifest, own, stored, activity))
        if manifest
        else list(found_students(stored, activity))
    )
    finished = [listed - (s.age_seconds or 0.0) for s in students if s.state == "finished"]
    # Without a manifest, the newest student may be one that dfkd regenerate has refused.
    trained = max(finished, default=0.0) if manifest or not renewed else 0.0
    results = _written(root, layout.RESULTS)
    if not (manifest or versions or students or results):
        raise ManifestError(
            "manifest",
            "must be a manifest, or a root with versions, students or results of a run",
            root.location(),
            "give the manifest, or the storage.root of a run",
        )
    evaluate = report = candidates = FileStatus(state="not planned")
    exported = _written(root, layout.CANDIDATES)
    scored = manifest is None or bool(manifest.evaluation.scored)
    if scored:
        evaluate = _file(results, trained, not results or _scores_all(root, manifest, students))
    if scored or exported:
        report = _file(_written(root, layout.REPORT), max(results or 0.0, exported or 0.0))
    if exported or (students and manifest):
        of_others = exported and students and manifest and not _are_own(root, manifest, students)
        candidates = _file(exported, trained, not of_others)
    status = RunStatus(
        root=root.location().rstrip("/"),
        at_work=activity.holders,
        synthesize=tuple(versions),
        distill=tuple(students),
        evaluate=evaluate,
        report=report,
        candidates=candidates,
        cost=activity.cost,
    )
    step = next_step(
        status,
        planned=manifest is not None,
        # Only the newest attempt can be unfinished.
        regenerating=renewed and not known[-1].finished and _is_resumed(known[-1], manifest),
        study=manifest is None and any(root.folders(layout.CELLS)),
    )
    if step is None:
        return status
    names = sorted({each.holder for each in activity.holders})
    wait = f"once {names[0]} has ended" if names else ""
    if len(names) > 1:
        wait = f"once the {len(names)} processes at work have ended"
    command_line = " ".join((command(step.job), *step.options))
    return replace(status, next=command_line, remark="; ".join(filter(None, (step.remark, wait))))


def _is_resumed(attempt: Attempt, manifest: Manifest | None) -> bool:
    """Whether dfkd regenerate with the manifest resumes an attempt; True without a manifest."""
    if manifest is None:
        return True
    if manifest.methods != (attempt.method,):
        return False
    salted = replace(manifest, salt=attempt.number)
    return as_stored(salted, attempt.identity) == attempt.identity


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


def _are_own(root: Storage, manifest: Manifest, students: Collection[StudentStatus]) -> bool:
    """Whether the candidates in `candidates.json` are the students of the manifest."""
    try:
        measured = read_candidates(root)
    except CorruptionError:
        return False  # the next export writes it anew
    found = {name for candidate in measured.candidates for name in candidate.students}
    return found == {each.name for each in students if each.method == manifest.methods[-1]}


def _scores_all(
    root: Storage, manifest: Manifest | None, students: Collection[StudentStatus]
) -> bool:
    """Whether `results.json` scores every model of the manifest, and no other students than its
    own; True without a manifest.
    """
    if manifest is None:
        return True
    models = set(manifest.evaluation.models)
    try:
        results = read_results(root)
    except CorruptionError:
        return False  # dfkd evaluate writes them anew
    first = (None, manifest.distillation.architecture)  # of several; the others are candidates
    names = {each.name for each in students if each.architecture in first}
    if "student" in models and set(results["students"]) != names:
        return False
    return models <= {row["model"] for row in results["rows"]}
