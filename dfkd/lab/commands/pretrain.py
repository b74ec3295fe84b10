"""Train the miniature world's models from an icon package, score and export them."""

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any

from dfkd.commands import command_line
from dfkd.errors import ManifestError
from dfkd.lab.miniature.recipe import Recipe
from dfkd.utils import yaml

STAGES = ("teacher", "tower", "generator", "backbone", "diffusion")
"""Trainings of a run without --only, in their order."""


def plan(recipe: Recipe, options: argparse.Namespace) -> dict[str, Any]:
    """What a run would do."""
    stages = [options.only] if options.only else STAGES
    return {
        "package": recipe.data.directory,
        **{f"{stage}_steps": getattr(recipe, stage).steps for stage in stages},
        "work": recipe.data.work,
        "output": recipe.output,
    }


def work(recipe: Recipe, options: argparse.Namespace) -> str:
    """Run every stage, resuming after a kill; returns the path of the scores."""
    # Import here: only this job needs the packages of the extra `pretrain`.
    try:
        from dfkd.lab.miniature.making import make, make_single
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("dfkd"):
            raise
        raise ManifestError(
            "environment", "needs the extra pretrain", error.name, "pip install -e '.[pretrain]'"
        ) from None
    command = command_line.again("pretrain", options)
    if options.only:
        return str(make_single(recipe, options.only, f"{command} --only {options.only}"))
    return str(make(recipe, command))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = command_line.parser("pretrain", __doc__ or "")
    arguments.add_argument(
        "--only",
        choices=("backbone", "diffusion", "judge"),
        help="train only one model: the backbone that a student may start from, a diffusion model "
        "in the latent space of the generator, or the judge of synthesised images",
    )
    return command_line.run(arguments, work, plan, argv, partial(yaml.load, Recipe))
