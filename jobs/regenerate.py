"""Make the next version of the data set, and make it current only if its student is as good."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from dfkd import api, command, regeneration
from dfkd.budget import Budget
from dfkd.cluster import train
from dfkd.cluster.build import build, identify
from dfkd.cluster.connect import connected
from dfkd.dataset import PublishedVersion, open_version
from dfkd.errors import GateError
from dfkd.evaluation import evaluate
from dfkd.lease import Lease, holding
from dfkd.manifest import Manifest
from dfkd.plan import fresh_tasks, task_count, tasks
from dfkd.preflight import check_batches, check_distillation, check_evaluation, check_synthesis
from dfkd.published import advance, refuse_removal
from dfkd.regeneration import Attempt, Decision
from dfkd.report import compare
from dfkd.report.facts import collect, note_origin
from dfkd.results import validate_results
from dfkd.storage import Storage, is_there, open_storage

LEASE = "regenerate"
COPIED = ("results.json", "results.parquet")
"""Of the candidate's folder; they become those of the root when it is accepted."""


def plan(manifest: Manifest, options: argparse.Namespace) -> dict[str, Any]:
    """What the next call would do, as far as that is known before it."""
    regeneration.require_comparable(manifest)
    config = manifest.regeneration
    found: dict[str, Any] = {"method": manifest.method, "tasks": task_count(manifest)}
    place, salt, held = manifest.storage.root, manifest.salt, None
    if is_there(place):
        root = open_storage(place)
        held = regeneration.current_of(root, manifest.method)
        going = regeneration.unfinished(root)
        salt = going.number if going else regeneration.next_number(root, held, manifest)
    salted = dataclasses.replace(manifest, salt=salt)
    fresh = list(fresh_tasks(salted) if held else tasks(manifest))
    return found | {
        "salt": salt,
        "current": held.id if held else "none",
        "fresh_tasks": len(fresh),
        "fresh_images": sum(task.count for task in fresh),
        "images_cap": config.images,
        "worker_seconds_cap": config.worker_seconds,
        "students": len(manifest.distillation.seeds) * (2 if held else 1),
    }


def work(manifest: Manifest, options: argparse.Namespace) -> str:
    """Make, train, score and decide, or go on with what was begun; returns the page's place.

    Raises:
        LeaseError: another regeneration is at work.
        BudgetError: a cap was reached; the same command goes on.
        GateError: the candidate is not good enough; `current` is as it was.
    """
    regeneration.require_comparable(manifest)
    check_distillation(manifest)
    check_batches(manifest)
    check_evaluation(manifest)
    check_synthesis(manifest)
    root = open_storage(manifest.storage.root)
    with holding(root, LEASE, manifest.regeneration.lease_seconds) as lease, connected():
        attempt = _begin(root, manifest, options.abandon)
        salted = dataclasses.replace(manifest, salt=attempt.number)
        print(f"regeneration {attempt.number}: version {attempt.candidate}", flush=True)
        candidate = _build(salted, attempt, options)
        lease.fence()
        decision = attempt.decision or _decide(salted, attempt, candidate, lease, options)
        page = attempt.storage.location(compare.PAGE)
        if decision.current:
            print(f"old and new side by side {page}", flush=True)
        if decision.accepted:
            page = _accept(salted, attempt, decision, lease, options)
        attempt.finish()
    if not decision.accepted:
        print(f"wrote {page}", flush=True)
        raise GateError(
            f"regeneration {attempt.number}: version {attempt.candidate} does not become current "
            f"({'; '.join(decision.reasons)}); it stays for inspection until jobs/gc.py removes it"
        )
    return page


def _begin(root: Storage, manifest: Manifest, abandon: bool) -> Attempt:
    """The regeneration that is unfinished, or the next one."""
    method = manifest.method
    going = regeneration.unfinished(root)
    if going and abandon:
        going.finish()
        root.put(f"data/{going.method}/versions/{going.candidate}/abandoned", b"")
        going = None
    held = regeneration.current_of(root, method)
    if going:
        number, base = going.number, going.base
    else:
        number = regeneration.next_number(root, held, manifest)
        base = held.fingerprint if held and not manifest.regeneration.whole else ""
    identity = identify(dataclasses.replace(manifest, salt=number), base)
    if base and held and held.fingerprint == base:
        regeneration.require_same_settings(held, identity)
    attempt = regeneration.begin(root, number, identity)
    if base:
        refuse_removal(root.child(f"data/{method}"), base[:16])
    return attempt


