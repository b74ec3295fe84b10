"""A status as lines for a terminal, and as one line for a log."""

from collections.abc import Iterator

from tqdm import tqdm

from dfkd.errors import printable_line
from dfkd.operations.status.schema import FileStatus, RunStatus
from dfkd.operations.status.students import StudentStatus
from dfkd.operations.status.versions import VersionStatus
from dfkd.storage import layout
from dfkd.utils.markdown import align

MAX_REASONS = 10
"""Quarantined tasks of a version whose reasons are shown; `--json` has all."""

Row = tuple[str, str, str, str]
"""Stage, subject, state and details."""


def text(status: RunStatus) -> str:
    """The whole status, without a final newline; its last line is the next command."""
    lines = [status.root, *align(list(_rows(status)), left=4, gap="  ")]
    remark = f"   # {status.remark}" if status.remark else ""
    lines.append(f"next: {status.next or 'nothing to do'}{remark}")
    # Reasons and names of holders come from storage, and must not forge a line or move a cursor.
    return "\n".join(map(printable_line, lines))


def line(status: RunStatus) -> str:
    """The status as one line that changes only when something was made, failed or finished."""
    versions = (
        f"{v.method} {v.shards.done}/{v.shards.total} shards"
        + (f" ({len(v.quarantined)} quarantined)" if v.quarantined else "")
        for v in status.synthesize
    )
    finished = sum(student.state == "finished" for student in status.distill)
    students = [f"{finished}/{len(status.distill)} students"]
    students += [f"{_name(s)} {_progress(s)}" for s in status.distill if s.step]
    files = (f"{layout.RESULTS} {status.evaluate.state}", f"{layout.REPORT} {status.report.state}")
    remark = f" # {status.remark}" if status.remark else ""
    parts = [*versions, *students, *files, f"next: {status.next or 'nothing to do'}{remark}"]
    return printable_line("; ".join(parts))


def _rows(status: RunStatus) -> Iterator[Row]:
    """Yield the rows of the table."""
    for version in status.synthesize:
        yield "synthesize", version.method, _state(version), _version(version)
        reasons = sorted(version.quarantined.items())
        for task, reason in reasons[:MAX_REASONS]:
            yield "", task, "quarantined", reason or "reason not stored"
        if len(reasons) > MAX_REASONS:
            more = f"{len(reasons) - MAX_REASONS} more"
            yield "", more, "quarantined", "--json prints all of them"
    for student in status.distill:
        yield "distill", _name(student), student.state, _student(student)
    yield "evaluate", layout.RESULTS, status.evaluate.state, _age(status.evaluate)
    yield "report", layout.REPORT, status.report.state, _age(status.report)
    yield "export", layout.CANDIDATES, status.candidates.state, _age(status.candidates)
    for stage in dict.fromkeys(cost.stage for cost in status.cost):
        ended = [cost for cost in status.cost if cost.stage == stage]
        spent, worked = (
            _time(sum(values))
            for values in zip(*((cost.seconds, cost.worker_seconds) for cost in ended), strict=True)
        )
        size = tqdm.format_sizeof(sum(cost.bytes for cost in ended), "B")
        made = "images made" if stage == "synthesize" else "images seen"
        images = f"{made} {sum(cost.images for cost in ended)}"
        yield "cost", stage, "so far", f"{spent}, workers {worked}, {images}, {size}"
    for holder in status.at_work:
        details = ", ".join((f"for {_time(holder.since_seconds)}", *holder.versions))
        lease = f"lease ends in {_time(holder.expires_seconds)} unless it is renewed"
        yield "at work", holder.holder, "", f"{details}; {lease}"


def _state(version: VersionStatus) -> str:
    """The state of a version in words."""
    if version.state == "published" and not version.current:
        return "not current"
    return version.state


def _version(version: VersionStatus) -> str:
    """The details of a version."""
    facts = [version.id or "not begun"]
    if not version.own:
        facts.append("of another manifest")
    if version.prompts.done < version.prompts.total:
        facts.append(f"prompts {version.prompts.done}/{version.prompts.total}")
    facts.append(f"shards {version.shards.done}/{version.shards.total}")
    facts.append(f"images {version.images.done}/{version.images.total}")
    if version.failed_images:
        facts.append(f"{version.failed_images} images failed")
    if version.newest_shard_seconds is not None:
        facts.append(f"newest shard {_time(version.newest_shard_seconds)} ago")
    return ", ".join((*facts, *_pace(version.images_per_second, version.seconds_left)))


def _name(student: StudentStatus) -> str:
    """A student's method, architecture if there are several, and seed."""
    named = (student.method, student.architecture, f"seed {student.seed}")
    return " ".join(filter(None, named))


def _student(student: StudentStatus) -> str:
    """The details of a student."""
    facts = [student.name or "its version is not begun"]
    if student.step:
        facts.append(_progress(student))
    if student.age_seconds is not None:
        what = "finished" if student.state == "finished" else "newest checkpoint"
        facts.append(f"{what} {_time(student.age_seconds)} ago")
    return ", ".join((*facts, *_pace(student.images_per_second, student.seconds_left)))


def _progress(student: StudentStatus) -> str:
    """How far a training is: in epochs, or in steps if their number in an epoch is not known."""
    if student.epoch is None:
        return f"step {student.step}"
    return f"epoch {student.epoch:.4g}/{student.epochs}"


def _pace(rate: float | None, left: float | None) -> Iterator[str]:
    """Yield the rate and the time left, if they are known."""
    if rate is not None and left:
        yield f"{rate:.3g} images/s"
        yield f"{_time(left)} left"


def _age(file: FileStatus) -> str:
    """The age of an object, if it is there."""
    return "" if file.age_seconds is None else f"written {_time(file.age_seconds)} ago"


def _time(seconds: float) -> str:
    """3723 as `1:02:03`, 62 as `01:02`."""
    return str(tqdm.format_interval(seconds))
