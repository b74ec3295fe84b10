"""DeepInversion (Yin et al. 2020): pixels are optimised so that the teacher recognises classes.

For a batch of B images x of classes y, in the teacher's normalised pixels:

    L = CE(T(x), y) + w_bn L_bn(x) + w_tv TV(x) + w_norm mean ||x||_2

Adam starts from noise and runs first at half the side and then at the full side, each with a
warm-up and a cosine decay to zero. At every step the batch is shifted (with wrap-around) and
mirrored at random, and its pixels are clipped to the valid range. Losses and order of the steps are
those of `deepinversion.py` in NVlabs/DeepInversion (`setting_id` 0), weights and schedule those of
the command in its README. The paper calls the third and fourth term R_prior and L_bn R_feature.

There are two differences to the publication. CLIP's tower has one input size, because its attention
pool has one embedding per position. So at half the side it sees the batch enlarged, where a ResNet
sees it at half the side. And the published code keeps the lowest loss of both resolutions, although
total variation and norm depend on the resolution; here the lowest loss at the full side is kept.

A part is cut into even batches. Batches are independent, so parts are made in parallel. Adaptive
DeepInversion, which adds a student's disagreement, is not implemented: Table 5 names the plain
method.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from dfkd.lab.baselines.batch_norm import Taps, batch_norm_loss, batch_norm_taps
from dfkd.lab.baselines.inverter import (
    Classifier,
    Inverter,
    PartRequest,
    RunContext,
    even_batches,
    set_rate,
)
from dfkd.lab.baselines.settings import DeepInversion
from dfkd.synthesis.image_source import Synthesised, synthesised
from dfkd.utils.pixels import to_bytes

LEARNING_RATE, BETAS = 0.25, (0.5, 0.9)
"""Adam's largest learning rate of the pixels (the README's command), and its momenta."""
BATCH_NORM_WEIGHT, FIRST_LAYER_FACTOR = 0.01, 10.0
"""Weight of L_bn in the loss, and the additional factor of the first batch-norm layer in L_bn."""
TOTAL_VARIATION_WEIGHT, NORM_WEIGHT = 1e-4, 1e-5
MAX_JITTER = 0.134
"""Largest random shift, as a share of the side: 30 of 224 pixels."""
MAX_WARMUP_STEPS = 100
"""Largest number of warm-up steps; they are also at most a tenth of all steps."""


class DeepInverter(Inverter):
    """Makes each image from noise with its own seed."""

    name = "deepinversion"
    taps: Taps

    def __init__(
        self, classifier: Classifier, context: RunContext, settings: DeepInversion
    ) -> None:
        super().__init__(classifier, context)
        self.config = settings

    def images(self, request: PartRequest) -> Synthesised:
        """Make a part batch after batch."""
        config, side = self.config, self.context.image_size
        made = []
        with batch_norm_taps(self.classifier.teacher, self.name) as self.taps:
            for rows in even_batches(len(request.seeds), config.batch_size):
                batch = request.select(rows)
                rngs = (torch.Generator().manual_seed(seed) for seed in batch.seeds)
                noise = torch.stack([torch.randn(3, side, side, generator=rng) for rng in rngs])
                images = noise.to(self.device).requires_grad_()
                self.rng = batch.make_rng("jitter")
                self._optimise(images, batch.labels, config.low_resolution_steps, halve=True)
                made.append(self._optimise(images, batch.labels, config.steps))
        pixels = torch.cat([to_bytes(self.classifier.denormalise(images)) for images, _ in made])
        steps = config.low_resolution_steps + config.steps
        return synthesised(pixels, torch.cat([losses for _, losses in made]), steps)

    def _optimise(
        self, images: Tensor, labels: Tensor, steps: int, *, halve: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Optimise normalised images [B, 3, H, W] at one resolution.

        Returns:
            The images and their losses [B] of the best step.
        """
        darkest, brightest = (self.classifier.normalise(torch.tensor(x)) for x in (0.0, 1.0))
        # A new optimiser, so the full side does not begin with the moments of the pooled gradients.
        optimizer = torch.optim.Adam([images], LEARNING_RATE, BETAS)
        best, lowest = images.detach().clone(), torch.inf
        # Losses that stay NaN mark the batch as diverged.
        best_losses = best.new_full((len(best),), torch.nan)
        for step in range(steps):
            # The pixels always have the full side, and at half of it their means are judged. So the
            # full side continues from them without enlarging anything.
            seen = F.avg_pool2d(images, 2) if halve else images
            losses = self.losses(jittered(seen, self.rng), labels)
            loss = losses.mean()
            # The loss of the whole batch decides, because L_bn is a property of all its images.
            if loss.item() < lowest:
                best, best_losses = images.detach().clone(), losses.detach()
                lowest = loss.item()
            set_rate(optimizer, learning_rate(LEARNING_RATE, step, steps))
            (images.grad,) = torch.autograd.grad(loss, [images])
            optimizer.step()
            images.data.clamp_(darkest, brightest)
        return best, best_losses

    def losses(self, images: Tensor, labels: Tensor) -> Tensor:
        """The loss [B] of each image: its cross-entropy plus the terms of the whole batch."""
        logits = self.classifier.logits(self.classifier.denormalise(images))
        # The batch terms are added to each image; the mean over the batch counts them once.
        return (
            F.cross_entropy(logits, labels, reduction="none")
            + BATCH_NORM_WEIGHT * batch_norm_loss(self.taps.values, FIRST_LAYER_FACTOR)
            + TOTAL_VARIATION_WEIGHT * total_variation(images)
            + NORM_WEIGHT * mean_norm(images)
        )


def jittered(images: Tensor, rng: torch.Generator) -> Tensor:
    """Shift the whole batch [N, C, S, S] with wrap-around and perhaps mirror it, by one draw."""
    limit = int(MAX_JITTER * images.shape[-1])
    down, right, mirrored = (
        int(torch.randint(low, high, (1,), generator=rng))
        for low, high in ((-limit, limit + 1), (-limit, limit + 1), (0, 2))
    )
    shifted = images.roll((down, right), dims=(2, 3))
    return shifted.flip(3) if mirrored else shifted


def learning_rate(peak: float, step: int, steps: int) -> float:
    """The learning rate at a 0-based step: a linear warm-up, then a cosine decay to zero."""
    warmup = min(MAX_WARMUP_STEPS, steps // 10)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def total_variation(images: Tensor) -> Tensor:
    """DeepInversion's L2 total variation of images [N, C, H, W]: a scalar.

    It is the sum of four Euclidean norms over the whole batch: of the differences between
    neighbours in rows, in columns, and in both diagonals.
    """
    across = images[..., :, 1:] - images[..., :, :-1]
    down = images[..., 1:, :] - images[..., :-1, :]
    falling = images[..., 1:, 1:] - images[..., :-1, :-1]
    rising = images[..., 1:, :-1] - images[..., :-1, 1:]
    return torch.stack([torch.linalg.vector_norm(d) for d in (across, down, falling, rising)]).sum()


def mean_norm(images: Tensor) -> Tensor:
    """The mean Euclidean norm of images [N, C, H, W]: a scalar."""
    norms: Tensor = torch.linalg.vector_norm(images.flatten(1), dim=1)
    return norms.mean()
