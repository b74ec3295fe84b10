"""What people would use instead, written down plainly to be timed beside it.

These are re-implementations of published loops, faithful in what they compute a step and in nothing
else: no data set comes of them.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from dfkd.generator import VQGAN
from dfkd.teacher import Teacher, spherical_distance

BATCH = 8
"""The paper's."""
CUTOUTS = 32
"""Of VQGAN-CLIP."""


def plain_loop(
    teacher: Teacher, generator: VQGAN, targets: Tensor, image_size: int, steps: int
) -> Tensor:
    """The loop that the paper states (section 3.1, batch of 8): decode, encode, distance, Adam.

    Eager and as the models are; returns the losses [B] of the last step.

    Args:
        targets: unit text embeddings [B, E].
    """
    latents = generator.fresh(range(len(targets)), image_size, "codes").requires_grad_()
    optimizer = torch.optim.Adam([latents], lr=0.15)
    for _ in range(steps):
        losses = spherical_distance(teacher.encode_image(generator.decode(latents)), targets)
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
    return losses.detach()


def cutout_loop(
    teacher: Teacher, generator: VQGAN, target: Tensor, image_size: int, steps: int
) -> Tensor:
    """The loop of VQGAN-CLIP: one image, 32 random crops of it a step, each at the teacher's size.

    Returns the loss of the last step.

    Args:
        target: a unit text embedding [E].
    """
    latent = generator.fresh([0], image_size, "codes").requires_grad_()
    optimizer = torch.optim.Adam([latent], lr=0.15)
    draws = torch.Generator().manual_seed(0)
    for _ in range(steps):
        crops = _crops(generator.decode(latent), teacher.image_size, draws)
        loss = spherical_distance(teacher.encode_image(crops), target).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.detach()


def _crops(image: Tensor, size: int, draws: torch.Generator) -> Tensor:
    """Random squares [32, 3, size, size] of an image [1, 3, H, W], with a little noise."""
    side = image.shape[-1]
    found = []
    for _ in range(CUTOUTS):
        extent = int((0.5 + 0.5 * float(torch.rand((), generator=draws))) * side)
        top, left = (int(torch.randint(side - extent + 1, (), generator=draws)) for _ in range(2))
        crop = image[:, :, top : top + extent, left : left + extent]
        found.append(F.adaptive_avg_pool2d(crop, size))
    crops = torch.cat(found)
    return crops + 0.1 * torch.randn(crops.shape, generator=draws).to(crops)
