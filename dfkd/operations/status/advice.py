"""The job that a person would run next, from what is finished."""

from collections.abc import Sequence
from dataclasses import dataclass

from dfkd.operations.status.schema import RunStatus
from dfkd.operations.status.versions import UNFINISHED, VersionStatus


@dataclass(frozen=True)
class Step:
    """A job to run."""

    job: str
    options: tuple[str, ...] = ()
    remark: str = ""
    """What to know before it is run."""


def next_step(status: RunStatus, *, planned: bool, regenerating: bool, study: bool) -> Step | None:
    """The first stage that is not finished; None if all are.

    Args:
        planned: whether a manifest says what is to be made; else it is what was begun.
        regenerating: whether a regeneration is unfinished; with a manifest, one that it resumes.
        study: whether the root is one of studies, whose results are elsewhere; False with a
            manifest.
    """
    if regenerating:
        return Step("regenerate")
    step = _synthesis(status.synthesize, planned) or _distillation(status)
    if study:
        return step and Step("reproduce")
    if step:
        return step
    last = {"evaluate": status.evaluate, "pipeline": status.candidates, "report": status.report}
    # After a regeneration dfkd pipeline would make an older version current.
    if any(version.regenerated for version in status.synthesize):
        del last["pipeline"]
    for job, file in last.items():
        if file.state in ("absent", "outdated"):
            return _abandoning(job, status.synthesize) if job == "pipeline" else Step(job)
    return None


def _synthesis(versions: Sequence[VersionStatus], planned: bool) -> Step | None:
    """The step that finishes the versions; None if all are finished."""
    missing = [
        version
        for version in versions
        if (version.own and not version.ready if planned else version.state in UNFINISHED)
    ]
    if not missing:
        return None
    if removing := [str(version.id) for version in missing if version.state == "removing"]:
        return Step("clean", (), f"ends the removal of version {', '.join(removing)}")
    if (step := _abandoning("synthesize", versions)).options:
        return step
    quarantined = sum(len(version.quarantined) for version in missing)
    made = sum(version.shards.done for version in missing)
    if quarantined and quarantined + made == sum(version.shards.total for version in missing):
        remark = "tries quarantined tasks again; --accept-partial publishes without them"
        return Step("synthesize", (), remark)
    return step


def _abandoning(job: str, versions: Sequence[VersionStatus]) -> Step:
    """A job that makes versions, which refuses unfinished ones of other manifests in any of its
    methods unless it is told to leave them behind.
    """
    others = [version.id for version in versions if not version.own and version.id]
    if not others:
        return Step(job)
    return Step(
        job,
        ("--abandon",),
        f"leaves unfinished version {', '.join(others)} of another manifest behind; "
        "without --abandon, finish it first with its own manifest",
    )


def _distillation(status: RunStatus) -> Step | None:
    """The step that finishes the students; None if all are finished."""
    trained = {student.method for student in status.distill}
    waiting = any(v.ready and v.method not in trained for v in status.synthesize)
    unfinished = any(student.state != "finished" for student in status.distill)
    return Step("distill") if waiting or unfinished else None