def _build(salted: Manifest, attempt: Attempt, options: argparse.Namespace) -> PublishedVersion:
    config = salted.regeneration
    budget = Budget(config.images or None, config.worker_seconds or None)
    built = build(
        salted,
        attempt.claim["identity"],
        abandon=options.abandon,
        budget=budget,
        make_current=False,
    )
    print(f"{built.method}: {built.images} images, {built.failed} failed", flush=True)
    return built.version


def _decide(
    manifest: Manifest,
    attempt: Attempt,
    candidate: PublishedVersion,
    lease: Lease,
    options: argparse.Namespace,
) -> Decision:
    """Train and score students of the candidate and of the current version, and write the page."""
    held = regeneration.current_of(attempt.root, attempt.method)
    held = None if held and held.id == candidate.id else held
    accuracy = _score(manifest, attempt, candidate, "candidate", options)
    before = _score(manifest, attempt, held, "current", options) if held else None
    lease.fence()
    decision = attempt.decide(
        regeneration.gate(manifest.regeneration, candidate, accuracy, held, before)
    )
    if held:
        storage = attempt.storage
        old, new = (
            dataclasses.replace(
                collect(storage.child(name), attempt.root, version.id), name=f"{name} {version.id}"
            )
            for name, version in (("current", held), ("candidate", candidate))
        )
        rules = regeneration.rules(manifest.regeneration, decision)
        storage.put(compare.PAGE, compare.render(old, new, rules).encode())
    return decision


def _score(
    manifest: Manifest,
    attempt: Attempt,
    version: PublishedVersion,
    name: str,
    options: argparse.Namespace,
) -> float:
    """Mean accuracy of the students of a version, trained or found, with results in a folder."""
    method = manifest.method
    students = []
    for seed in manifest.distillation.seeds:
        finished = train.distill(manifest, method, seed, version.id)
        did = "reused" if finished.reused else "trained"
        print(f"{name} {version.id} seed {seed}: {did} {finished.place.location}", flush=True)
        students.append(finished.place.name)
    folder = f"{attempt.folder}/{name}"
    scored = evaluate(manifest, options.threads or None, version.id, folder)
    note_origin(
        attempt.root.child(folder), manifest, command.again("regenerate", options), students
    )
    validate_results(scored.results)
    (summary,) = [s for s in scored.results["summary"] if s["model"] == "student"]
    print(f"{name} {version.id}: accuracy {summary['mean']:.4f}", flush=True)
    return float(summary["mean"])


def _accept(
    salted: Manifest,
    attempt: Attempt,
    decision: Decision,
    lease: Lease,
    options: argparse.Namespace,
) -> str:
    """Move current, then make results, student and report of the root those of the new version."""
    home = attempt.root.child(f"data/{attempt.method}")
    advance(home, attempt.candidate, lease.fence)
    print(f"current: {decision.current or 'none'} -> {attempt.candidate}", flush=True)
    for name in COPIED:
        attempt.root.put(name, attempt.storage.get(f"candidate/{name}"))
    version = open_version(home, attempt.candidate)
    api.contact_sheet(salted, {salted.method: version})
    print(f"student to take home {api.take_home(salted, threads=options.threads)}", flush=True)
    return api.write_report(salted, command.again("regenerate", options))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    arguments = command.parser(__doc__ or "")
    arguments.add_argument(
        "--abandon", action="store_true", help="leave what is unfinished behind, begin the next"
    )
    arguments.add_argument(
        "--threads", type=int, default=0, metavar="N", help="CPU threads; 0 is all there are"
    )
    return command.run(arguments, work, plan, argv)


if __name__ == "__main__":
    sys.exit(main())
