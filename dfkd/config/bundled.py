"""Paths: the cache of fetched files, and the models and images that the package ships."""

from pathlib import Path

CACHE = "~/.cache/dfkd"
"""Default folder of fetched files."""

MINIATURE = "miniature"
"""Value of a manifest key for the models that the package ships."""

ASSETS = Path(__file__).parents[1] / "miniature" / "assets"

TEACHER_CONFIG = ASSETS / "teacher.json"
TEACHER_WEIGHTS = ASSETS / "teacher.safetensors"
GENERATOR_CONFIG = ASSETS / "generator.yaml"
GENERATOR_WEIGHTS = ASSETS / "generator.safetensors"
DIFFUSION = ASSETS / "diffusion"
BACKBONE = ASSETS / "backbone.safetensors"
EVALUATION = ASSETS / "evaluation.tar"
