"""Make a table or figure of the paper, from a study: --list names them all."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from dfkd.commands import command_line
from dfkd.errors import DfkdError
from dfkd.lab.studies.study import Study, find
from dfkd.storage.base import split_root


def plan(study: Study, options: argparse.Namespace) -> dict[str, Any]:
    """What a run would make if nothing existed yet."""
    from dfkd.lab.studies.listing import cost
    from dfkd.lab.studies.reproduce import open_evaluation

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
    """Make what is missing, write table and figure; returns the location of the main file."""
    from dfkd.lab.studies.reproduce import make, open_output

    again = command_line.again("reproduce", options)
    return make(study, open_output(study, options.output), again, options.threads)


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
    """Run the command; returns the exit code."""
    arguments = command_line.parser(
        "reproduce", __doc__ or "", "name of a study (--list), or its YAML file"
    )
    add = arguments.add_argument
    add("--list", action=_List, nargs=0, help="name every table, figure and study, and stop")
    add(
        "--quick",
        action="append_const",
        const="size=quick",
        dest="overrides",
        help="the study's own small version, in minutes; short for --set size=quick",
    )
    add("--output", type=_place, metavar="PLACE", help="folder or bucket of the table and figure")
    command_line.add_threads(arguments)
    return command_line.run(arguments, work, plan, argv, find, command_line.LIBRARIES)
