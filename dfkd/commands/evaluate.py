"""Score the teacher zero-shot, a text-only classifier and the students of the manifest.

With --classes, students of embeddings are scored on classes that they were not trained for.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dfkd.commands import command_line
from dfkd.config.manifest import Manifest
from dfkd.evaluation.data import open_data

if TYPE_CHECKING:
    from dfkd.api import Evaluated


def plan(manifest: Manifest, options: argparse.Namespace) -> dict[str, Any]:
    """What a run would score."""
    # `dfkd pipeline`, which has no such option, shows this plan too.
    if classes := getattr(options, "classes", ()):
        from dfkd.distillation.student_store import require_embeddings  # which imports torch

        require_embeddings(manifest)
        manifest = manifest.with_classes(classes)
    data = open_data(manifest.evaluation, manifest.classes)
    if "text-only" in manifest.evaluation.scored:
        from dfkd.operations.preflight import check_towers  # here, because it imports torch

        check_towers(manifest)
    seeds = len(manifest.distillation.seeds)
    students = len(manifest.methods) * seeds
    return {
        "domains": list(data.names),
        "images": len(data.items),
        "unscored_classes": list(data.unscored),
        "notes": list(data.notes),
        "teacher": int("teacher" in manifest.evaluation.models),
        "text_only": seeds if "text-only" in manifest.evaluation.models else 0,
        "students": students if "student" in manifest.evaluation.models else 0,
    }


def work(manifest: Manifest, options: argparse.Namespace) -> str:
    """Score, write results and contact sheet, print the table; returns the place of results.json.

    Raises:
        PartialError: some images could not be read; everything else was scored and written.
    """
    from dfkd import api

    evaluated = api.evaluate(manifest, threads=options.threads, classes=options.classes)
    tell(evaluated)
    command_line.refuse_unreadable(evaluated.results["data"]["unreadable"], evaluated.location)
    return evaluated.location


def tell(evaluated: Evaluated) -> None:
    """Print the table of accuracies and the notes."""
    from dfkd.report.tables import table

    if evaluated.sheet:
        print(f"contact sheet {evaluated.sheet}")
    print(table(evaluated.results))
    for note in evaluated.results["data"]["notes"]:
        print(f"note: {note}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = command_line.parser("evaluate", __doc__ or "")
    command_line.add_threads(arguments)
    command_line.add_classes(arguments)
    return command_line.run(arguments, work, plan, argv, first=command_line.LIBRARIES)
