"""Hidden states of stored prompts, which condition a diffusion model.

A stored prompt has a text or a pseudo-word. Its states are computed again where images are made:
stored they would be larger than the image (77 x 768 floats are 236 kB).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dfkd.config.manifest import Manifest
from dfkd.models.generators.generator import Condition, TextInput
from dfkd.models.teacher import Teacher
from dfkd.prompts.pseudo_words import PseudoWords, embed_with


@dataclass(frozen=True)
class StoredPrompt:
    """The prompt of one image, from its row of `dfkd.prompts.maker.SCHEMA`."""

    class_index: int
    index: int
    """Number of the image within the class."""
    seed: int
    text: str
    embedding: Tensor
    """Unit text embedding, float32 [E]."""
    pseudo_word: np.ndarray | None
    """float32 [D]; None without one."""


class ConditionEncoder:
    """Computes hidden states as a text encoder of diffusers does: whole contexts, padded."""

    def __init__(self, manifest: Manifest, teacher: Teacher, text: TextInput) -> None:
        self.manifest, self.teacher, self.text = manifest, teacher, text
        self.words = PseudoWords(teacher, manifest.prompts.template)
        self.end = teacher.tokenizer.eot_token_id
        self.method = manifest.prompt_settings.load(manifest, teacher)
        self.empty = self.of_texts([""])

    @torch.no_grad()
    def __call__(self, prompts: Sequence[StoredPrompt]) -> Condition:
        """The states of N prompts, each of which depends on its own row only."""
        return Condition(self.method.states(prompts, self), self.empty)

    def of_words(self, prompts: Sequence[StoredPrompt]) -> Tensor:
        """States [N, L, D] of the template's sentences with pseudo-words."""
        names = [self.manifest.meanings[prompt.class_index] for prompt in prompts]
        tokens, positions = self.words.tokens(names, [self.words.template] * len(names))
        device = self.teacher.device
        tokens, positions = tokens.to(device), positions.to(device)
        vectors = [prompt.pseudo_word for prompt in prompts if prompt.pseudo_word is not None]
        words = torch.from_numpy(np.stack(vectors)).to(tokens.device)
        embedded = embed_with(self.teacher, self._padded(tokens), positions, words)
        return self.teacher.hidden_states(embedded, self.text.layers)

    def of_texts(self, texts: Sequence[str]) -> Tensor:
        """States [N, L, D] of texts."""
        tokens = self._padded(self.teacher.tokenize(texts))
        return self.teacher.hidden_states(self.teacher.embed_tokens(tokens), self.text.layers)

    def _padded(self, tokens: Tensor) -> Tensor:
        """Token ids [N, L] with the padding that the diffusion model was trained with."""
        if not self.text.pads_with_end:
            return tokens
        ended = (tokens == self.end).cumsum(dim=1) > 0
        return torch.where(ended, self.end, tokens)
