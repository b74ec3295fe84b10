"""Measure what things cost on this machine, and keep the figures as benchmarks/NAME.json."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from dfkd.commands import command_line
from dfkd.config.manifest import Manifest
from dfkd.config.plan import image_count, task_count
from dfkd.lab.benchmarks import BENCHMARKS

if TYPE_CHECKING:
    from dfkd.lab.benchmarks.measure import Effort


def effort(options: argparse.Namespace) -> Effort:
    """How much is measured, according to the options."""
    from dfkd.lab.benchmarks.measure import FULL, QUICK

    return dataclasses.replace(QUICK if options.quick else FULL, classes=options.classes)


def selected(options: argparse.Namespace) -> list[str]:
    """The names of the benchmarks to run."""
    return list(BENCHMARKS) if options.benchmark == "all" else [options.benchmark]


def plan(manifest: Manifest, options: argparse.Namespace) -> dict[str, Any]:
    """What would be measured."""
    from dfkd.lab.benchmarks.scale import sized
    from dfkd.lab.benchmarks.streaming import images_per_class

    simulated, requested = sized(manifest, options.classes), effort(options)
    streamed = images_per_class(manifest, requested) * len(manifest.classes)
    return {
        "benchmarks": selected(options),
        "repeats": requested.repeats,
        "threads": options.threads,
        "streamed_images": streamed,
        "scale_tasks": task_count(simulated),
        "scale_images": image_count(simulated),
    }


def work(manifest: Manifest, options: argparse.Namespace, words: Sequence[str]) -> str:
    """Measure, print, and store the record of each benchmark; returns the location of the last
    record.

    Args:
        words: the command line's arguments, which the records contain.
    """
    from dfkd.lab.benchmarks import scale, suite

    scale.sized(manifest, options.classes)  # refuses a number before anything is measured
    names = selected(options)
    again = shlex.join(["dfkd", "benchmark", *words])
    records = suite.run(names, manifest, effort(options), options.threads, again)
    for name, (lines, location) in zip(names, records, strict=True):
        print("\n".join([*lines, f"{name}: {location}"]), flush=True)
    return location


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = command_line.parser("benchmark", __doc__ or "", benchmark=(*BENCHMARKS, "all"))
    add, at_least = arguments.add_argument, command_line.at_least
    add("--quick", action="store_true", help="one repeat of small sizes: it runs, in minutes")
    add("--threads", type=at_least(1), default=1, metavar="N", help="CPU threads of torch (1)")
    add(
        "--classes",
        type=at_least(0),
        default=0,
        metavar="N",
        help="scale: made-up classes (0: the manifest's own)",
    )
    words = sys.argv[1:] if argv is None else argv
    return command_line.run(
        arguments, partial(work, words=words), plan, words, first=command_line.LIBRARIES
    )
