"""Synthesise a manifest's images: prompts, shards, and one published version a method."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dfkd.commands import command_line
from dfkd.config.manifest import Manifest
from dfkd.config.plan import estimated_bytes, image_count, image_steps, sampling_steps, task_count
from dfkd.storage import layout

if TYPE_CHECKING:
    from dfkd.api import BuiltVersion


def plan(manifest: Manifest, options: argparse.Namespace) -> dict[str, Any]:
    """What a run would make, and what it costs at least; the steps are summed over all images."""
    from dfkd.operations import estimate
    from dfkd.operations.preflight import check_synthesis, note_surprises

    teacher, generator = check_synthesis(manifest)
    note_surprises(manifest, teacher)
    methods = manifest.methods
    images = image_count(manifest) * len(methods)
    single = [manifest.with_method(method) for method in methods]
    return {
        "methods": list(methods),
        "tasks": task_count(manifest) * len(methods),
        "images": images,
        "optimisation_steps": sum(map(image_steps, single)),
        "sampling_steps": sum(map(sampling_steps, single)),
        "bytes_at_most": estimated_bytes(manifest, image_count(manifest)) * len(methods),
        "cost": estimate.synthesis(manifest, teacher, generator),
    }


def work(manifest: Manifest, options: argparse.Namespace) -> str:
    """Build the version of each method; returns the location of the last one's facts."""
    from dfkd import api

    built = api.synthesize(
        manifest,
        abandon=options.abandon,
        accept_partial=options.accept_partial,
        on_version=tell,
    )
    return built[-1].version.storage.location(layout.PUBLISHED)


def tell(built: BuiltVersion) -> None:
    """Print a line about a published version."""
    statistics = built.prompts
    print(
        f"{built.method}: {built.images} images, {built.failed} failed; prompts: mean similarity "
        f"{statistics['similarity']:.3f}, {statistics['own_class']:.0%} nearest to their class; "
        f"{built.version.facts['inconsistent']} images taken for another class; "
        f"version {built.version.id}",
        flush=True,
    )


def add_arguments(arguments: argparse.ArgumentParser) -> None:
    """The options of synthesis that not every job has."""
    arguments.add_argument(
        "--abandon", action="store_true", help="leave unfinished work of another manifest behind"
    )
    arguments.add_argument(
        "--accept-partial", action="store_true", help="publish although tasks are quarantined"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = command_line.parser("synthesize", __doc__ or "")
    add_arguments(arguments)
    return command_line.run(arguments, work, plan, argv, first=command_line.LIBRARIES)
