"""Distil a student from the current version of each prompt method, one for each seed."""

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from dfkd import command
from dfkd.cluster.connect import connected
from dfkd.cluster.train import distill
from dfkd.distillation import Course
from dfkd.manifest import Manifest
from dfkd.plan import image_count
from dfkd.streaming import steps_per_epoch


def plan(manifest: Manifest, options: argparse.Namespace) -> dict[str, Any]:
    """What a run would train, if no image fails in synthesis."""
    config = manifest.distillation
    course = Course.of(config, steps_per_epoch(image_count(manifest), config.batch_size))
    students = len(manifest.prompts.method) * len(config.seeds)
    return {
        "methods": list(manifest.prompts.method),
        "seeds": list(config.seeds),
        "students": students,
        "workers": config.workers,
        "images_per_version": image_count(manifest),
        "steps_per_epoch": course.steps_per_epoch,
        "warmup_steps": course.warmup,
        "steps_per_student": course.total,
        "images_seen": course.total * config.batch_size * students,
    }


def work(manifest: Manifest, options: argparse.Namespace) -> str:
    """Train or find every student; returns the location of the last one's card."""
    location = ""
    # One worker on this machine needs no Ray runtime, and so does not wait for one to start.
    alone = manifest.distillation.workers == 1 and not os.environ.get("RAY_ADDRESS")
    with contextlib.nullcontext() if alone else connected():
        for method in manifest.prompts.method:
            for seed in manifest.distillation.seeds:
                finished = distill(manifest, method, seed)
                location = finished.place.location
                did = "reused" if finished.reused else "trained"
                print(f"{method} seed {seed}: {did} {location}", flush=True)
    return location


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    return command.run(command.parser(__doc__ or ""), work, plan, argv)


if __name__ == "__main__":
    sys.exit(main())
