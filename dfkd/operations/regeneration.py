"""A complete regeneration: make the challenger, train students, score, decide, accept.

Every step stores its result, so a killed call loses only its last step; the same command resumes.
"""

import dataclasses
import math
import statistics
from dataclasses import dataclass
from typing import Any

from dfkd.cluster import students
from dfkd.cluster.connection import connected
from dfkd.cluster.making import build, identify
from dfkd.config.manifest import Manifest
from dfkd.config.plan import fresh_tasks, image_count, task_count
from dfkd.dataset.published import (
    PublishedVersion,
    advance,
    open_version,
    pointers,
    refuse_removal,
)
from dfkd.distillation.student_store import locate_candidates, require_students
from dfkd.errors import GateError, ManifestError, PartialError
from dfkd.evaluation.scoring import evaluate
from dfkd.export import candidates, choice
from dfkd.operations import attempts
from dfkd.operations.attempts import Attempt, Decision
from dfkd.operations.preflight import check_later_stages, check_synthesis, note_surprises
from dfkd.report import compare, page
from dfkd.report.contact_sheet import write_contact_sheet
from dfkd.report.facts import Facts, collect, note_origin
from dfkd.storage import layout
from dfkd.storage.base import Storage
from dfkd.storage.lease import Lease, holding
from dfkd.storage.local import open_storage, open_to_read, root_exists
from dfkd.utils.hardware import thread_limit

LEASE = "regenerate"


def plan(manifest: Manifest) -> dict[str, Any]:
    """What the next call would do, as far as it can be known beforehand."""
    _check(manifest)
    config = manifest.regeneration
    salt, current = manifest.salt, None
    # A plan changes nothing.
    if root_exists(manifest.storage.root):
        root = open_to_read(manifest.storage.root)
        current = attempts.current_of(root, manifest.method)
        if current:
            require_students(manifest, root, current)
        _shipped_student(root, manifest)
        unfinished = attempts.unfinished(root)
        salt = unfinished.number if unfinished else attempts.next_number(root, current, manifest)
    fresh_count, fresh_images = task_count(manifest), image_count(manifest)
    # All other shards are carried over.
    if current and not config.whole:
        fresh = list(fresh_tasks(dataclasses.replace(manifest, salt=salt)))
        fresh_count, fresh_images = len(fresh), sum(task.count for task in fresh)
    return {
        "method": manifest.method,
        "tasks": task_count(manifest),
        "salt": salt,
        "current": current.id if current else None,
        "fresh_tasks": fresh_count,
        "fresh_images": fresh_images,
        "worker_seconds_cap": config.worker_seconds,
        "students": len(manifest.distillation.seeds)
        * len(manifest.distillation.student)
        * (2 if current else 1),
    }


def regenerate(
    manifest: Manifest, command: str, *, abandon: bool, accept_partial: bool, threads: int
) -> str:
    """Make, train, score and decide, or resume an unfinished attempt; returns the page's location.

    Args:
        command: the command line that repeats this; results and report show it.
        abandon: abandon an unfinished attempt and begin the next one.
        accept_partial: publish the challenger although tasks are quarantined.
        threads: CPU threads for scoring; 0 uses all.

    Raises:
        LeaseError: another regeneration is running.
        BudgetError: a budget limit was reached; the same command resumes.
        PartialError: tasks are quarantined, or evaluation images could not be read.
        GateError: the challenger was refused; `current` is unchanged.
    """
    _check(manifest)
    root = open_storage(manifest.storage.root)
    shipped = _shipped_student(root, manifest)
    with holding(root, LEASE) as lease, connected():
        attempt = _begin(root, manifest, abandon)
        print(f"regeneration {attempt.number}: version {attempt.challenger}", flush=True)
        salted = dataclasses.replace(manifest, salt=attempt.number)
        run = _Run(salted, attempt, lease, command, threads, shipped)
        challenger = run.build(abandon, accept_partial)
        # Stop here if another process took over the lease while the challenger was built.
        lease.fence()
        decision = attempt.decision or run.decide(challenger)
        page = attempt.storage.location(layout.COMPARISON)
        if decision.current:
            print(f"old and new side by side {page}", flush=True)
        # Accept before finishing: if it is killed between the two, the same command accepts again.
        if decision.accepted:
            page = run.accept(decision)
        attempt.finish()
    if decision.accepted:
        return page
    if decision.current:
        print(f"wrote {page}", flush=True)
    reasons = (
        f"{rule.text}, got {rule.value}" + (f" after {rule.before}" if rule.before else "")
        for rule in decision.rules
        if not rule.holds
    )
    raise GateError(
        f"regeneration {attempt.number}: version {attempt.challenger} does not become current "
        f"({'; '.join(reasons)}); it stays for inspection until dfkd clean removes it"
    )


