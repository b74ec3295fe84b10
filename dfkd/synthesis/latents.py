"""Synthesis: latents are optimised until the teacher sees their prompts in them (Eq 1-3)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dfkd.config.plan import derive_seed
from dfkd.config.synthesis import Synthesis
from dfkd.models.batch_norm import batch_norm_loss
from dfkd.models.generator import Generator
from dfkd.models.teacher import Teacher, batch_norm_taps, spherical_distance
from dfkd.synthesis.views import ViewParameters, Views, apply_views
from dfkd.utils.pixels import to_bytes

OnStep = Callable[[int, Tensor], None]
"""Called with the step and the losses [B] of the images still at work."""

CHECK_INTERVAL = 10
"""Steps on a GPU after which the host asks which images are finished."""


@dataclass(frozen=True)
class Synthesised:
    """B images in the order of their seeds.

    pixels: [B, H, W, 3] uint8; losses: [B] of the last step; steps: [B] taken; diverged: [B] bool,
    true where a loss was no number: such an image must not be used.
    """

    pixels: Tensor
    losses: Tensor
    steps: Tensor
    diverged: Tensor


class _Kept:
    """The latent that each image ends with: that of its last step.

    Not of its best one: with views a low loss is a lucky view as often as a good image.
    """

    def __init__(self, latents: Tensor) -> None:
        self.latents = latents.detach().clone()
        self.losses = torch.full((len(latents),), torch.inf, device=latents.device)
        self.steps = torch.zeros(len(latents), dtype=torch.int64, device=latents.device)
        self.diverged = torch.zeros_like(self.steps, dtype=torch.bool)

    def update(self, rows: Tensor, latents: Tensor, losses: Tensor) -> None:
        """Take in the losses [R] that the latents of images `rows` [R] gave at this step.

        Nothing of an image that has diverged, so that when it leaves the batch changes nothing.
        """
        losses = losses.detach()
        live = ~self.diverged[rows]
        finite = losses.isfinite()
        taken = live & finite
        self.steps[rows] += live
        self.diverged[rows] |= ~finite
        self.losses[rows] = torch.where(taken, losses, self.losses[rows])
        # Chosen by a mask and not by index, for which the host would have to wait.
        mask = taken.view(-1, 1, 1, 1)
        self.latents[rows] = torch.where(mask, latents.detach(), self.latents[rows])


class Synthesiser:
    """Makes batches of images with models, and what is compiled for them, that stay the same."""

    def __init__(self, teacher: Teacher, generator: Generator, config: Synthesis) -> None:
        self.teacher, self.generator, self.config = teacher, generator, config
        self.distances: Callable[[Tensor, Tensor, ViewParameters | None], Tensor] = self._distances
        """Mean distance [B] of each latent's views to its own target [B, E]."""
        if config.compile:
            self.distances = torch.compile(self._distances, dynamic=False)

    def __call__(
        self, targets: Tensor, seeds: Sequence[int], on_step: OnStep | None = None
    ) -> Synthesised:
        """Minimise D(E_img(G(z)), T) over the latents of a batch, each image on its own.

        Args:
            targets: unit text embeddings [B, E], one prompt an image.
            seeds: one for each image; with its target it determines the image.
            on_step: called after each step.

        The losses of the batch are summed, so that batch size changes no image's step, and all else
        is elementwise or per sample: an image is the same whatever shares its batch, up to the
        rounding of kernels that are chosen by batch size.

        With `config.batch_norm_weight` that is over: L_bn of the batch is added to the loss of each
        of its images (so that its share does not depend on batch size either), and every image
        depends on all others. An image that diverges leaves such a batch at once.

        Raises:
            ManifestError: L_bn is asked for, and the teacher has no batch norm.
        """
        (weight,) = self.config.batch_norm_weight
        if not weight:
            return self._optimise(targets, seeds, on_step)
        with batch_norm_taps(self.teacher, "synthesis.batch_norm_weight") as taps:

            def shared() -> Tensor:
                return weight * batch_norm_loss(taps.read)

            return self._optimise(targets, seeds, on_step, shared)

    def _optimise(
        self,
        targets: Tensor,
        seeds: Sequence[int],
        on_step: OnStep | None,
        shared: Callable[[], Tensor] | None = None,
    ) -> Synthesised:
        """`shared` is a loss that all images of the batch have together, of the last pass."""
        config, generator = self.config, self.generator
        latents = generator.fresh(seeds, config.image_size)
        kept = _Kept(latents)
        rows = torch.arange(len(seeds), device=latents.device)
        views = self._views(seeds, latents.device)
        optimizer = _adam(latents.requires_grad_(), config.learning_rate)
        for step in range(config.steps):
            losses = self.distances(latents, targets[rows], views.draw(step))
            if shared is not None:
                losses = losses + shared()
            kept.update(rows, latents, losses)
            if on_step is not None:
                on_step(step, losses.detach())
            # A host that asks for what a GPU has found waits for it, and the GPU then for the host.
            asking = (
                shared is not None
                or not latents.is_cuda
                or step % CHECK_INTERVAL == CHECK_INTERVAL - 1
            )
            finished = kept.diverged[rows]
            if step == config.steps - 1 or (asking and bool(finished.all())):
                break  # the last loss is known: nobody would look at what is beyond it
            _improve(generator, latents, losses, optimizer)
            if asking and self._worth_leaving(finished, shared is not None):
                rows = rows[~finished]
                views.select(~finished)
                latents, optimizer = _compact(config, latents, optimizer, ~finished)
        return _result(generator, config, kept)

    def _distances(self, latents: Tensor, targets: Tensor, drawn: ViewParameters | None) -> Tensor:
        pixels = self.generator.decode(latents, self.config.quantise)
        seen = self.teacher.encode_image(apply_views(pixels, drawn))
        repeated = targets.repeat_interleave(len(seen) // len(targets), dim=0)
        return spherical_distance(seen, repeated).view(len(targets), -1).mean(dim=1)

    def _views(self, seeds: Sequence[int], device: torch.device) -> Views:
        own, config = [derive_seed(seed, "views") for seed in seeds], self.config
        size = self.teacher.image_size
        return Views(own, config.steps, config.views, config.view_noise, size, device)

    def _worth_leaving(self, finished: Tensor, shared: bool) -> bool:
        """Whether images that are done, which still cost time, leave the batch now."""
        if shared:
            return bool(finished.any())
        # What is compiled is compiled for one size of batch.
        return not self.config.compile and 2 * int(finished.sum()) >= len(finished)


@torch.no_grad()
def _result(generator: Generator, config: Synthesis, kept: _Kept) -> Synthesised:
    return Synthesised(
        to_bytes(generator.decode(kept.latents, config.quantise)),
        kept.losses.cpu(),
        kept.steps.cpu(),
        kept.diverged.cpu(),
    )


def _improve(
    generator: Generator, latents: Tensor, losses: Tensor, optimizer: torch.optim.Optimizer
) -> None:
    """One step of the optimizer, in place, to where the generator can decode."""
    (latents.grad,) = torch.autograd.grad(losses.sum(), [latents])
    optimizer.step()
    latents.data = generator.constrain(latents.data)


def _adam(latents: Tensor, rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adam([latents], rate, fused=latents.is_cuda)


def _compact(
    config: Synthesis, latents: Tensor, optimizer: torch.optim.Optimizer, active: Tensor
) -> tuple[Tensor, torch.optim.Optimizer]:
    """The active latents with an optimizer that goes on from where the old one was."""
    moments = optimizer.state[latents]
    chosen = latents.detach()[active].clone().requires_grad_()
    renewed = _adam(chosen, config.learning_rate)
    renewed.state[chosen] = {
        name: value[active].clone() if value.shape == latents.shape else value.clone()
        for name, value in moments.items()
    }
    return chosen, renewed
