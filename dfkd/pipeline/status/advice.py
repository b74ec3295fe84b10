"""The job that a person would run next, from what is finished."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dfkd.pipeline.status.students import StudentStatus
from dfkd.pipeline.status.versions import UNFINISHED, VersionStatus


@dataclass(frozen=True, kw_only=True)
class FileStatus:
    """Whether an object that is made from the finished students is there."""

    state: Literal["absent", "outdated", "finished", "not planned"]
    """`outdated`: it lacks a model of the manifest, or what it is made from was written later.
    `not planned`: the manifest has no images to score models on.
    """
    age_seconds: float | None = None


@dataclass(frozen=True)
class Step:
    """A job to run."""

    job: str
    options: tuple[str, ...] = ()
    remark: str = ""
    """What to know before it is run."""


@dataclass(frozen=True, kw_only=True)
class Stages:
    """The stages of a run and of what surrounds it."""

    planned: bool
    """Whether a manifest says what is to be made; else it is what was begun."""
    versions: Sequence[VersionStatus]
    students: Sequence[StudentStatus]
    evaluate: FileStatus
    report: FileStatus
    take_home: FileStatus
    """The student that `jobs/pipeline.py` exports."""
    regenerating: bool
    """Whether a regeneration is unfinished; with a manifest, one that it resumes."""
    study: bool
    """Whether the root is one of studies, whose results are elsewhere; False with a manifest."""

    def next(self) -> Step | None:
        """The first stage that is not finished; None if all are."""
        if self.regenerating:
            return Step("regenerate")
        step = self._synthesis() or self._distillation()
        if self.study:
            return step and Step("reproduce")
        if step:
            return step
        last = {"evaluate": self.evaluate, "report": self.report}
        # After a regeneration jobs/pipeline.py would make an older version current.
        if not any(version.regenerated for version in self.versions):
            last["pipeline"] = self.take_home
        for job, file in last.items():
            if file.state in ("absent", "outdated"):
                return self._abandoning(job) if job == "pipeline" else Step(job)
        return None

    def _synthesis(self) -> Step | None:
        """The step that finishes the versions; None if all are finished."""
        missing = [
            version
            for version in self.versions
            if (version.own and not version.ready if self.planned else version.state in UNFINISHED)
        ]
        if not missing:
            return None
        if removing := [str(version.id) for version in missing if version.state == "removing"]:
            return Step("clean", (), f"ends the removal of version {', '.join(removing)}")
        if (step := self._abandoning("synthesize")).options:
            return step
        quarantined = sum(len(version.quarantined) for version in missing)
        made = sum(version.shards.done for version in missing)
        if quarantined and quarantined + made == sum(version.shards.total for version in missing):
            remark = "tries quarantined tasks again; --accept-partial publishes without them"
            return Step("synthesize", (), remark)
        return step

    def _abandoning(self, job: str) -> Step:
        """A job that makes versions, which refuses unfinished ones of other manifests in any of its
        methods unless it is told to leave them behind.
        """
        others = [version.id for version in self.versions if not version.own and version.id]
        if not others:
            return Step(job)
        return Step(
            job,
            ("--abandon",),
            f"leaves unfinished version {', '.join(others)} of another manifest behind; "
            "without --abandon, finish it first with its own manifest",
        )

    def _distillation(self) -> Step | None:
        """The step that finishes the students; None if all are finished."""
        trained = {student.method for student in self.students}
        waiting = any(v.ready and v.method not in trained for v in self.versions)
        unfinished = any(student.state != "finished" for student in self.students)
        return Step("distill") if waiting or unfinished else None
