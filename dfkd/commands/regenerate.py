"""Make the next version of the data set, and make it current only if its student is as good."""

import argparse
from collections.abc import Sequence
from typing import Any

from dfkd.commands import command_line
from dfkd.config.manifest import Manifest


def plan(manifest: Manifest, options: argparse.Namespace) -> dict[str, Any]:
    """What the next call would do, as far as it can be known beforehand."""
    from dfkd.operations import regeneration

    return regeneration.plan(manifest)


def work(manifest: Manifest, options: argparse.Namespace) -> str:
    """Make, train, score and decide, or resume an unfinished attempt; returns the page's location.

    Raises:
        LeaseError: another regeneration is running.
        BudgetError: a budget limit was reached; the same command resumes.
        PartialError: tasks are quarantined, or evaluation images could not be read.
        GateError: the challenger was refused; `current` is unchanged.
    """
    from dfkd.operations import regeneration

    command = command_line.again("regenerate", options)
    return regeneration.regenerate(
        manifest,
        command,
        abandon=options.abandon,
        accept_partial=options.accept_partial,
        threads=options.threads,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = command_line.parser("regenerate", __doc__ or "")
    arguments.add_argument(
        "--abandon", action="store_true", help="leave what is unfinished behind, begin the next"
    )
    arguments.add_argument(
        "--accept-partial",
        action="store_true",
        help="publish the challenger without its quarantined tasks",
    )
    command_line.add_threads(arguments)
    return command_line.run(arguments, work, plan, argv, first=command_line.LIBRARIES)
