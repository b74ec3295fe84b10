"""Synthesis: latents are optimised until the teacher sees their prompts in them (Eq 1-3)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dfkd.generator import Generator
from dfkd.inversion.statistics import batch_norm_loss, batch_norm_taps
from dfkd.manifest import Synthesis
from dfkd.plan import derive_seed
from dfkd.teacher import Teacher, spherical_distance
from dfkd.views import Views

OnStep = Callable[[int, Tensor], None]
"""Called with the step and the losses [B] of the images still at work."""


@dataclass(frozen=True)
class Synthesised:
    """B images in the order of their seeds.

    pixels: [B, H, W, 3] uint8; losses: [B] of the kept step; steps: [B] taken; diverged: [B] bool,
    true where the loss was no number or ended above where it began: such an image must not be used.
    """

    pixels: Tensor
    losses: Tensor
    steps: Tensor
    diverged: Tensor


class _Kept:
    """The latent that each image ends with: of its best or its last step."""

    def __init__(self, latents: Tensor, keep: str) -> None:
        self.keep = keep
        self.latents = latents.detach().clone()
        self.losses = torch.full((len(latents),), torch.inf, device=latents.device)
        self.first = self.losses.clone()
        self.steps = torch.zeros(len(latents), dtype=torch.int64, device=latents.device)
        self.stale = self.steps.clone()
        self.broken = torch.zeros_like(self.steps, dtype=torch.bool)

    def update(self, rows: Tensor, latents: Tensor, losses: Tensor) -> None:
        """Take in the losses [R] that the latents of images `rows` [R] gave at this step."""
        losses = losses.detach()
        finite = losses.isfinite()
        better = losses < self.losses[rows]
        self.first[rows] = torch.where(self.steps[rows] == 0, losses, self.first[rows])
        self.steps[rows] += 1
        self.stale[rows] = torch.where(better, 0, self.stale[rows] + 1)
        self.broken[rows] |= ~finite
        taken = rows[better if self.keep == "best" else finite]
        chosen = better if self.keep == "best" else finite
        self.latents[taken] = latents.detach()[chosen]
        self.losses[taken] = losses[chosen]

    def finished(self, patience: int) -> Tensor:
        """Images [B] that need no further step."""
        return self.broken | (self.stale >= patience if patience else self.broken)

    def diverged(self) -> Tensor:
        return self.broken | ~(self.losses <= self.first)


def synthesise(
    teacher: Teacher,
    generator: Generator,
    config: Synthesis,
    targets: Tensor,
    seeds: Sequence[int],
    on_step: OnStep | None = None,
) -> Synthesised:
    """Minimise D(E_img(G(z)), T) over the latents of a batch, each image on its own.

    Args:
        targets: unit text embeddings [B, E], one prompt an image.
        seeds: one for each image; with its target it determines the image.

    The losses of the batch are summed, so that batch size changes no image's step, and all else is
    elementwise or per sample: an image is the same whatever shares its batch, up to the rounding of
    kernels that are chosen by batch size.

    With `config.batch_norm_weight` that is over: L_bn of the batch is added to the loss of each of
    its images (so that its share does not depend on batch size either), and every image depends on
    all others. What needs no further step leaves such a batch at once.

    Raises:
        ManifestError: L_bn is asked for, and the teacher has no batch norm.
    """
    (weight,) = config.batch_norm_weight
    if not weight:
        return _synthesise(teacher, generator, config, targets, seeds, on_step)
    with batch_norm_taps(teacher, "synthesis.batch_norm_weight") as taps:

        def shared() -> Tensor:
            return weight * batch_norm_loss(taps.read)

        return _synthesise(teacher, generator, config, targets, seeds, on_step, shared)


def _synthesise(
    teacher: Teacher,
    generator: Generator,
    config: Synthesis,
    targets: Tensor,
    seeds: Sequence[int],
    on_step: OnStep | None,
    shared: Callable[[], Tensor] | None = None,
) -> Synthesised:
    """`shared` is a loss that all images of the batch have together, of the last pass."""
    latents = generator.fresh(seeds, config.image_size, config.initialisation)
    kept = _Kept(latents, config.keep)
    rows = torch.arange(len(seeds), device=latents.device)
    views = _views(config, seeds, teacher.image_size)
    optimizer = _optimizer(config, latents.requires_grad_())
    for step in range(config.steps):
        seen = teacher.encode_image(views.show(generator.decode(latents, config.quantise), step))
        losses = _losses(seen, targets[rows])
        if shared is not None:
            losses = losses + shared()
        kept.update(rows, latents, losses)
        if on_step is not None:
            on_step(step, losses.detach())
        finished = kept.finished(config.patience)[rows]
        if bool(finished.all()):
            break
        _improve(generator, latents, losses, optimizer, learning_rate(config, step))
        # Images that are done still cost time; they leave once they are half of the batch.
        if 2 * int(finished.sum()) >= len(rows) or (shared is not None and finished.any()):
            active = ~finished
            rows = rows[active]
            views.select(active)
            latents, optimizer = _compact(config, latents, optimizer, active)
    return _result(generator, config, kept)


def _views(config: Synthesis, seeds: Sequence[int], size: int) -> Views:
    own = [derive_seed(seed, "views") for seed in seeds]
    return Views(own, config.steps, config.views, config.view_noise, size)


def _losses(seen: Tensor, targets: Tensor) -> Tensor:
    """The mean distance [B] of each image's views [B * V, E] to its own target [B, E]."""
    repeated = targets.repeat_interleave(len(seen) // len(targets), dim=0)
    return spherical_distance(seen, repeated).view(len(targets), -1).mean(dim=1)


@torch.no_grad()
def _result(generator: Generator, config: Synthesis, kept: _Kept) -> Synthesised:
    pixels = generator.decode(kept.latents, config.quantise)
    images = (pixels * 255).round().clamp(0, 255).nan_to_num().to(torch.uint8)
    return Synthesised(
        images.permute(0, 2, 3, 1).contiguous().cpu(),
        kept.losses.cpu(),
        kept.steps.cpu(),
        kept.diverged().cpu(),
    )


def learning_rate(config: Synthesis, step: int) -> float:
    """The rate of a step: constant, or a cosine from the full rate to a tenth of it."""
    if config.schedule == "constant" or config.steps == 1:
        return config.learning_rate
    progress = torch.tensor(torch.pi * step / (config.steps - 1), dtype=torch.float64)
    return config.learning_rate * (0.55 + 0.45 * float(progress.cos()))


def _improve(
    generator: Generator,
    latents: Tensor,
    losses: Tensor,
    optimizer: torch.optim.Optimizer,
    rate: float,
) -> None:
    """One step of the optimizer, in place, to where the generator can decode."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    (latents.grad,) = torch.autograd.grad(losses.sum(), [latents])
    optimizer.step()
    latents.data = generator.constrain(latents.data)


def _optimizer(config: Synthesis, latents: Tensor) -> torch.optim.Optimizer:
    if config.optimizer == "adamw":
        return torch.optim.AdamW(
            [latents], lr=config.learning_rate, weight_decay=config.weight_decay
        )
    return torch.optim.Adam([latents], lr=config.learning_rate)


def _compact(
    config: Synthesis, latents: Tensor, optimizer: torch.optim.Optimizer, active: Tensor
) -> tuple[Tensor, torch.optim.Optimizer]:
    """The active latents with an optimizer that goes on from where the old one was."""
    moments = optimizer.state[latents]
    chosen = latents.detach()[active].clone().requires_grad_()
    renewed = _optimizer(config, chosen)
    renewed.state[chosen] = {
        name: value[active].clone() if value.shape == latents.shape else value.clone()
        for name, value in moments.items()
    }
    return chosen, renewed
