"""Where the pixels of images come from: a generator, or a method that inverts the teacher."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from dfkd.config.hashing import derive_seed
from dfkd.config.manifest import Manifest
from dfkd.config.methods import has_dependent_images
from dfkd.config.plan import image_count, latent_learning_rate, root_seed, steps_per_image
from dfkd.models.generators.generator import Generator
from dfkd.models.teacher import Teacher
from dfkd.prompts.conditions import ConditionEncoder, StoredPrompt
from dfkd.prompts.styles import class_text_embeddings
from dfkd.synthesis.image_source import ImageSource
from dfkd.synthesis.inversion.cmi import CmiInverter
from dfkd.synthesis.inversion.deepinversion import DeepInverter
from dfkd.synthesis.inversion.dfad import DfadInverter
from dfkd.synthesis.inversion.inverter import Classifier, Inverter
from dfkd.synthesis.inversion.pre import PreInverter
from dfkd.synthesis.latents import Synthesiser
from dfkd.synthesis.request import (
    PartRequest,
    RunContext,
    Synthesised,
    initial_batch_size,
)

METHODS: dict[str, type[Inverter]] = {
    method.name: method for method in (DeepInverter, DfadInverter, CmiInverter, PreInverter)
}
"""The conventional methods by their names in the manifest."""


class LatentSource(ImageSource):
    """Decodes latents of a generator, which are optimised for each prompt, or sampled."""

    section = "synthesis"
    whole_part = False

    def __init__(self, manifest: Manifest, teacher: Teacher, generator: Generator) -> None:
        self.device = teacher.device
        config = dataclasses.replace(
            manifest.synthesis,
            learning_rate=latent_learning_rate(manifest),
            batch_size=min(initial_batch_size(manifest, teacher.device), _images_of_unit(manifest)),
        )
        self.synthesiser = Synthesiser(teacher, generator, config, steps_per_image(manifest))
        self.encode_condition: ConditionEncoder | None = None
        """Computes the hidden states of prompts; None if the generator needs none."""
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


class InversionSource(ImageSource):
    """Makes the images of a whole part together, by a conventional method."""

    whole_part = True

    def __init__(
        self, manifest: Manifest, teacher: Teacher, earlier: Callable[[int], Tensor]
    ) -> None:
        self.manifest, self.device = manifest, teacher.device
        self.section = f"inversion.{manifest.method}"
        seed = derive_seed("inversion", *root_seed(manifest))
        context = RunContext(seed, image_count(manifest), manifest.synthesis.image_size, earlier)
        classifier = Classifier(teacher, class_text_embeddings(manifest, teacher))
        self.inverter = METHODS[manifest.method](classifier, context, manifest.inversion)

    def make(self, prompts: Sequence[StoredPrompt], seeds: Sequence[int]) -> Synthesised:
        """See `ImageSource.make`."""
        labels = torch.tensor([prompt.class_index for prompt in prompts], device=self.device)
        size = self.manifest.synthesis.shard_size
        part = prompts[0].index // size
        # Only the last part is smaller, so all earlier ones have this many images.
        before = part * size * len(self.manifest.classes)
        return self.inverter.make(PartRequest(labels, seeds, part, before))

    def state(self) -> dict[str, Tensor]:
        """See `ImageSource.state`."""
        return self.inverter.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """See `ImageSource.restore`."""
        self.inverter.restore(state)


def image_source(
    manifest: Manifest,
    teacher: Teacher,
    generator: Generator | None,
    earlier: Callable[[int], Tensor],
) -> ImageSource:
    """The source that the manifest of one method names, at the start of its run.

    Args:
        generator: the loaded generator; None for methods without latents.
        earlier: returns the stored images of a part by its number, uint8 [N, H, W, 3], for chained
            methods (`has_dependent_parts`), which make their parts in order.
    """
    if generator is not None:
        return LatentSource(manifest, teacher, generator)
    return InversionSource(manifest, teacher, earlier)


def _images_of_unit(manifest: Manifest) -> int:
    """Images of a full unit of work, the most that a batch can have."""
    size = min(manifest.synthesis.shard_size, manifest.synthesis.images_per_class)
    return size * len(manifest.classes) if has_dependent_images(manifest.method) else size
