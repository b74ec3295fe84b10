"""Class names in, student out: synthesise, distil and evaluate each prompt method, and report."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import dfkd
import distill
import evaluate
import synthesize
from dfkd.config.manifest import Manifest
from dfkd.pipeline import command_line
from dfkd.storage.local import open_storage


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
    """Run the three jobs, each of which resumes; returns the location of the report.

    Without labelled images there is no report, and it returns that of the student to take home.

    Raises:
        PartialError: some evaluation images could not be read; everything is written.
    """
    from dfkd.cluster.connection import connected
    from dfkd.pipeline.preflight import check_run

    check_run(manifest)  # all stages, before the hours of synthesis
    with connected():  # once for both
        synthesize.work(manifest, options)
        distill.work(manifest, options)
    if not manifest.evaluation.scored:
        return _show_unscored(manifest, options)
    evaluated = dfkd.evaluate(manifest, threads=options.threads)
    evaluate.tell(evaluated)
    # Also if `evaluation.models` leaves the students out: they are trained in any case.
    print(f"student to take home {dfkd.take_home(manifest, threads=options.threads)}")
    page = dfkd.write_report(manifest, command_line.again("pipeline", options))
    command_line.refuse_unreadable(evaluated.results["data"]["unreadable"], page)
    return page


def _show_unscored(manifest: Manifest, options: argparse.Namespace) -> str:
    """Show the images, and export the student; returns its location."""
    from dfkd.distillation.student_store import locate_student
    from dfkd.report.contact_sheet import write_contact_sheet

    seed = manifest.distillation.seeds[0]
    versions = {name: locate_student(manifest, name, seed).version for name in manifest.methods}
    root = open_storage(manifest.storage.root)
    print(f"contact sheet {write_contact_sheet(root, manifest.name, versions)}")
    print("evaluation.data is none: no model is scored, and there is no report")
    return dfkd.take_home(manifest, threads=options.threads)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    arguments = command_line.parser(__doc__ or "")
    synthesize.add_arguments(arguments)
    command_line.add_threads(arguments)
    return command_line.run(arguments, work, plan, argv)


if __name__ == "__main__":
    sys.exit(main())
