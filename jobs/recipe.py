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

from dfkd import command
from dfkd.manifest import Manifest
from dfkd.progress import bar
from dfkd.storage import open_storage
from dfkd.yaml import load

if TYPE_CHECKING:
    from dfkd.recipe import Description, Outcome


def read(path: str, overrides: tuple[str, ...]) -> Description:
    """The study in file `path` with overrides applied; each of its rows is a manifest."""
    from dfkd import recipe

    study = load(recipe.Description, path, overrides)
    for row in study.rows.values():
        recipe.manifest_of(study, Path(path).parent, row)
    return study


def plan(study: Description, options: argparse.Namespace) -> dict[str, Any]:
    """What a run would train."""
    return {
        "rows": list(study.rows),
        "seeds": list(study.seeds),
        "students": len(study.rows) * len(study.seeds),
    }


def work(study: Description, options: argparse.Namespace) -> str:
    """Train what is missing, then write results and table; returns the table's path."""
    from dfkd import recipe
    from dfkd.cluster.build import environment
    from dfkd.hardware import cpus, machine
    from dfkd.report.grid import markdown
    from dfkd.shards import canonical

    folder = Path(options.manifest).parent
    cells = recipe.cells(study, folder, data_set)
    outcomes: dict[tuple[str, int], Outcome] = {}
    with bar("students", len(cells), "student") as progress:
        for cell, outcome in recipe.run(cells, options.at_once or cpus()):
            outcomes[cell.row, cell.seed] = outcome
            progress.update(1)
    output = open_storage(options.output or str(folder))
    content = {
        "schema": 1,
        "study": study.as_dict(),
        "command": command.again("recipe", options),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
        "environment": environment(),
        "outcomes": [
            {"row": row, "seed": seed, **dataclasses.asdict(outcome)}
            for (row, seed), outcome in sorted(outcomes.items())
        ],
    }
    output.put("results.json", canonical(content))
    output.put("table.md", markdown(recipe.grid(study, outcomes)).encode())
    return output.location("table.md")


def data_set(manifest: Manifest) -> str:
    """The id of a manifest's version, which is made unless it is there."""
    from dfkd.cluster.build import build, finished, identify
    from dfkd.cluster.connect import connected

    identity = identify(manifest)
    with contextlib.nullcontext() if finished(manifest, identity) else connected():
        return build(manifest, identity, abandon=True, make_current=False).version.id


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    arguments = command.parser(__doc__ or "")
    add = arguments.add_argument
    add("--output", metavar="PLACE", help="folder or s3://bucket/prefix of the table")
    add(
        "--at-once",
        type=int,
        default=0,
        metavar="N",
        help="students trained side by side, a thread each; 0 is one for each processor",
    )
    return command.run_with(read, arguments, work, plan, argv)


if __name__ == "__main__":
    sys.exit(main())
