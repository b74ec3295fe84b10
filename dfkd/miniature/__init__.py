"""The miniature world: a small teacher, a small generator and evaluation images, and their recipe.

The assets are used through the ordinary code paths (``dfkd.models.teacher``,
``dfkd.models.generator``, ``dfkd.evaluation.data``); everything else here is the recipe behind
``jobs/pretrain.py`` and is imported by nothing else. What the models are, and how well they do, is
in ``assets/MODEL_CARD.md``.
"""
