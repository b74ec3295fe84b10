"""Compare settings of the students' training on the miniature world: a study of its own kind."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfkd.config.manifest import Manifest
from dfkd.pipeline import command_line
from dfkd.storage.local import open_storage
from dfkd.utils.progress import bar
from dfkd.utils.yaml import load

if TYPE_CHECKING:
    from dfkd.studies.student_recipe import RecipeResult, RecipeStudy


def read(path: str, overrides: tuple[str, ...]) -> RecipeStudy:
    """Read the study in file `path` with overrides applied; checks that each row makes a valid
    manifest.
    """
    from dfkd.studies import student_recipe

    study = load(student_recipe.RecipeStudy, path, overrides)
    for row in study.rows.values():
        student_recipe.manifest_of(study, Path(path).parent, row)
    return study


def plan(study: RecipeStudy, options: argparse.Namespace) -> dict[str, Any]:
    """What a run would train."""
    return {
        "rows": list(study.rows),
        "seeds": list(study.seeds),
        "students": len(study.rows) * len(study.seeds),
    }


def work(study: RecipeStudy, options: argparse.Namespace) -> str:
    """Train what is missing, then write results and table; returns the table's location."""
    from dfkd.cluster.synthesis import environment
    from dfkd.studies import student_recipe
    from dfkd.studies.tables import markdown
    from dfkd.utils.hardware import cpu_count, describe_machine
    from dfkd.utils.strict_json import canonical

    folder = Path(options.manifest).parent
    cells = student_recipe.cells(study, folder, data_set)
    outcomes: dict[tuple[str, int], RecipeResult] = {}
    with bar("students", len(cells), "student") as progress:
        for cell, outcome in student_recipe.run(cells, options.at_once or cpu_count()):
            outcomes[cell.row, cell.seed] = outcome
            progress.update(1)
    output = open_storage(options.output or str(folder))
    content = {
        "schema": 1,
        "study": study.as_dict(),
        "command": command_line.again("recipe", options),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": describe_machine(),
        "environment": environment(),
        "outcomes": [
            {"row": row, "seed": seed, **dataclasses.asdict(outcome)}
            for (row, seed), outcome in sorted(outcomes.items())
        ],
    }
    output.put("results.json", canonical(content))
    output.put("table.md", markdown(student_recipe.grid(study, outcomes)).encode())
    return output.location("table.md")


def data_set(manifest: Manifest) -> str:
    """The id of a manifest's version, which is made if it does not exist."""
    from dfkd.cluster.connection import connected
    from dfkd.cluster.synthesis import build, finished, identify

    identity = identify(manifest)
    with contextlib.nullcontext() if finished(manifest, identity) else connected():
        return build(manifest, identity, abandon=True, make_current=False).version.id


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    arguments = command_line.parser(__doc__ or "")
    add = arguments.add_argument
    add("--output", metavar="PLACE", help="folder or s3://bucket/prefix of the table")
    add(
        "--at-once",
        type=int,
        default=0,
        metavar="N",
        help="students trained side by side, a thread each; 0 is one for each processor",
    )
    return command_line.run_with(read, arguments, work, plan, argv)


if __name__ == "__main__":
    sys.exit(main())