def _check(manifest: Manifest) -> None:
    """Refuse a manifest whose challenger or students could not be made, trained or scored."""
    attempts.require_comparable(manifest)
    check_later_stages(manifest)
    note_surprises(manifest, check_synthesis(manifest)[0])


def _begin(root: Storage, manifest: Manifest, abandon: bool) -> Attempt:
    """The unfinished attempt, or the next one."""
    method = manifest.method
    unfinished = attempts.unfinished(root)
    if unfinished and abandon:
        unfinished.finish()
        key = f"{layout.data(unfinished.method)}/{layout.version(unfinished.challenger)}"
        root.put(f"{key}/{layout.ABANDONED}", b"")
        unfinished = None
    current = attempts.current_of(root, method)
    # An unfinished attempt keeps its base, even if another version has become current meanwhile.
    if unfinished:
        number, base = unfinished.number, unfinished.base
    else:
        number = attempts.next_number(root, current, manifest)
        base = current.fingerprint if current and not manifest.regeneration.whole else ""
    identity = identify(dataclasses.replace(manifest, salt=number), base)
    if base and current and current.fingerprint == base:
        attempts.require_same_settings(current, identity)
    # The gate compares its students with those of the challenger, which cost hours until then.
    if current:
        require_students(manifest, root, current)
    attempt = attempts.begin(root, number, identity)
    # The claim keeps the base from being removed; a removal that began before it shows here.
    if base:
        refuse_removal(root.child(layout.data(method)), base[:16])
    return attempt


def _shipped_student(root: Storage, manifest: Manifest) -> tuple[str, str]:
    """Architecture and precision of the file in `shipped/`, or the first student's in float32.

    Raises:
        ManifestError: a tower is shipped, which new images do not change, or another student.
    """
    shipped = choice.read_shipped(root)
    if shipped is None:
        return manifest.distillation.architecture, "float32"
    if shipped.candidate not in manifest.distillation.student:
        raise ManifestError(
            "distillation.student",
            f"must have {shipped.candidate}, which {layout.SHIPPED} holds and the gate compares",
            list(manifest.distillation.student),
            "add it, or ship a student with dfkd ship; a tower does not change with the images",
        )
    return shipped.candidate, shipped.precision


