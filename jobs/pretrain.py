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


def plan(recipe: Recipe, options: argparse.Namespace) -> dict[str, Any]:
    """What a run would do."""
    teacher, generator, diffusion = recipe.teacher, recipe.generator, recipe.diffusion
    if options.only:
        settings = getattr(recipe, options.only)
        return {
            "steps": settings.steps,
            "images": settings.steps * settings.batch_size,
            "work": recipe.data.work,
            "output": recipe.output,
        }
    return {
        "package": recipe.data.directory or recipe.data.package,
        "teacher_steps": teacher.steps,
        "teacher_images": teacher.steps * teacher.batch_size,
        "tower_steps": recipe.tower.steps,
        "tower_images": recipe.tower.steps * teacher.batch_size,
        "generator_steps": generator.steps,
        "generator_images": generator.steps * generator.batch_size,
        "diffusion_steps": diffusion.steps,
        "diffusion_images": diffusion.steps * diffusion.batch_size,
        "work": recipe.data.work,
        "output": recipe.output,
    }


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
