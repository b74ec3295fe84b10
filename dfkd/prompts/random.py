"""Random prompts: a random pseudo-word in the place of the style (section 3.2, equations 8-11)."""

from collections.abc import Sequence

import torch

from dfkd.config.hashing import derive_seed
from dfkd.config.manifest import Manifest
from dfkd.config.plan import PromptRow
from dfkd.models.teacher import Teacher
from dfkd.prompts.method import PromptBatch, PromptMethod
from dfkd.prompts.pseudo_words import PseudoWords
from dfkd.prompts.settings import Contrastive, Random


class RandomPrompts(PromptMethod):
    """Random pseudo-words V = mu + e * eps * sigma.

    Attributes:
        words: encodes sentences with pseudo-words.
        scale: e.
    """

    def __init__(
        self, manifest: Manifest, teacher: Teacher, settings: Random | Contrastive
    ) -> None:
        super().__init__(manifest, teacher)
        self.words, self.scale = PseudoWords(teacher, manifest.prompts.template), settings.scale

    def check(self) -> None:
        """See `PromptMethod.check`."""
        meanings = self.manifest.meanings
        self.words.tokens(meanings, [self.words.template] * len(meanings))

    def draw(self, rows: Sequence[PromptRow], batch_seed: int) -> PromptBatch:
        """See `PromptMethod.draw`."""
        names, dimensions = [row.meaning for row in rows], self.teacher.token_table.shape[1]
        # Each row has its own generator, so a pseudo-word does not depend on its batch.
        generators = (torch.Generator().manual_seed(derive_seed(row.seed, 0)) for row in rows)
        noise = torch.stack([torch.randn(dimensions, generator=g) for g in generators])
        pseudo_words = self.words.around_the_mean(noise, self.scale)
        with torch.no_grad():
            embeddings = self.words.encode(names, pseudo_words)
        return PromptBatch([self.words.text(name) for name in names], embeddings, pseudo_words)
