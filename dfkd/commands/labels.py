"""Write labels of other classes, which let an exported student of embeddings tell those apart."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from dfkd.commands import command_line
from dfkd.config.manifest import Manifest
from dfkd.distillation.student_names import labellers_identity


def plan(manifest: Manifest, options: argparse.Namespace) -> dict[str, Any]:
    """What a run would write."""
    from dfkd.distillation.student_store import require_embeddings

    require_embeddings(manifest)
    labellers_identity(manifest)  # refuses weights that are not there
    return {"classes": list(manifest.with_classes(options.classes).classes)}


def work(manifest: Manifest, options: argparse.Namespace) -> str:
    """Encode the class names with the labeller; returns the location of labels.json."""
    from dfkd.export.labels import write_labels

    return write_labels(manifest, options.classes)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = command_line.parser("labels", __doc__ or "")
    command_line.add_classes(arguments, required=True)
    return command_line.run(arguments, work, plan, argv, first=command_line.LIBRARIES)
