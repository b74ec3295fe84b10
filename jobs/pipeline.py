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


def plan(manifest: Manifest, options: argparse.Namespace) -> dict[str, Any]:
    """What a run would make, train and score."""
    return {
        "synthesize": synthesize.plan(manifest, options),
        "distill": distill.plan(manifest, options),
        "evaluate": evaluate.plan(manifest, options),
    }


def work(manifest: Manifest, options: argparse.Namespace) -> str:
    """Run the three jobs, each of which resumes; returns the location of the report.

    Raises:
        PartialError: some evaluation images could not be read; everything is written.
    """
    from dfkd.cluster.connection import connected
    from dfkd.pipeline.preflight import check_batches, check_distillation, check_evaluation

    check_distillation(manifest)  # before the hours of synthesis, not after them
    check_batches(manifest)
    check_evaluation(manifest)
    with connected():  # once for both
        synthesize.work(manifest, options)
        distill.work(manifest, options)
    evaluated = dfkd.evaluate(manifest, threads=options.threads)
    evaluate.tell(evaluated)
    if evaluated.versions:
        print(f"student to take home {dfkd.take_home(manifest, threads=options.threads)}")
    page = dfkd.write_report(manifest, command_line.again("pipeline", options))
    evaluate.refuse_unreadable(evaluated.results["data"]["unreadable"], page)
    return page


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    arguments = command_line.parser(__doc__ or "")
    synthesize.add_arguments(arguments)
    evaluate.add_arguments(arguments)
    return command_line.run(arguments, work, plan, argv)


if __name__ == "__main__":
    sys.exit(main())
