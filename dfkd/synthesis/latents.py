"""Optimise latents so that the teacher's image embeddings approach their prompts (Eq 1-3)."""

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
"""Called with the step and the losses [B] of the images that are still in the batch."""

CHECK_INTERVAL = 10
"""Steps between two checks on a GPU for diverged images; each one waits for the GPU."""


@dataclass(frozen=True)
class Synthesised:
    """B images in the order of their seeds, on the CPU."""

    pixels: Tensor
    """uint8 [B, H, W, 3]."""
    losses: Tensor
    """Loss of each image at its last step, float [B]."""
    steps: Tensor
    """Steps that each image took, int64 [B]."""
    diverged: Tensor
    """bool [B], true if a loss was not finite; such an image must not be used."""


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
        """Store the latents of images `rows` [R] and the losses [R] that they gave.

        Diverged images are ignored, so the result does not depend on when they leave the batch.
        """
        losses = losses.detach()
        active = ~self.diverged[rows]
        finite = losses.isfinite()
        valid = active & finite
        self.steps[rows] += active
        self.diverged[rows] |= ~finite
        self.losses[rows] = torch.where(valid, losses, self.losses[rows])
        # A mask instead of an index, because an index of unknown length makes the host wait.
        mask = valid.view(-1, 1, 1, 1)
        self.latents[rows] = torch.where(mask, latents.detach(), self.latents[rows])


class Synthesiser:
    """Makes batches of images with fixed models, which are compiled at most once."""

    def __init__(self, teacher: Teacher, generator: Generator, config: Synthesis) -> None:
        self.teacher, self.generator, self.config = teacher, generator, config
        self.distances: Callable[[Tensor, Tensor, ViewParameters | None], Tensor] = self._distances
        """Mean distance [B] of each latent's views to its target [B, E]."""
        if config.compile:
            self.distances = torch.compile(self._distances, dynamic=False)

    def __call__(
        self, targets: Tensor, seeds: Sequence[int], on_step: OnStep | None = None
    ) -> Synthesised:
        """Minimise D(E_img(G(z)), T) over the latents of a batch, independently for each image.

        The losses of the batch are summed and everything else is per sample. So an image does not
        depend on the rest of its batch, up to the rounding of kernels that depend on batch size.

        With `config.batch_norm_weight` the images are coupled: L_bn of the batch is added to the
        loss of each image, so that its relative weight does not depend on batch size. An image that
        diverges leaves such a batch at once.

        Args:
            targets: unit text embeddings [B, E], one prompt for each image.
            seeds: one for each image; seed and target determine the image.
            on_step: called after each step.

        Raises:
            ManifestError: `config.batch_norm_weight` is set and the teacher has no batch norm.
        """
        (weight,) = self.config.batch_norm_weight
        if not weight:
            return self._optimise(targets, seeds, on_step)
        with batch_norm_taps(self.teacher, "synthesis.batch_norm_weight") as taps:

            def batch_loss() -> Tensor:
                return weight * batch_norm_loss(taps.read)

            return self._optimise(targets, seeds, on_step, batch_loss)

    def _optimise(
        self,
        targets: Tensor,
        seeds: Sequence[int],
        on_step: OnStep | None,
        batch_loss: Callable[[], Tensor] | None = None,
    ) -> Synthesised:
        """`batch_loss` is a scalar of the latest forward pass, added to the loss of each image."""
        config, generator = self.config, self.generator
        latents = generator.init_latents(seeds, config.image_size)
        final = _FinalLatents(latents)
        rows = torch.arange(len(seeds), device=latents.device)
        views = self._views(seeds, latents.device)
        optimizer = _adam(latents.requires_grad_(), config.learning_rate)
        for step in range(config.steps):
            losses = self.distances(latents, targets[rows], views.draw(step))
            if batch_loss is not None:
                losses = losses + batch_loss()
            final.update(rows, latents, losses)
            if on_step is not None:
                on_step(step, losses.detach())
            # Reading a GPU result on the host stalls both, so it happens only now and then.
            may_read = not latents.is_cuda or step % CHECK_INTERVAL == CHECK_INTERVAL - 1
            checking = batch_loss is not None or may_read
            diverged = final.diverged[rows]
            # The final latents are those of the last loss, so a further update would be unused.
            if step == config.steps - 1 or (checking and bool(diverged.all())):
                break
            _step(generator, latents, losses, optimizer)
            if checking and self._should_drop(diverged, coupled=batch_loss is not None):
                rows = rows[~diverged]
                views.select(~diverged)
                latents, optimizer = _compact(config, latents, optimizer, ~diverged)
        return _result(generator, config, final)

    def _distances(
        self, latents: Tensor, targets: Tensor, view_parameters: ViewParameters | None
    ) -> Tensor:
        pixels = self.generator.decode(latents, self.config.quantise)
        embeddings = self.teacher.encode_image(apply_views(pixels, view_parameters))
        repeated = targets.repeat_interleave(len(embeddings) // len(targets), dim=0)
        return spherical_distance(embeddings, repeated).view(len(targets), -1).mean(dim=1)

    def _views(self, seeds: Sequence[int], device: torch.device) -> Views:
        view_seeds, config = [derive_seed(seed, "views") for seed in seeds], self.config
        size = self.teacher.image_size
        return Views(view_seeds, config.steps, config.views, config.view_noise, size, device)

    def _should_drop(self, diverged: Tensor, coupled: bool) -> bool:
        """Whether diverged images leave the batch now."""
        # In a coupled batch their statistics would spoil all other images.
        if coupled:
            return bool(diverged.any())
        # Otherwise they only cost time, which a smaller batch saves once half of it is gone. A
        # compiled graph is bound to one batch size.
        return not self.config.compile and 2 * int(diverged.sum()) >= len(diverged)


@torch.no_grad()
def _result(generator: Generator, config: Synthesis, final: _FinalLatents) -> Synthesised:
    return Synthesised(
        to_bytes(generator.decode(final.latents, config.quantise)),
        final.losses.cpu(),
        final.steps.cpu(),
        final.diverged.cpu(),
    )


def _step(
    generator: Generator, latents: Tensor, losses: Tensor, optimizer: torch.optim.Optimizer
) -> None:
    """One optimiser step in place, followed by the projection to latents that can be decoded."""
    (latents.grad,) = torch.autograd.grad(losses.sum(), [latents])
    optimizer.step()
    latents.data = generator.constrain(latents.data)


def _adam(latents: Tensor, rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adam([latents], rate, fused=latents.is_cuda)


def _compact(
    config: Synthesis, latents: Tensor, optimizer: torch.optim.Optimizer, active: Tensor
) -> tuple[Tensor, torch.optim.Optimizer]:
    """The active latents, and an optimiser that continues with their moments."""
    moments = optimizer.state[latents]
    remaining = latents.detach()[active].clone().requires_grad_()
    new_optimizer = _adam(remaining, config.learning_rate)
    # Adam's moments have the shape of the latents; its step count is a scalar.
    new_optimizer.state[remaining] = {
        name: value[active].clone() if value.shape == latents.shape else value.clone()
        for name, value in moments.items()
    }
    return remaining, new_optimizer
