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
from dfkd.models.batch_norm import Taps, batch_norm_loss
from dfkd.models.generators.condition import Condition
from dfkd.models.generators.generator import Generator
from dfkd.models.teacher import Teacher, batch_norm_taps, spherical_distance
from dfkd.synthesis.request import OnStep, Synthesised, synthesised
from dfkd.synthesis.views import ViewParameters, Views, apply_views
from dfkd.utils.pixels import to_bytes

CHECK_INTERVAL = 10
"""Steps between two checks on a GPU for diverged images; each one waits for the GPU."""


class _FinalLatents:
    """The latent of each image at its last finite step.

    The step with the lowest loss is not used, because with random views a low loss often comes from
    an easy view and not from a good image.
    """

    def __init__(self, latents: Tensor) -> None:
        self.latents = latents.detach().clone()
        self.losses = torch.full((len(latents),), torch.inf, device=latents.device)
        self.steps = torch.zeros(len(latents), dtype=torch.int64, device=latents.device)
        self.diverged = torch.zeros_like(self.steps, dtype=torch.bool)

    def update(self, rows: Tensor, latents: Tensor, losses: Tensor) -> None:
        """Store the latents [R, C, h, w] of images `rows` [R] and the losses [R] that they gave."""
        latents, losses = latents.detach(), losses.detach()
        # An image stops at its first step that is not finite, even if it stays in the batch. So the
        # result does not depend on when diverged images are dropped.
        running = ~self.diverged[rows]
        # A latent that is no number may have a finite loss, because its nearest codes are some.
        finite = losses.isfinite() & latents.isfinite().flatten(1).all(dim=1)
        valid = running & finite
        self.steps[rows] += running
        self.diverged[rows] |= ~finite
        # `where` and not an index by `valid`: a GPU would have to tell the host how many are valid.
        self.losses[rows] = torch.where(valid, losses, self.losses[rows])
        self.latents[rows] = torch.where(valid[:, None, None, None], latents, self.latents[rows])

    def stop(self, rows: Tensor, latents: Tensor) -> Tensor:
        """Stop the images `rows` whose next latents [R, C, h, w] are no numbers.

        In a dependent batch their next forward pass would make the losses of all others no number.
        Returns which of the rows have diverged, bool [R].
        """
        self.diverged[rows] |= ~latents.detach().isfinite().flatten(1).all(dim=1)
        return self.diverged[rows]


