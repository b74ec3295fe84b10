"""Copy the most accurate candidate within your limits to shipped/, or say what excludes which.

A file is taken by the rule of the report's answer: the most accurate one, or the smallest of those
that are at most a point less accurate and not shown to be worse.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from dfkd.commands import command_line
from dfkd.commands.runs import RUN, Run, read
from dfkd.distillation.student_names import student_names
from dfkd.errors import ManifestError
from dfkd.export import choice
from dfkd.storage import layout
from dfkd.storage.local import open_existing
from dfkd.utils.markdown import align

FIRST = "run dfkd pipeline first"
UNITS = {"max_ms": "ms", "max_mb": "MB", "at_least": "points"}


def limits_of(options: argparse.Namespace) -> choice.Limits:
    """The limits that the options set."""
    return choice.Limits(options.max_ms, options.max_mb, options.at_least)


def plan(run: Run, options: argparse.Namespace) -> dict[str, Any]:
    """What would be copied."""
    found = _read(run)
    point = choice.choose(found, limits_of(options))
    return {"candidate": point.candidate.name, "precision": point.precision}


def work(run: Run, options: argparse.Namespace) -> str:
    """Show all files and copy the chosen one; returns the location of the copy.

    Raises:
        LimitsError: no file satisfies all limits.
    """
    found, limits = _read(run), limits_of(options)
    print("\n".join(table(found, limits)), flush=True)
    point = choice.choose(found, limits)
    where = choice.ship(open_existing(run.root, FIRST), point, limits)
    print(f"shipped {choice.described(point, found)}")
    return where


def _read(run: Run) -> choice.Candidates:
    """The candidates of a run; `ManifestError` if its manifest has other students now."""
    storage = open_existing(run.root, FIRST)
    found = choice.read_candidates(storage)
    if run.manifest:
        from dfkd.dataset.published import current  # which imports pyarrow

        method = run.manifest.methods[-1]
        version = current(storage.child(layout.data(method)))
        own = student_names(run.manifest, version.fingerprint, method) if version else []
        if {name for each in found.candidates for name in each.students} != set(own):
            raise ManifestError(
                "distillation",
                "must be as of the students in candidates.json, on the images that are current",
                list(run.manifest.distillation.student),
                FIRST,
            )
    return found


def table(found: choice.Candidates, limits: choice.Limits) -> list[str]:
    """A line for each file, the most accurate first, and one for each limit that excludes any."""
    shown = sorted(choice.points(found), key=lambda point: -point.mean)
    lines = [["file", "excluded by", f"{found.measure}, %", "ms", "MB", "images"]]
    for point in shown:
        misses = limits.misses(point)
        lines.append(
            [
                point.name,
                ", ".join(f"{_option(name)} by {_miss(name, misses[name])}" for name in misses),
                f"{100 * point.mean:.1f}",
                choice.amount(point.ms),
                choice.amount(point.mb),
                f"{point.candidate.images:,}",
            ]
        )
    told = []
    for name in UNITS:
        excluded = [point for point in shown if name in limits.misses(point)]
        if excluded:
            closest = min(excluded, key=lambda point: limits.misses(point)[name])
            told.append(
                f"{_option(name)} {getattr(limits, name):g} excludes {len(excluded)} of "
                f"{len(shown)} files, the nearest by {_miss(name, limits.misses(closest)[name])}: "
                f"{closest.name}"
            )
    return [*align(lines, left=2, gap="  "), *told]


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _miss(name: str, miss: float) -> str:
    """By how much a limit is missed, with its unit; two digits, because it may be small."""
    return f"{choice.amount(miss)} {UNITS[name]}"


def _number(most: float) -> Callable[[str], float]:
    """The type of an option whose value is more than 0 and at most `most`."""

    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not 0 < value <= most:
            raise argparse.ArgumentTypeError(
                f"must be a number more than 0 and at most {most:g}, got {text!r}"
            )
        return value

    return number


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = command_line.parser("ship", __doc__ or "", RUN)
    arguments.add_argument(
        "--max-ms", type=_number(1e6), metavar="MS", help="milliseconds for one image on one core"
    )
    arguments.add_argument(
        "--max-mb", type=_number(1e6), metavar="MB", help="size of the file in millions of bytes"
    )
    arguments.add_argument(
        "--at-least",
        type=_number(100),
        metavar="PERCENT",
        help="mean accuracy over domains, or agreement in a run without labelled images",
    )
    return command_line.run(arguments, work, plan, argv, read)
