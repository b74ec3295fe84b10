"""The miniature world: a small teacher, a small generator, evaluation images, and their recipe.

The assets are used through the ordinary code paths (``dfkd.models.teacher``,
``dfkd.models.generator``, ``dfkd.evaluation.data``). All modules here belong to the recipe behind
``jobs/pretrain.py``; nothing else imports them. ``assets/MODEL_CARD.md`` describes the models and
their accuracies.
"""