@dataclass(frozen=True)
class _Run:
    """The steps of one regeneration."""

    manifest: Manifest
    """The manifest with the attempt's number as its salt."""
    attempt: Attempt
    lease: Lease
    command: str
    threads: int
    shipped: tuple[str, str]
    """Architecture and precision of the file that the gate compares."""

    def build(self, abandon: bool, accept_partial: bool) -> PublishedVersion:
        """Build the challenger; it is published but not current."""
        config = self.manifest.regeneration
        built = build(
            self.manifest,
            self.attempt.identity,
            abandon=abandon,
            accept_partial=accept_partial,
            worker_seconds=config.worker_seconds or math.inf,
            make_current=False,
        )
        print(f"{built.method}: {built.images} images, {built.failed} failed", flush=True)
        return built.version

    def decide(self, challenger: PublishedVersion) -> Decision:
        """Train and score students of both versions; write the page that compares them.

        A resumed attempt finds the students that it has trained before.
        """
        attempt, config = self.attempt, self.manifest.regeneration
        current = attempts.current_of(attempt.root, attempt.method)
        # After a kill the challenger may already be current; then there is nothing to compare with.
        if current and current.id == challenger.id:
            current = None
        accuracy = self.score(challenger, attempts.CHALLENGER)
        current_accuracy = self.score(current, attempts.CURRENT) if current else None
        file = " ".join(self.shipped)
        decision = attempts.gate(config, challenger, file, accuracy, current, current_accuracy)
        # Whoever has lost the lease in the hours of training must not write a decision.
        self.lease.fence()
        # The page comes first: a call that resumes after the decision does not write it.
        if current:
            old = self.facts(current, attempts.CURRENT)
            new = self.facts(challenger, attempts.CHALLENGER)
            page = compare.render(old, new, [dataclasses.astuple(r) for r in decision.rules])
            attempt.storage.put(layout.COMPARISON, page.encode())
        return attempt.decide(decision)

    def facts(self, version: PublishedVersion, name: str) -> Facts:
        """What the page that compares two versions shows of one; its results are in `name`."""
        storage, root = self.attempt.storage.child(name), self.attempt.root
        return dataclasses.replace(collect(storage, root), name=f"{name} {version.id}")

    def score(self, version: PublishedVersion, name: str) -> float:
        """Mean accuracy (0-1), over seeds, of the shipped file as a version's students have it.

        They are trained or reused. Results for the page go to the folder `name` of the attempt.
        """
        for student in locate_candidates(self.manifest, version.id):
            finished = students.distill_located(self.manifest, student)
            action = "reused" if finished.reused else "trained"
            told = f"{name} {version.id} {student.architecture} seed {student.seed}"
            print(f"{told}: {action} {student.location}", flush=True)
        folder = f"{self.attempt.folder}/{name}"
        scored = evaluate(self.manifest, self.threads, version.id, folder)
        note_origin(self.attempt.root.child(folder), self.manifest, self.command)
        architecture, precision = self.shipped
        files, lost = candidates.score_student(
            self.manifest, architecture, version.id, self.threads
        )
        if unreadable := [*scored.results["data"]["unreadable"], *lost]:
            # A disk that fails for a minute must not decide between two versions.
            raise PartialError(
                f"evaluation.data: {len(unreadable)} images could not be read, the first is "
                f"{unreadable[0]}; fix or remove them and run the same command again, it resumes"
            )
        mean = statistics.fmean(files[precision])
        told = f"{architecture} {precision}: accuracy {100 * mean:.2f} %"
        print(f"{name} {version.id}, {told}", flush=True)
        return mean

    def accept(self, decision: Decision) -> str:
        """Make the challenger current, and replace results, exported files and report of the root
        by those of the new version; returns the report's location.
        """
        attempt, manifest = self.attempt, self.manifest
        home = attempt.root.child(layout.data(attempt.method))
        advance(home, attempt.challenger, lambda: self._fence(decision))
        # Whoever has lost the lease meanwhile must not replace the results of a later attempt.
        self.lease.fence()
        print(f"current: {decision.current or 'none'} -> {attempt.challenger}", flush=True)
        # A call that is killed while it copies the file leaves no `shipped.json`.
        facts = f"{layout.SHIPPED}{layout.SHIPPED_FACTS}"
        if attempt.root.exists(facts):
            attempt.storage.put(facts, attempt.root.get(facts))
        results = attempt.storage.get(f"{attempts.CHALLENGER}/{layout.RESULTS}")
        attempt.root.put(layout.RESULTS, results)
        version = open_version(home, attempt.challenger)
        write_contact_sheet(attempt.root, manifest.name, {manifest.method: version})
        with thread_limit(self.threads) as threads:
            print(f"candidates {candidates.write_candidates(manifest, threads)}", flush=True)
        if shipped := choice.read_shipped(attempt.storage):
            point = choice.point_of(choice.read_candidates(attempt.root), shipped)
            where = choice.ship(attempt.root, point, shipped.limits)
            print(f"shipped {point.name} {where}", flush=True)
        return page.write(manifest, self.command)

    def _fence(self, decision: Decision) -> None:
        """Raise unless this call holds its lease, and `current` is what the gate has seen.

        Called between the read and the write of the newest number, so a roll-back shows here or
        takes that number.
        """
        self.lease.fence()
        attempt = self.attempt
        home = attempt.root.child(layout.data(attempt.method))
        newest, *earlier = [pointer.version for pointer in pointers(home)] or [""]
        # A call that was killed while it accepted has made the challenger current already. If
        # somebody has rolled back since, a repetition must not undo that.
        if attempt.challenger in earlier and newest != attempt.challenger:
            attempt.finish()
            raise GateError(
                f"regeneration {attempt.number}: version {attempt.challenger} was current and is "
                f"not any more; {newest} stays current"
            )
        # Nor may it undo a roll-back during the training, whose version the gate has not seen.
        if newest not in ("", decision.current, attempt.challenger):
            attempt.finish()
            raise GateError(
                f"regeneration {attempt.number}: version {attempt.challenger} was compared with "
                f"{decision.current or 'none'}, but {newest} is current now, and stays so; "
                "run dfkd regenerate once more, which compares with that one"
            )
