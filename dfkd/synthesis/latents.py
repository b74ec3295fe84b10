"""Optimise latents so that the teacher's image embeddings approach their prompts (section 3.1).

With the frozen generator G, the frozen image tower E_img and the text embedding T of a prompt, Adam
minimises over the latent z of each image

    D(E_img(G(z)), T)    Eqs 1-3; D is `dfkd.models.teacher.spherical_distance`

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
from dfkd.config.synthesis import Synthesis
from dfkd.models.generators.generator import Condition, Generator
from dfkd.models.teacher import Teacher, spherical_distance
from dfkd.synthesis.image_source import OnStep, Synthesised, synthesised
from dfkd.synthesis.views import ViewParameters, Views, apply_views
from dfkd.utils.pixels import to_bytes


class Synthesiser:
    """Makes batches of images with fixed models."""

    def __init__(
        self,
        teacher: Teacher,
        generator: Generator,
        config: Synthesis,
        steps: int,
        rate: float,
    ) -> None:
        """Prepare the loop.

        Args:
            config: with `compile`, batches of exactly `batch_size` images are compiled.
            steps: optimisation steps, 0 for none.
            rate: Adam's learning rate.
        """
        self.teacher, self.generator, self.config = teacher, generator, config
        self.steps, self.rate = steps, rate
        self.full_batch_distances: Callable[[Tensor, Tensor, ViewParameters | None], Tensor] = (
            self._view_distances
        )
        """`_view_distances`, compiled for batches of `full_batch` images if `config.compile`."""
        self.full_batch = config.batch_size
        """Images of a compiled batch. All others run eagerly, because a graph is compiled for one
        size, and each further one would take minutes."""
        if config.compile:
            self.full_batch_distances = torch.compile(self._view_distances, dynamic=False)

    def __call__(
        self,
        targets: Tensor,
        seeds: Sequence[int],
        on_step: OnStep | None = None,
        condition: Condition | None = None,
    ) -> Synthesised:
        """Minimise D(E_img(G(z)), T) over the latents of a batch, independently for each image.

        Without steps the generator's initial latents are those of the images.

        The losses of the batch are summed and everything else is per sample. So an image does not
        depend on the rest of its batch, up to the rounding of kernels that depend on batch size.

        Args:
            targets: unit text embeddings [B, E], one prompt for each image.
            seeds: one for each image; seed and target determine the image.
            on_step: called after each step.
            condition: the same prompts as hidden states, if the generator needs them.
        """
        latents = self.generator.init_latents(seeds, self.config.image_size, condition)
        if not self.steps:
            return self._measure(targets, latents)
        views = self._views(seeds, latents.device)
        full = len(seeds) == self.full_batch
        evaluate = self.full_batch_distances if full else self._view_distances
        optimizer = _adam(latents.requires_grad_(), self.rate)
        for step in range(self.steps):
            losses = self.losses(evaluate(latents, targets, views.draw(step)))
            if on_step is not None:
                on_step(step, losses.detach())
            # After a further step no loss would belong to the latents.
            if step < self.steps - 1:
                _step(self.generator, latents, losses, optimizer)
        return self._result(latents.detach(), losses.detach())

    def losses(self, distances: Tensor) -> Tensor:
        """The losses [B] of a batch whose images have these distances; a subclass may add terms."""
        return distances

    @torch.no_grad()
    def _measure(self, targets: Tensor, latents: Tensor) -> Synthesised:
        """Decode latents as they are; the loss is the distance of the whole image."""
        pixels = self._decode(latents)
        losses = spherical_distance(self.teacher.encode_image(pixels), targets)
        return synthesised(to_bytes(pixels), losses, steps=0)

    def _view_distances(
        self, latents: Tensor, targets: Tensor, view_parameters: ViewParameters | None
    ) -> Tensor:
        """Mean distance float32 [B] of each image's views to its target [B, E]."""
        pixels = self._decode(latents)
        embeddings = self.teacher.encode_image(apply_views(pixels, view_parameters))
        # The views of an image are adjacent, so each target is repeated in place.
        repeated = targets.repeat_interleave(len(embeddings) // len(targets), dim=0)
        return spherical_distance(embeddings, repeated).view(len(targets), -1).mean(dim=1)

    def _decode(self, latents: Tensor) -> Tensor:
        """Pixels [B, 3, S, S] in [0, 1] of latents, where S is the image size."""
        pixels, size = self.generator.decode(latents), self.config.image_size
        if pixels.shape[-1] == size:
            return pixels
        # A diffusion model makes images of the size that it was trained for.
        return F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)

    @torch.no_grad()
    def _result(self, latents: Tensor, losses: Tensor) -> Synthesised:
        """Decode the latents of the last step, which gave the losses [B].

        The step with the lowest loss is not used, because with random views a low loss often comes
        from an easy view and not from a good image.
        """
        # A latent that was no number once stays so, but its nearest codes may have a finite loss.
        finite = latents.isfinite().flatten(1).all(dim=1)
        losses = torch.where(finite, losses, torch.nan)
        return synthesised(to_bytes(self._decode(latents)), losses, self.steps)

    def _views(self, seeds: Sequence[int], device: torch.device) -> Views:
        """The views of all steps of a batch."""
        # A seed of their own, so the first view does not repeat the numbers of the first latent.
        view_seeds, config = [derive_seed(seed, "views") for seed in seeds], self.config
        size = self.teacher.image_size
        return Views(view_seeds, self.steps, config.views, config.view_noise, size, device)


def _adam(latents: Tensor, rate: float) -> torch.optim.Optimizer:
    """Adam for the latents; fused on a GPU, where it is one kernel instead of many."""
    return torch.optim.Adam([latents], rate, fused=latents.is_cuda)


def _step(
    generator: Generator, latents: Tensor, losses: Tensor, optimizer: torch.optim.Optimizer
) -> None:
    """One optimiser step in place, followed by the projection to latents that can be decoded."""
    # The gradient of the sum is, for each image, that of its own loss: a mean would scale it with
    # the batch size. Adam works element by element, so the images stay independent.
    (gradient,) = torch.autograd.grad(losses.sum(), [latents])
    # Fused Adam needs the latents' own layout, and channels-last convolutions give another.
    latents.grad = gradient.contiguous()
    optimizer.step()
    latents.data = generator.constrain(latents.data)
