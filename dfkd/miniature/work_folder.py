"""The recipe's work folder: what each stage keeps there, and of which recipe it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from dfkd.errors import FingerprintError
from dfkd.miniature.recipe import Recipe

Stage = Literal["world", "teacher", "generator", "backbone"]
#: The sections of the recipe that each stage's result depends on.
_SECTIONS: dict[Stage, tuple[str, ...]] = {
    "world": ("data",),
    "teacher": ("data", "teacher"),
    "generator": ("data", "teacher", "generator"),
    "backbone": ("data", "backbone"),
}
#: Settings that change no result: paths, how fast it is made, and what only scores depend on.
_WITHOUT_EFFECT = frozenset(
    {
        *("data.directory", "data.clipart", "data.work", "data.max_likeness"),
        *("teacher.compile", "teacher.checkpoint_every"),
        *("generator.compile", "generator.checkpoint_every", "backbone.checkpoint_every"),
    }
)


def identity(recipe: Recipe, stage: Stage = "generator") -> dict[str, Any]:
    """All settings that change what a stage makes, by dotted key."""
    plain = recipe.as_dict()
    flat = {
        f"{section}.{key}": value
        for section in _SECTIONS[stage]
        for key, value in plain[section].items()
    }
    return {"seed": recipe.seed} | {k: v for k, v in flat.items() if k not in _WITHOUT_EFFECT}


def folder_of(recipe: Recipe, stage: Stage) -> Path:
    """The folder in which a stage keeps its work."""
    return Path(recipe.data.work) / stage


def claim(recipe: Recipe, stage: Stage) -> Path:
    """Mark a stage's folder as this recipe's; returns the folder.

    Other settings of a later stage leave the work of the earlier ones in place.

    Raises:
        FingerprintError: the folder holds the work of a different recipe.
    """
    folder = folder_of(recipe, stage)
    record = folder / "recipe.json"
    expected = identity(recipe, stage)
    if not record.exists():
        folder.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(expected, indent=2) + "\n", "utf-8")
    stored = json.loads(record.read_text("utf-8"))
    changed = sorted(key for key in expected | stored if stored.get(key) != expected.get(key))
    if changed:
        raise FingerprintError(
            f"data.work: {folder} holds work of a recipe with other {', '.join(changed)}; "
            "give another data.work or remove that folder"
        )
    return folder
