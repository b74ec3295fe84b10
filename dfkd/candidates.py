"""Random latents that the teacher has seen once: an image starts from one that is near its prompt.

One pass over as many random latents costs a run as much as a third of as many image-steps, however
many images it makes, and spares each of them its first steps.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dfkd.generator import Generator
from dfkd.imaging import Synthesis
from dfkd.plan import derive_seed
from dfkd.teacher import Teacher

OWN = 4
"""An image chooses among one in so many, drawn for it: two images of like prompts start apart."""

ROWS = 8
"""Latents shown at once; always as many, so that every worker sees the same embeddings."""


class Candidates:
    """The candidates of a run, by their seeds; of each only its embedding is held."""

    def __init__(
        self, teacher: Teacher, generator: Generator, config: Synthesis, seed: int
    ) -> None:
        """Decode and show `config.candidates` latents, which depend on `seed` alone."""
        self.generator, self.config = generator, config
        self.seeds = [derive_seed(seed, number) for number in range(config.candidates)]
        parts = range(0, len(self.seeds), ROWS)
        with torch.no_grad():
            seen = [self._seen(teacher, self.seeds[start : start + ROWS]) for start in parts]
        self.embeddings = torch.cat(seen)
        """Unit image embeddings [N, E]."""

    def latents(self, targets: Tensor, seeds: Sequence[int]) -> Tensor:
        """Where images start, [B, C, h, w] from targets [B, E] and seeds, each its own.

        Of an image's own candidates that whose embedding has the largest cosine with the target,
        and so the smallest distance of equation 1.
        """
        cosines = (targets @ self.embeddings.T).cpu()
        chosen = []
        for row, seed in zip(cosines, seeds, strict=True):
            own = self._own(seed)
            chosen.append(self.seeds[int(own[row[own].argmax()])])
        return self._fresh(chosen)

    def _own(self, seed: int) -> Tensor:
        random = torch.Generator().manual_seed(derive_seed(seed, "candidates"))
        count = -(-len(self.seeds) // OWN)
        return torch.randperm(len(self.seeds), generator=random)[:count]

    def _seen(self, teacher: Teacher, seeds: Sequence[int]) -> Tensor:
        pixels = self.generator.decode(self._fresh(seeds), self.config.quantise)
        return teacher.encode_image(pixels)

    def _fresh(self, seeds: Sequence[int]) -> Tensor:
        return self.generator.fresh(seeds, self.config.image_size, self.config.initialisation)
