"""Contrastive prompts with another positive view or other negatives (Figure 8)."""

from dfkd.config.manifest import Manifest
from dfkd.lab.baselines.settings import ContrastiveVariant
from dfkd.models.teacher import Teacher
from dfkd.prompts.contrastive import ContrastivePrompts


class ContrastiveVariantPrompts(ContrastivePrompts):
    """`ContrastivePrompts` with the options that the paper ablates."""

    def __init__(self, manifest: Manifest, teacher: Teacher, settings: ContrastiveVariant) -> None:
        super().__init__(
            manifest,
            teacher,
            settings,
            disturbance=settings.positive,
            within_class=settings.negatives == "intra-class",
        )
