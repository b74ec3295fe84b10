"""Mix prompts: two styles of a class, mixed with a random weight (section 3.2, equation 6)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dfkd.config.manifest import Manifest
from dfkd.config.plan import PromptRow
from dfkd.models.teacher import Teacher
from dfkd.prompts.conditions import ConditionEncoder, StoredPrompt
from dfkd.prompts.method import PromptBatch, PromptMethod
from dfkd.prompts.settings import Mix
from dfkd.prompts.styles import (
    check_styled_prompts,
    dictionary,
    mixture,
    style_text_embeddings,
    styled_prompt,
)


class MixPrompts(PromptMethod):
    """Equation 6: lambda T_1 + (1 - lambda) T_2 for two styles of a class, lambda ~ Beta."""

    def __init__(self, manifest: Manifest, teacher: Teacher, settings: Mix) -> None:
        super().__init__(manifest, teacher)
        self._styles: dict[str, Tensor] = {}

    def check(self) -> None:
        """See `PromptMethod.check`."""
        check_styled_prompts(self.manifest, self.teacher)

    def draw(self, rows: Sequence[PromptRow], batch_seed: int) -> PromptBatch:
        """See `PromptMethod.draw`."""
        styles, texts, mixed = dictionary(self.manifest.prompts), [], []
        for row in rows:
            first, second, weight = mixture(self.manifest.prompts, row.seed)
            styled = self._styled(row.meaning)
            # A mean of unit vectors is shorter than 1, and distances are defined on unit vectors.
            mean = weight * styled[first] + (1 - weight) * styled[second]
            mixed.append(F.normalize(mean, dim=0))
            one, two = (
                styled_prompt(self.manifest, row.meaning, styles[i]) for i in (first, second)
            )
            texts.append(f"{weight:.3f} {one} + {1 - weight:.3f} {two}")
        return PromptBatch(texts, torch.stack(mixed))

    def _styled(self, meaning: str) -> Tensor:
        """Text embeddings [S, E] of one class in every style, cached for the latest class."""
        if meaning not in self._styles:
            self._styles = {meaning: style_text_embeddings(self.manifest, self.teacher, meaning)}
        return self._styles[meaning]

    def states(self, prompts: Sequence[StoredPrompt], encoder: ConditionEncoder) -> Tensor:
        """Equation 6 for states: those of two styles, mixed with the weight of the embeddings."""
        config, firsts, seconds, weights = self.manifest.prompts, [], [], []
        styles = dictionary(config)
        for prompt in prompts:
            meaning = self.manifest.meanings[prompt.class_index]
            first, second, weight = mixture(config, prompt.seed)
            firsts.append(styled_prompt(self.manifest, meaning, styles[first]))
            seconds.append(styled_prompt(self.manifest, meaning, styles[second]))
            weights.append(weight)
        one, two = encoder.of_texts(firsts), encoder.of_texts(seconds)
        share = torch.tensor(weights, device=one.device)[:, None, None]
        return share * one + (1 - share) * two