class Synthesiser:
    """Makes batches of images with fixed models."""

    def __init__(
        self, teacher: Teacher, generator: Generator, config: Synthesis, steps: int | None = None
    ) -> None:
        """Prepare the loop.

        Args:
            config: with `compile`, batches of exactly `batch_size` images are compiled.
            steps: optimisation steps, 0 for none; by default `config.steps`.
        """
        self.teacher, self.generator, self.config = teacher, generator, config
        self.steps = config.steps if steps is None else steps
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

        With `config.batch_norm_weight` the images are dependent: L_bn of the batch is added to the
        loss of each image, so that its relative weight does not depend on batch size. An image that
        diverges leaves such a batch at once.

        Args:
            targets: unit text embeddings [B, E], one prompt for each image.
            seeds: one for each image; seed and target determine the image.
            on_step: called after each step.
            condition: the same prompts as hidden states, if the generator needs them.

        Raises:
            ManifestError: `config.batch_norm_weight` is set and the teacher has no batch norm.
        """
        latents = self.generator.init_latents(seeds, self.config.image_size, condition)
        if not self.steps:
            return self._measure(targets, latents, on_step)
        (weight,) = self.config.batch_norm_weight
        if not weight:
            return self._optimise(targets, seeds, latents, on_step)
        with batch_norm_taps(self.teacher, "synthesis.batch_norm_weight") as taps:
            return self._optimise(targets, seeds, latents, on_step, taps)

    @torch.no_grad()
    def _measure(self, targets: Tensor, latents: Tensor, on_step: OnStep | None) -> Synthesised:
        """Decode latents as they are; the loss is the distance of the whole image."""
        pixels = self._decode(latents)
        losses = spherical_distance(self.teacher.encode_image(pixels), targets)
        if on_step is not None:
            on_step(0, losses)
        return synthesised(to_bytes(pixels), losses, steps=0)

    def _optimise(
        self,
        targets: Tensor,
        seeds: Sequence[int],
        latents: Tensor,
        on_step: OnStep | None,
        taps: Taps | None = None,
    ) -> Synthesised:
        """Run the steps of a batch; with `taps`, L_bn of what they read is part of the loss."""
        config, generator, dependent = self.config, self.generator, taps is not None
        final = _FinalLatents(latents)
        views = self._views(seeds, latents.device)
        rows = torch.arange(len(seeds), device=latents.device)  # of the images in the batch
        optimizer = _adam(latents.requires_grad_(), config.learning_rate)
        for step in range(self.steps):
            full = len(rows) == self.full_batch
            evaluate = self.full_batch_distances if full else self._view_distances
            losses = evaluate(latents, targets[rows], views.draw(step))
            if taps is not None:
                # Added to every image, so the sum over the batch keeps the ratio of the two terms.
                losses = losses + config.batch_norm_weight[0] * batch_norm_loss(taps.values)
            final.update(rows, latents, losses)
            if on_step is not None:
                on_step(step, losses.detach())
            # A GPU is asked only now and then, because the host must wait for its answer. Dependent
            # images are checked at every step, before a diverged one reaches the others by L_bn.
            check = dependent or not latents.is_cuda or (step + 1) % CHECK_INTERVAL == 0
            diverged = final.diverged[rows]
            # `final` has the latents of the last loss already, so a further update would be lost.
            if step == self.steps - 1 or (check and bool(diverged.all())):
                break
            _step(generator, latents, losses, optimizer)
            if dependent and bool((diverged := final.stop(rows, latents)).all()):
                break
            if check and self._should_drop(diverged, dependent):
                rows = rows[~diverged]
                views.select(~diverged)
                latents, optimizer = _select(latents, optimizer, ~diverged, config.learning_rate)
        return self._result(final)

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
        pixels, size = self.generator.decode(latents, self.config.quantise), self.config.image_size
        if pixels.shape[-1] == size:
            return pixels
        # A diffusion model makes images of the size that it was trained for.
        return F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)

    @torch.no_grad()
    def _result(self, final: _FinalLatents) -> Synthesised:
        """Decode the final latents and copy everything to the CPU."""
        return Synthesised(
            to_bytes(self._decode(final.latents)),
            final.losses.cpu(),
            final.steps.cpu(),
            final.diverged.cpu(),
        )

    def _views(self, seeds: Sequence[int], device: torch.device) -> Views:
        """The views of all steps of a batch."""
        # A seed of their own, so the first view does not repeat the numbers of the first latent.
        view_seeds, config = [derive_seed(seed, "views") for seed in seeds], self.config
        size = self.teacher.image_size
        return Views(view_seeds, self.steps, config.views, config.view_noise, size, device)

    def _should_drop(self, diverged: Tensor, dependent: bool) -> bool:
        """Whether diverged images leave the batch now."""
        # In a dependent batch their statistics would spoil all other images.
        if dependent:
            return bool(diverged.any())
        # Otherwise they only cost time, which a smaller batch saves once half of it is gone. Only a
        # full batch is compiled.
        return not self.config.compile and 2 * int(diverged.sum()) >= len(diverged)


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


def _select(
    latents: Tensor, optimizer: torch.optim.Optimizer, kept: Tensor, rate: float
) -> tuple[Tensor, torch.optim.Optimizer]:
    """The latents for which `kept`, bool [B], is true, and an optimiser with their moments."""
    remaining = latents.detach()[kept].clone().requires_grad_()
    new_optimizer = _adam(remaining, rate)
    # Adam's two moments have the shape of the latents; its step count is a scalar.
    new_optimizer.state[remaining] = {
        name: value[kept].clone() if value.shape == latents.shape else value.clone()
        for name, value in optimizer.state[latents].items()
    }
    return remaining, new_optimizer
