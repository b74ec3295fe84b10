"""What `dfkd status` tells of a run."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from dfkd.operations.status.activity import Cost, Holder
from dfkd.operations.status.students import StudentStatus
from dfkd.operations.status.versions import VersionStatus


@dataclass(frozen=True, kw_only=True)
class FileStatus:
    """Whether an object that is made from the finished students is there."""

    state: Literal["absent", "outdated", "finished", "not planned"]
    """`outdated`: it lacks a model of the manifest, or what it is made from was written later.
    `not planned`: the manifest has no images to score models on; or of a run without a manifest
    there is no such object.
    """
    age_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """Where a run stands. `as_dict` is what `dfkd status --json` prints."""

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
    candidates: FileStatus
    """Of `candidates.json`."""
    cost: tuple[Cost, ...]
    """One for each stage, method and seed, over all versions."""
    next: str | None = None
    """The command that goes on; None if there is nothing to do."""
    remark: str = ""
    """What to know before running that command; may be empty."""

    def as_dict(self) -> dict[str, Any]:
        """All fields as plain values."""
        return asdict(self)
