"""What a prompt method makes of the rows of a run; the base class makes vanilla prompts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import torch
from torch import Tensor

from dfkd.config.manifest import Manifest
from dfkd.config.plan import PromptRow
from dfkd.config.plugins import PromptSettings
from dfkd.models.labeller import class_prompt
from dfkd.models.teacher import Teacher
from dfkd.prompts.styles import class_text_embeddings

if TYPE_CHECKING:
    from dfkd.prompts.conditions import ConditionEncoder, StoredPrompt


@dataclass
class PromptBatch:
    """N prompts."""

    texts: list[str]
    embeddings: Tensor
    """Unit text embeddings, [N, E]."""
    pseudo_words: Tensor | None = None
    """[N, D]; None without a pseudo-word."""


class PromptMethod:
    """The vanilla method, and the base of all others: the class prompt itself (`teacher.template`).

    Attributes:
        class_texts: unit embeddings [M, E] of the class prompts.
    """

    batch_size = 1024
    """Prompts that are made together."""
    mixes_classes = False
    """Whether the rows of a part are drawn in random order, so that each batch has all classes."""

    def __init__(
        self, manifest: Manifest, teacher: Teacher, settings: PromptSettings | None = None
    ) -> None:
        self.manifest, self.teacher = manifest, teacher
        self.class_texts = class_text_embeddings(manifest, teacher)

    def check(self) -> None:
        """Raise `ManifestError` if a text that the method would make exceeds the context."""

    def notes(self) -> list[str]:
        """What a person should know before images are made of these prompts."""
        return []

    def draw(self, rows: Sequence[PromptRow], batch_seed: int) -> PromptBatch:
        """Make the prompts of some rows.

        A prompt depends on its own row alone, so take randomness from `PromptRow.seed`. A method
        that lets prompts depend on each other, as contrastive does, gets the same batches in the
        same order in every run.

        Args:
            batch_seed: of the random numbers that the batch shares.
        """
        texts = [class_prompt(self.manifest.teacher.template, row.meaning) for row in rows]
        labels = torch.tensor([row.class_index for row in rows], device=self.class_texts.device)
        return PromptBatch(texts, self.class_texts[labels])

    def remember(self, part: int, table: Callable[[int], pa.Table]) -> None:
        """Take note of earlier parts, as an uninterrupted run would have before it makes `part`.

        Args:
            table: reads the rows of an earlier part that this run has made itself, in the order in
                which it made them.
        """

    def states(self, prompts: Sequence["StoredPrompt"], encoder: "ConditionEncoder") -> Tensor:
        """The hidden states [N, L, D] of prompts, from which a diffusion model samples: those of
        their pseudo-words, or else of their texts."""
        if any(prompt.pseudo_word is None for prompt in prompts):
            return encoder.of_texts([prompt.text for prompt in prompts])
        return encoder.of_words(prompts)
