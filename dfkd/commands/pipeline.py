"""Class names in, answer out: synthesise, distil, evaluate, export all candidates, and report."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dfkd.commands import command_line, distill, evaluate, synthesize
from dfkd.config.manifest import Manifest
from dfkd.errors import DfkdError
from dfkd.storage.local import open_storage

if TYPE_CHECKING:
    from dfkd.api import BuiltVersion


def plan(manifest: Manifest, options: argparse.Namespace) -> dict[str, Any]:
    """What a run would make, train and score."""
    stages = {
        "synthesize": synthesize.plan(manifest, options),
        "distill": distill.plan(manifest, options),
    }
    if manifest.evaluation.scored:
        stages["evaluate"] = evaluate.plan(manifest, options)
    return stages


def work(manifest: Manifest, options: argparse.Namespace) -> str:
    """Run all stages, each of which resumes; returns the location of the report.

    Without labelled images the report is about candidates and images alone.

    Raises:
        PartialError: some evaluation images could not be read; everything is written.
        DfkdError: another job has made another version current meanwhile.
    """
    from dfkd import api
    from dfkd.export.choice import answer, read_candidates
    from dfkd.operations.preflight import check_later_stages
    from dfkd.report.contact_sheet import write_contact_sheet

    check_later_stages(manifest)  # `api.synthesize` checks its own stage
    built = api.synthesize(
        manifest,
        abandon=options.abandon,
        accept_partial=options.accept_partial,
        on_version=synthesize.tell,
    )
    _require_current(built)
    distill.work(manifest, options)
    _require_current(built)
    unreadable: list[str] = []
    if manifest.evaluation.scored:
        evaluated = api.evaluate(manifest, threads=options.threads)
        evaluate.tell(evaluated)
        unreadable = evaluated.results["data"]["unreadable"]
    else:
        versions = {each.method: each.version for each in built}
        root = open_storage(manifest.storage.root)
        print(f"contact sheet {write_contact_sheet(root, manifest.name, versions)}")
    _require_current(built)
    print(f"candidates {api.export_candidates(manifest, threads=options.threads)}")
    print(answer(read_candidates(open_storage(manifest.storage.root))).sentence)
    page = api.write_report(manifest, command_line.again("pipeline", options))
    command_line.refuse_unreadable(unreadable, page)
    return page


def _require_current(built: Sequence[BuiltVersion]) -> None:
    """Raise `DfkdError` unless the versions of this run are current.

    Each stage takes the current ones. Under one root a job with another manifest replaces them.
    """
    from dfkd.dataset.published import current_id

    for version in (each.version for each in built):
        if (newest := current_id(version.home)) != version.id:
            raise DfkdError(
                f"{version.home.location()}: another job has made version {newest} current, and "
                f"this one works on version {version.id}; give each manifest a storage.root of its "
                "own, or run the same command again, which makes its own version current"
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = command_line.parser("pipeline", __doc__ or "")
    synthesize.add_arguments(arguments)
    command_line.add_threads(arguments)
    return command_line.run(arguments, work, plan, argv, first=command_line.LIBRARIES)
