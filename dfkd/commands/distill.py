"""Distil a student from the current version of each prompt method, one for each seed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dfkd.commands import command_line
from dfkd.config.manifest import Manifest
from dfkd.config.plan import image_count

if TYPE_CHECKING:
    from dfkd.api import FinishedStudent


def plan(manifest: Manifest, options: argparse.Namespace) -> dict[str, Any]:
    """What a run would train if no image fails in synthesis, and what that costs at least."""
    from dfkd.dataset.loader import steps_per_epoch
    from dfkd.distillation.distiller import Schedule
    from dfkd.operations import estimate
    from dfkd.operations.preflight import check_distillation, check_towers

    check_towers(manifest)
    built = check_distillation(manifest)
    config = manifest.distillation
    schedule = Schedule.of(config, steps_per_epoch(image_count(manifest), config.batch_size))
    # The first for each method, the others for the last one.
    kinds = len(manifest.methods) + len(config.student) - 1
    students = kinds * len(config.seeds)
    return {
        "methods": list(manifest.methods),
        "seeds": list(config.seeds),
        "students": students,
        "workers": config.workers,
        "images_per_version": image_count(manifest),
        "steps_per_epoch": schedule.steps_per_epoch,
        "warmup_steps": schedule.warmup,
        "steps_per_student": schedule.total,
        "labellers": estimate.labellers(manifest),
        "images_seen": schedule.total * config.batch_size * students,
        "cost": estimate.students(manifest, built, schedule.total, schedule.warmup),
    }


def work(manifest: Manifest, options: argparse.Namespace) -> str:
    """Train or reuse every student; returns the location of the last one's card."""
    from dfkd import api

    return api.distill(manifest, on_student=_tell)[-1].student.location


def _tell(finished: FinishedStudent) -> None:
    """Print a line about a finished student."""
    student, action = finished.student, "reused" if finished.reused else "trained"
    name = f"{student.method} {student.architecture} seed {student.seed}"
    print(f"{name}: {action} {student.location}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return command_line.run(
        command_line.parser("distill", __doc__ or ""),
        work,
        plan,
        argv,
        first=command_line.LIBRARIES,
    )
