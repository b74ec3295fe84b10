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


def local_path(text: str | Path) -> Path:
    """The path that a manifest names, with `~` expanded; that of an unknown user stays as it is."""
    # Unlike `Path.expanduser`, which ends in a RuntimeError there.
    return Path(os.path.expanduser(text))
