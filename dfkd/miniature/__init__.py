"""The miniature world: a small teacher, a small generator and evaluation images, and their recipe.

The assets are used through the ordinary code paths (``dfkd.teacher``, ``dfkd.generator``,
``dfkd.domains``); everything else here is the recipe behind ``jobs/pretrain.py`` and is imported by
nothing else. What the models are, and how well they do, is in ``assets/MODEL_CARD.md``.
"""

from pathlib import Path

ASSETS = Path(__file__).parent / "assets"

TEACHER_CONFIG = ASSETS / "teacher.json"
TEACHER_WEIGHTS = ASSETS / "teacher.safetensors"
GENERATOR_CONFIG = ASSETS / "generator.yaml"
GENERATOR_WEIGHTS = ASSETS / "generator.safetensors"
EVALUATION = ASSETS / "evaluation.tar"
