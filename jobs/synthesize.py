"""Synthesise a manifest's images: prompts, shards, and one published version a method."""

import argparse
import sys
from typing import Any

from dfkd import command
from dfkd.cluster.build import build
from dfkd.cluster.connect import connected
from dfkd.manifest import Manifest
from dfkd.plan import estimated_bytes, image_count, task_count


def plan(manifest: Manifest, options: argparse.Namespace) -> dict[str, Any]:
    """What a run would make."""
    methods = manifest.prompts.method
    images = image_count(manifest) * len(methods)
    return {
        "methods": list(methods),
        "tasks": task_count(manifest) * len(methods),
        "images": images,
        "optimisation_steps": images * manifest.synthesis.steps,
        "bytes_at_most": estimated_bytes(manifest) * len(methods),
    }


def work(manifest: Manifest, options: argparse.Namespace) -> str:
    """Build the version of each method; returns the location of the last one."""
    location = ""
    with connected():
        for method in manifest.prompts.method:
            built = build(manifest.with_method(method), options.abandon, options.accept_partial)
            location = built.version.storage.location("manifest.json")
            print(
                f"{method}: {built.images} images, {built.failed} failed, "
                f"version {built.version.id} at {location}"
            )
    return location


def main() -> int:
    """The command line."""
    arguments = command.parser(__doc__ or "")
    arguments.add_argument(
        "--abandon", action="store_true", help="leave unfinished work of another manifest behind"
    )
    arguments.add_argument(
        "--accept-partial", action="store_true", help="publish although tasks are quarantined"
    )
    return command.run(arguments, work, plan)


if __name__ == "__main__":
    sys.exit(main())
