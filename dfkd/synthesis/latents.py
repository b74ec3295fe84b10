"""Optimise latents so that the teacher's image embeddings approach their prompts (section 3.1).

With the frozen generator G, the frozen image tower E_img and the text embedding T of a prompt, Adam
minimises over the latent z of each image

    D(E_img(G(z)), T)    Eqs 1-3; D is `dfkd.models.labeller.spherical_distance`

The paper builds on VQGAN-CLIP and says no more. VQGAN-CLIP shows the tower augmented views of G(z)
and takes the mean of D over them (`dfkd.synthesis.views`). The initial latents, the quantisation
and the clamps of latents and pixels are its own too (`dfkd.models.generators.vqgan`).

A generator that samples its latents (`dfkd.models.generators.diffusion`) needs no such steps. With
some the same loop refines what it has sampled; with none the teacher sees only the finished image.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dfkd.config.hashing import derive_seed
from dfkd.models.generators.generator import Generator
from dfkd.models.labeller import spherical_distance
from dfkd.models.teacher import Teacher
from dfkd.prompts.conditions import ConditionEncoder, StoredPrompt
from dfkd.synthesis.image_source import (
    ImageSource,
    SourceContext,
    Synthesised,
    initial_batch_size,
    synthesised,
)
from dfkd.synthesis.settings import Latents
from dfkd.synthesis.views import ViewParameters, Views, apply_views
from dfkd.utils.pixels import to_bytes


class LatentSource(ImageSource):
    """Makes images from latents of the generator.

    Attributes:
        encode_condition: computes the hidden states of prompts; None if the generator needs none.
        full_batch: images of a compiled batch, with `synthesis.compile`. All others run eagerly,
            because a graph is compiled for one size, and each further one would take minutes.
    """

    def __init__(self, context: SourceContext, settings: Latents | None = None) -> None:
        assert context.generator is not None  # noqa: S101 - the source follows prompts
        manifest, self.teacher = context.manifest, context.teacher
        self.generator: Generator = context.generator
        self.config, own = manifest.synthesis, manifest.generator.settings
        self.steps, self.rate = own.optimisation_steps, own.latent_rate
        self.encode_condition: ConditionEncoder | None = None
        if self.generator.text is not None:
            self.encode_condition = ConditionEncoder(manifest, self.teacher, self.generator.text)
        # The most images that a batch can have: those of a unit of work.
        unit = min(self.config.shard_size, self.config.images_per_class)
        if manifest.source.scope != "image":
            unit *= len(manifest.classes)
        self.full_batch = min(initial_batch_size(manifest, self.teacher.device), unit)
        self.full_batch_distances: Callable[..., Tensor] = view_distances
        if self.config.compile:
            self.full_batch_distances = torch.compile(view_distances, dynamic=False)

    def make(self, prompts: Sequence[StoredPrompt], seeds: Sequence[int]) -> Synthesised:
        """Minimise D(E_img(G(z)), T) over the latents of a batch, independently for each image.

        Without steps the generator's initial latents are those of the images. Seed and prompt
        determine an image: the losses of the batch are summed and everything else is per sample, so
        it does not depend on the rest of its batch, up to the rounding of kernels that depend on
        batch size.
        """
        teacher, generator, config = self.teacher, self.generator, self.config
        targets = torch.stack([prompt.embedding for prompt in prompts]).to(teacher.device)
        condition = self.encode_condition(prompts) if self.encode_condition else None
        latents = generator.init_latents(seeds, config.image_size, condition)
        if not self.steps:
            with torch.no_grad():
                pixels = decode(generator, latents, config.image_size)
                losses = spherical_distance(teacher.encode_image(pixels), targets)
            return synthesised(to_bytes(pixels), losses, steps=0)
        # Seeds of their own, so the first view does not repeat the numbers of the first latent.
        view_seeds = [derive_seed(seed, "views") for seed in seeds]
        size, device = teacher.image_size, latents.device
        views = Views(view_seeds, self.steps, config.views, config.view_noise, size, device)
        full = len(seeds) == self.full_batch
        distances = self.full_batch_distances if full else view_distances
        # On a GPU fused Adam is one kernel instead of many.
        optimizer = torch.optim.Adam([latents.requires_grad_()], self.rate, fused=latents.is_cuda)
        for step in range(self.steps):
            drawn = views.draw(step)
            losses = distances(latents, targets, drawn, teacher, generator, config.image_size)
            losses = self.losses(losses)
            # The step with the lowest loss is not used, because with random views a low loss often
            # comes from an easy view. After a further step no loss would belong to the latents.
            if step == self.steps - 1:
                break
            # The gradient of the sum is, for each image, that of its own loss: a mean would scale
            # it with the batch size. Adam works element by element, so images stay independent.
            (gradient,) = torch.autograd.grad(losses.sum(), [latents])
            # Fused Adam needs the latents' own layout, and channels-last convolutions give another.
            latents.grad = gradient.contiguous()
            optimizer.step()
            latents.data = generator.constrain(latents.data)
        latents, losses = latents.detach(), losses.detach()
        # A latent that was no number once stays so, but its nearest codes may have a finite loss.
        finite = latents.isfinite().flatten(1).all(dim=1)
        losses = torch.where(finite, losses, torch.nan)
        with torch.no_grad():
            pixels = decode(generator, latents, config.image_size)
        return synthesised(to_bytes(pixels), losses, self.steps)

    def losses(self, distances: Tensor) -> Tensor:
        """The losses [B] of a batch whose images have these distances; a subclass may add terms."""
        return distances

    def limit(self, size: int) -> None:
        """See `ImageSource.limit`."""
        self.full_batch = size


def view_distances(
    latents: Tensor,
    targets: Tensor,
    views: ViewParameters | None,
    teacher: Teacher,
    generator: Generator,
    image_size: int,
) -> Tensor:
    """Mean distance float32 [B] of each image's views to its target [B, E]."""
    pixels = decode(generator, latents, image_size)
    embeddings = teacher.encode_image(apply_views(pixels, views))
    # The views of an image are adjacent, so each target is repeated in place.
    repeated = targets.repeat_interleave(len(embeddings) // len(targets), dim=0)
    return spherical_distance(embeddings, repeated).view(len(targets), -1).mean(dim=1)


def decode(generator: Generator, latents: Tensor, image_size: int) -> Tensor:
    """Pixels [B, 3, S, S] in [0, 1] of latents, where S is `image_size`."""
    pixels = generator.decode(latents)
    if pixels.shape[-1] == image_size:
        return pixels
    # A diffusion model makes images of the size that it was trained for.
    return F.interpolate(pixels, (image_size, image_size), mode="bilinear", antialias=True)
