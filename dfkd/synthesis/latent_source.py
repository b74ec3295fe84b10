"""Images from latents of the generator, which are optimised for each prompt, or sampled from it."""

import dataclasses
from collections.abc import Sequence

import torch

from dfkd.prompts.conditions import ConditionEncoder, StoredPrompt
from dfkd.synthesis.image_source import (
    ImageSource,
    SourceContext,
    Synthesised,
    initial_batch_size,
)
from dfkd.synthesis.latents import Synthesiser
from dfkd.synthesis.settings import Latents


class LatentSource(ImageSource):
    """Decodes latents of the generator.

    Attributes:
        synthesiser: optimises and decodes them.
        encode_condition: computes the hidden states of prompts; None if the generator needs none.
    """

    synthesiser_class = Synthesiser

    def __init__(self, context: SourceContext, settings: Latents | None = None) -> None:
        manifest, teacher, generator = context.manifest, context.teacher, context.generator
        assert generator is not None  # noqa: S101 - the source follows prompts
        config, self.device = manifest.synthesis, teacher.device
        # The most images that a batch can have: those of a unit of work.
        unit = min(config.shard_size, config.images_per_class)
        if manifest.source.scope != "image":
            unit *= len(manifest.classes)
        size = min(initial_batch_size(manifest, teacher.device), unit)
        own = manifest.generator.settings
        self.synthesiser = self.synthesiser_class(
            teacher,
            generator,
            dataclasses.replace(config, batch_size=size),
            own.optimisation_steps,
            own.latent_rate,
        )
        self.encode_condition: ConditionEncoder | None = None
        if generator.text is not None:
            self.encode_condition = ConditionEncoder(manifest, teacher, generator.text)

    def make(self, prompts: Sequence[StoredPrompt], seeds: Sequence[int]) -> Synthesised:
        """See `ImageSource.make`."""
        targets = torch.stack([prompt.embedding for prompt in prompts]).to(self.device)
        condition = self.encode_condition(prompts) if self.encode_condition else None
        return self.synthesiser(targets, seeds, condition=condition)

    def limit(self, size: int) -> None:
        """See `ImageSource.limit`."""
        self.synthesiser.full_batch = size
