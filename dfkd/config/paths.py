"""Paths: the cache of fetched files, the models and images of the package, and a manifest's own."""

import os
from pathlib import Path

CACHE = "~/.cache/dfkd"
"""Default folder of fetched files."""

MINIATURE = "miniature"
"""Value of a manifest key for the models that the package ships."""

ASSETS = Path(__file__).parents[1] / "bundled"

TEACHER_CONFIG = ASSETS / "teacher.json"
TEACHER_WEIGHTS = ASSETS / "teacher.safetensors"
GENERATOR_CONFIG = ASSETS / "generator.yaml"
GENERATOR_WEIGHTS = ASSETS / "generator.safetensors"
DIFFUSION = ASSETS / "diffusion"
BACKBONE = ASSETS / "backbone.safetensors"
EVALUATION = ASSETS / "evaluation.tar"
MANIFESTS = ASSETS / "manifests"
"""The repository's `manifests/*.yaml`, which a wheel has too."""


def manifest_file(name: str | Path) -> Path:
    """The file that `name` names: a path, or the name of a manifest that the package ships."""
    path, shipped = Path(name), MANIFESTS / f"{name}.yaml"
    # A file of the user's own comes first. A name has no slash, so it leads nowhere else.
    if path.exists() or Path(str(name)).name != str(name) or not shipped.is_file():
        return path
    return shipped


def local_path(text: str | Path) -> Path:
    """The path that a manifest names, with `~` expanded; that of an unknown user stays as it is."""
    # Unlike `Path.expanduser`, which ends in a RuntimeError there.
    return Path(os.path.expanduser(text))
