"""Make a table or figure of the paper, from a study: --list names them all."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dfkd.commands import command_line
from dfkd.errors import DfkdError, ManifestError, PartialError, printable_line
from dfkd.storage.base import BUCKET_ROOTS, Storage, split_root
from dfkd.storage.local import open_storage

if TYPE_CHECKING:
    from dfkd.config.distillation import Average
    from dfkd.lab.studies.cells import CellResult
    from dfkd.lab.studies.results import StudyResults
    from dfkd.lab.studies.study import Study

REASONS = 3
"""Number of failed cells whose reasons the error repeats; the table's notes list all of them."""


def read(source: str, overrides: tuple[str, ...]) -> Study:
    """The study that a name, a folder or a file refers to."""
    from dfkd.lab.studies.listing import find

    return find(source, overrides)


def plan(study: Study, options: argparse.Namespace) -> dict[str, Any]:
    """What a run would make if nothing existed yet."""
    from dfkd.lab.studies.listing import cost
    from dfkd.lab.studies.runner import open_evaluation

    if options.output is not None:
        split_root("--output", options.output)
    open_evaluation(study)
    return {
        "study": study.described.name,
        "shows": list(study.described.shows),
        "size": study.described.size,
        "rows": len(study.rows),
        "seeds": list(study.described.chosen_seeds),
        **cost(study),
    }


def work(study: Study, options: argparse.Namespace) -> str:
    """Make what is missing, write table and figure; returns the location of the main file.

    Raises:
        PartialError: some cells failed; the others are stored and shown in the table.
    """
    from dfkd.evaluation import footprint
    from dfkd.lab.studies import output as report
    from dfkd.lab.studies.results import collect_results, networks, scored_images
    from dfkd.lab.studies.runner import open_evaluation, reproduce
    from dfkd.lab.studies.tables import markdown
    from dfkd.lab.studies.tsne import maps
    from dfkd.report.facts import commit

    data = open_evaluation(study)
    output = open_output(study, options)
    tell = functools.partial(_tell, study.manifest.evaluation.average)
    study_cells = reproduce(study, data, options.threads, tell, options.at_once)
    embedding_maps = maps(study, data, study_cells, options.threads) if data else ()
    again, rows = command_line.again("reproduce", options), networks(study, study_cells)
    sizes = {label: network.parameters for label, network in rows.items()}
    domains = scored_images(study, data) if data else {}
    results = collect_results(study, study_cells, domains, again, commit(), embedding_maps, sizes)
    # Without any row there is nothing to draw; otherwise what there is is written first.
    if results.failed and not results.rows:
        raise _failed(study, results)
    ms = footprint.cached_or_measured(output, rows) if rows else {}
    main_file = report.write(output, study, results, study_cells.versions, data, ms)
    if study.trains:
        print(markdown(report.grid(study.described, results, ms)), flush=True)
    if results.failed:
        print(f"wrote {main_file}", flush=True)
        raise _failed(study, results)
    return main_file


def _failed(study: Study, results: StudyResults) -> PartialError:
    """The error that names the first failed cells."""
    shown = "; ".join(f"{label}: {why}" for label, why in list(results.failed.items())[:REASONS])
    return PartialError(
        f"study {study.described.name}: {len(results.failed)} of {len(study.cells)} cells failed "
        f"({shown}); run the same command again, it resumes"
    )


def _tell(average: Average, label: str, outcome: CellResult | str, reused: bool) -> None:
    """Print a line about a cell; a failure at once, because the other cells may take hours."""
    if isinstance(outcome, str):
        told = f"failed: {outcome}"
    else:
        status = "found" if reused else "finished"
        told = f"{status} {outcome.model}, accuracy {100 * outcome.mean(average):.1f}"
    print(printable_line(f"{label}: {told}"), flush=True)


def open_output(study: Study, options: argparse.Namespace) -> Storage:
    """Where the files go: --output, or the study's folder; with --quick a folder under the root."""
    if options.output is None and study.described.size == "quick":
        root = open_storage(study.manifest.storage.root)
        return root.child(f"studies/{study.described.name}")
    target = options.output or str(study.folder)
    split_root("--output", target)
    try:
        return open_storage(target)
    except ManifestError as error:
        raise ManifestError(
            "--output",
            f"must be a folder, {BUCKET_ROOTS} ({error})",
            target,
            "give another",
        ) from None


def _place(text: str) -> str:
    """The value of --output. An unset variable of a shell gives an empty text, and would mean the
    study's own folder, also with --quick.
    """
    if not text:
        raise argparse.ArgumentTypeError("must name a folder or bucket, got ''")
    return text


class _List(argparse.Action):
    """Prints the list and stops, as --help does."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from dfkd.lab.studies.listing import listing

        try:
            print(listing())
        except DfkdError as error:
            parser.exit(command_line.fail(error))
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    arguments = command_line.parser(__doc__ or "", "name of a study (--list), or its YAML file")
    add = arguments.add_argument
    add("--list", action=_List, nargs=0, help="name every table, figure and study, and stop")
    add(
        "--quick",
        action="append_const",
        const="size=quick",
        dest="overrides",
        help="the study's own small version, in minutes; short for --set size=quick",
    )
    add(
        "--output",
        type=_place,
        metavar="PLACE",
        help="folder or bucket (s3://, az://, gs://) of the table and figure",
    )
    add(
        "--at-once",
        type=command_line.at_least(0),
        default=0,
        metavar="N",
        help="students trained side by side; 0 is as many as there are GPUs, or CPUs",
    )
    command_line.add_threads(arguments)
    return command_line.run_with(
        read, arguments, work, plan, argv, lambda study: study.manifest.storage.root
    )


if __name__ == "__main__":
    sys.exit(main())
