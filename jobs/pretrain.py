"""Train the miniature world's models from an icon package, score and export them."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from dfkd.errors import ManifestError
from dfkd.miniature.recipe import Recipe
from dfkd.pipeline import command_line
from dfkd.utils import yaml


def read(path: str, overrides: tuple[str, ...]) -> Recipe:
    """The recipe in file `path` with overrides applied."""
    return yaml.load(Recipe, path, overrides)


STAGES = ("teacher", "tower", "generator", "backbone", "diffusion")
"""Trainings of a run without --only, in their order."""


def plan(recipe: Recipe, options: argparse.Namespace) -> dict[str, Any]:
    """What a run would do."""
    planned: dict[str, Any] = {"package": recipe.data.directory}
    for stage in [options.only] if options.only else STAGES:
        settings = getattr(recipe, stage)
        # The tower's batches are the teacher's.
        size = getattr(settings, "batch_size", recipe.teacher.batch_size)
        planned |= {f"{stage}_steps": settings.steps, f"{stage}_images": settings.steps * size}
    return planned | {"work": recipe.data.work, "output": recipe.output}


def work(recipe: Recipe, options: argparse.Namespace) -> str:
    """Run every stage, resuming after a kill; returns the path of the scores."""
    # Import here: only this job needs the packages of the extra `pretrain`.
    try:
        from dfkd.miniature.making import make, make_single
    except ModuleNotFoundError as error:
        raise ManifestError(
            "environment", "needs the extra pretrain", error.name, "pip install -e '.[pretrain]'"
        ) from None
    command = command_line.again("pretrain", options)
    if options.only:
        return str(make_single(recipe, options.only, f"{command} --only {options.only}"))
    return str(make(recipe, command))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    arguments = command_line.parser(__doc__ or "")
    arguments.add_argument(
        "--only",
        choices=("backbone", "diffusion", "judge"),
        help="train only one model: the backbone that a student may start from, a diffusion model "
        "in the latent space of the generator, or the judge of synthesised images",
    )
    return command_line.run_with(read, arguments, work, plan, argv)


if __name__ == "__main__":
    sys.exit(main())
