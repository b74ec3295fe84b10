"""Where a run stands: what is done, running and failed, how fast, and the command to run next."""

import argparse
from collections.abc import Sequence
from typing import Any

from dfkd.commands import command_line
from dfkd.commands.runs import RUN, Run, read
from dfkd.storage.local import open_to_read

SECONDS = 10.0
"""Default of --watch: seconds from one look to the next."""


def plan(run: Run, options: argparse.Namespace) -> dict[str, Any]:
    """What would be looked at."""
    methods = list(run.manifest.methods) if run.manifest else "all that are found"
    return {"root": run.root, "methods": methods}


def work(run: Run, options: argparse.Namespace) -> str:
    """Print the status once or, with --watch, until everything is finished; returns ''.

    Raises:
        ManifestError: there is no run.
        CorruptionError: an object that says how far the run is, is damaged.
        InfrastructureError: the store does not answer.
    """
    from dfkd.commands.watching import show, watch
    from dfkd.operations.status.run import read_status
    from dfkd.operations.status.schema import RunStatus

    root = open_to_read(run.root)

    def look() -> RunStatus:
        """The status at this moment."""
        return read_status(root, run.manifest, lambda job: _command(job, run, options))

    if options.watch is None:
        show(look, options.json)
    else:
        watch(look, options.json, options.watch)
    return ""


def _command(job: str, run: Run, options: argparse.Namespace) -> str:
    """The command line of a job for this run; without a manifest, a word stands in its place."""
    if run.manifest or job == "report":
        return command_line.again(job, options)
    return f"dfkd {job} {'STUDY' if job == 'reproduce' else 'MANIFEST'}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = command_line.parser("status", __doc__ or "", RUN)
    arguments.add_argument("--json", action="store_true", help="print one JSON object")
    arguments.add_argument(
        "--watch",
        nargs="?",
        type=command_line.seconds(zero=False),
        const=SECONDS,
        metavar="SECONDS",
        help=f"repeat until everything is finished or Ctrl-C (default: every {SECONDS:.0f})",
    )
    return command_line.run(arguments, work, plan, argv, read)
