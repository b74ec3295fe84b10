"""The work folder of recipes: a folder for each stage and for each choice of its settings.

A stage's result depends on some sections of the recipe only. So a recipe with another generator
uses the drawings and the teacher of an earlier one.
"""

import os
from pathlib import Path
from typing import Any, Literal

from dfkd.config.hashing import fingerprint
from dfkd.lab.miniature.recipe import Recipe

Stage = Literal["world", "teacher", "tower", "generator", "diffusion", "backbone", "judge"]
"""A stage and its folder; `world` holds the rendered drawings."""
_SECTIONS: dict[Stage | Literal["models"], tuple[str, ...]] = {
    "models": ("data", "teacher", "tower", "generator"),
    "world": ("data",),
    "teacher": ("data", "teacher"),
    "tower": ("data", "teacher", "tower"),
    "generator": ("data", "teacher", "generator"),
    "diffusion": ("data", "teacher", "generator", "diffusion"),
    "backbone": ("data", "backbone"),
    "judge": ("data", "judge"),
}
"""The sections of the recipe on which each stage's result depends, and those on which teacher and
generator depend together (`models`). The generator learns from the teacher of the first training,
and the diffusion model from its text tower, so they do not depend on `tower`."""
_WITHOUT_EFFECT = frozenset(
    {
        *("data.directory", "data.clipart", "data.work", "data.max_likeness"),
        *("teacher.compile", "teacher.checkpoint_every"),
        *("generator.checkpoint_every", "diffusion.checkpoint_every"),
        *("backbone.checkpoint_every", "judge.checkpoint_every"),
    }
)
"""Settings that change no result of a stage. `max_likeness` changes which images are scored."""


def identity(recipe: Recipe, stage: Stage | Literal["models"]) -> dict[str, Any]:
    """All settings that change a stage's result, by dotted key (`teacher.steps`).

    `models` are teacher and generator together.
    """
    plain = recipe.as_dict()
    flat = {
        f"{section}.{key}": value
        for section in _SECTIONS[stage]
        for key, value in plain[section].items()
    }
    return {"seed": recipe.seed} | {k: v for k, v in flat.items() if k not in _WITHOUT_EFFECT}


def folder_of(recipe: Recipe, stage: Stage) -> Path:
    """The folder in which a stage keeps its work, named by its `identity` and created here."""
    name = f"{stage}-{fingerprint(identity(recipe, stage))[:12]}"
    folder = Path(recipe.data.work) / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_whole(path: Path, text: str) -> None:
    """Write a text file; a kill leaves the earlier file, or none, in place."""
    partial = path.with_name(path.name + ".part")
    partial.write_text(text, "utf-8")
    os.replace(partial, path)
