"""Where the miniature world lies: models and evaluation images that come with the package."""

from pathlib import Path

ASSETS = Path(__file__).parents[1] / "miniature" / "assets"

TEACHER_CONFIG = ASSETS / "teacher.json"
TEACHER_WEIGHTS = ASSETS / "teacher.safetensors"
GENERATOR_CONFIG = ASSETS / "generator.yaml"
GENERATOR_WEIGHTS = ASSETS / "generator.safetensors"
EVALUATION = ASSETS / "evaluation.tar"
