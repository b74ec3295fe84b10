"""Make the next version of the data set, and make it current only if its student is as good."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from dfkd.config.manifest import Manifest
from dfkd.pipeline import command_line


def plan(manifest: Manifest, options: argparse.Namespace) -> dict[str, Any]:
    """What the next call would do, as far as that is known before it."""
    from dfkd.pipeline.regeneration import plan

    return plan(manifest)


def work(manifest: Manifest, options: argparse.Namespace) -> str:
    """Make, train, score and decide, or go on with what was begun; returns the page's place.

    Raises:
        LeaseError: another regeneration is at work.
        BudgetError: a cap was reached; the same command goes on.
        GateError: the candidate is not good enough; `current` is as it was.
    """
    from dfkd.pipeline.regeneration import regenerate

    again = command_line.again("regenerate", options)
    return regenerate(manifest, again, abandon=options.abandon, threads=options.threads)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    arguments = command_line.parser(__doc__ or "")
    arguments.add_argument(
        "--abandon", action="store_true", help="leave what is unfinished behind, begin the next"
    )
    arguments.add_argument(
        "--threads", type=int, default=0, metavar="N", help="CPU threads; 0 is all there are"
    )
    return command_line.run(arguments, work, plan, argv)


if __name__ == "__main__":
    sys.exit(main())
