"""Write report.html about a finished run, or comparison.html about two."""

import argparse
from collections.abc import Sequence
from typing import Any

from dfkd.commands import command_line
from dfkd.commands.runs import RUN, Run, read
from dfkd.storage import layout


def plan(run: Run, options: argparse.Namespace) -> dict[str, Any]:
    """What would be written."""
    runs = [run, *([read(options.other, ())] if options.other is not None else [])]
    for each in runs:
        each.open()  # which refuses what is no finished run
    name = layout.REPORT if options.other is None else layout.COMPARISON
    return {"runs": [each.root for each in runs], "page": name}


def work(run: Run, options: argparse.Namespace) -> str:
    """Write the page; returns its location."""
    from dfkd.report import compare, page

    storage = run.open()
    if options.other is not None:
        return compare.write(storage, read(options.other, ()).open())

    if run.manifest is None:
        return page.write_stored(storage)
    return page.write(run.manifest, command_line.again("pipeline", options))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = command_line.parser("report", __doc__ or "", RUN)
    arguments.add_argument(
        "other",
        nargs="?",
        metavar="OTHER",
        help="a second run to compare with; both may be manifests or folders of finished runs",
    )
    return command_line.run(arguments, work, plan, argv, read)
