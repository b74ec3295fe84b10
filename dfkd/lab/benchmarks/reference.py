"""What the benchmarks compare with: limits of this machine, and plain loops of the same work.

The plain loops are re-implementations of published ones. They compute the same in each step and
nothing else; no data set is made with them.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfkd.config.distillation import MOMENTUM, Distillation
from dfkd.distillation.augmentation import augment
from dfkd.lab.benchmarks.measure import Call
from dfkd.models.generators.generator import to_pixels
from dfkd.models.generators.vqgan import VQGAN
from dfkd.models.labeller import distances, spherical_distance
from dfkd.models.student import Student
from dfkd.models.teacher import Teacher
from dfkd.prompts.contrastive import DISTURBANCE, TEMPERATURE, Problem, contrastive_loss
from dfkd.prompts.pseudo_words import encode_whole
from dfkd.prompts.settings import Contrastive
from dfkd.utils.device import multiplies_bfloat16
from dfkd.utils.pixels import from_batch
from dfkd.utils.types import Precision

SIDE = {"cpu": 1024, "cuda": 8192}
"""Rows and columns of the multiplied matrices, by device."""
CONVOLUTION_IMAGES = {"cpu": 8, "cuda": 64}
"""Batch size of the convolution, by device."""
CHANNELS, CELLS = 128, 32
"""Channels in and out of the convolution, and width and height of its maps."""
BATCH = 8
"""The paper's batch size."""


def product(device: torch.device, precision: Precision = "float32") -> Call:
    """A call that multiplies matrices; its units are floating-point operations."""
    side, dtype = SIDE[device.type], _dtype(device, precision)
    left, right = _operands(device, dtype, (side, side), (side, side))

    def call() -> float:
        torch.mm(left, right)
        return 2.0 * side**3

    return call


def convolution(device: torch.device, precision: Precision = "float32") -> Call:
    """A call that runs a 3 x 3 convolution forward; its units are floating-point operations."""
    images, dtype = CONVOLUTION_IMAGES[device.type], _dtype(device, precision)
    shapes = (images, CHANNELS, CELLS, CELLS), (CHANNELS, CHANNELS, 3, 3)
    maps, kernel = _operands(device, dtype, *shapes)
    if device.type == "cuda":
        maps = maps.contiguous(memory_format=torch.channels_last)

    def call() -> float:
        with torch.no_grad():
            F.conv2d(maps, kernel, padding=1)
        return 2.0 * images * CELLS**2 * 9 * CHANNELS**2

    return call


def _operands(
    device: torch.device, dtype: torch.dtype, *shapes: tuple[int, ...]
) -> Iterator[Tensor]:
    """Standard normal tensors of these shapes, the same at each call.

    With constant tensors the limit would be too high for real work, because a GPU then needs less
    power and clocks higher.
    """
    draws = torch.Generator(device).manual_seed(0)
    for shape in shapes:
        yield torch.randn(shape, generator=draws, device=device).to(dtype)


def _dtype(device: torch.device, precision: Precision) -> torch.dtype:
    """The type that `precision` means on a device: bfloat16 only where it is multiplied."""
    mixed = precision == "bfloat16" and multiplies_bfloat16(device)
    return torch.bfloat16 if mixed else torch.float32


def plain_loop(
    teacher: Teacher, generator: VQGAN, targets: Tensor, image_size: int, steps: int
) -> Tensor:
    """The paper's loop (section 3.1, batch of 8): decode, encode, distance, Adam step.

    Runs in eager mode on the unchanged models; returns the losses [B] of the last step.

    Args:
        targets: unit text embeddings [B, E].
    """
    latents = generator.init_latents(range(len(targets)), image_size).requires_grad_()

    def losses() -> Tensor:
        return spherical_distance(_encode(teacher, _decode(generator, latents)), targets)

    return _minimise(losses, torch.optim.Adam([latents], lr=0.15), steps)


def plain_prompts(
    teacher: Teacher,
    problem: Problem,
    start: Tensor,
    config: Contrastive,
    draw: np.random.Generator,
) -> Tensor:
    """Equation 12 as stated; returns the pseudo-words [N, D] after the updates.

    Each sentence and its disturbed copy pass through the whole text tower.

    Args:
        problem: the batch of prompts and the memory bank.
        start: the pseudo-words [N, D] before the updates.
        config: the section `prompts.contrastive` of the manifest.
        draw: generator of the disturbances and of the draw from the bank.
    """
    words, names, pseudo_words = problem.words, problem.names, start.clone().requires_grad_()
    remembered = problem.bank.draw(config.bank, draw)

    def losses() -> Tensor:
        plain = words.tokens(names, [words.template] * len(names))
        disturbed = words.disturbed(names, "shuffle", DISTURBANCE, draw)
        texts, positives = (
            encode_whole(teacher, tokens.to(start.device), at.to(start.device), pseudo_words)
            for tokens, at in (plain, disturbed)
        )
        return contrastive_loss(texts, positives, problem.labels, remembered, TEMPERATURE, False)

    optimizer = torch.optim.Adam([pseudo_words], lr=config.learning_rate)
    _minimise(losses, optimizer, config.updates)
    return pseudo_words.detach()


def plain_distillation(
    student: Student,
    teacher: Teacher,
    texts: Tensor,
    pixels: Tensor,
    config: Distillation,
    steps: int,
) -> Tensor:
    """Equations 4 and 5 as stated, on a batch; returns the last step's loss.

    Args:
        texts: unit embeddings [M, E] of the class prompts.
        pixels: uint8 [B, 3, H, W] in host memory; each step copies them to the teacher's device.
        config: names the optimizer and its learning rate, which stays constant.
    """
    draws = torch.Generator(teacher.device).manual_seed(0)

    def loss() -> Tensor:
        views = augment(from_batch(pixels, teacher.device), ("flip", "crop"), draws)
        with torch.no_grad():
            targets = distances(_encode(teacher, views), texts)
        return F.l1_loss(student(views), targets)

    rate, weights = config.learning_rate * config.finetune_factor, student.parameters()
    optimizer = (
        torch.optim.SGD(weights, rate, MOMENTUM, weight_decay=config.weight_decay)
        if config.optimizer == "sgd"
        else torch.optim.AdamW(weights, rate, weight_decay=config.weight_decay)
    )
    return _minimise(loss, optimizer, steps)


def _minimise(losses: Callable[[], Tensor], optimizer: torch.optim.Optimizer, steps: int) -> Tensor:
    """Do `steps` optimizer steps on the sum of the losses; returns those of the last step."""
    for _ in range(steps):
        values = losses()
        optimizer.zero_grad()
        values.sum().backward()
        optimizer.step()
    return values.detach()


def as_published(*networks: nn.Module) -> None:
    """Use the memory layout of the networks' authors, channels first."""
    for network in networks:
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def _decode(generator: VQGAN, latents: Tensor) -> Tensor:
    """Decode with taming's own decoder; pixels in [0, 1]."""
    network: Any = generator.network
    return to_pixels(network.decoder(network.post_quant_conv(generator.quantise(latents))))


def _encode(teacher: Teacher, pixels: Tensor) -> Tensor:
    """Encode with open_clip's own encoder, after resizing to the teacher's image size."""
    size = teacher.image_size
    if pixels.shape[-1] != size:
        pixels = F.interpolate(pixels, (size, size), mode="bicubic", antialias=True)
    model: Any = teacher.model
    features: Tensor = model.encode_image((pixels - teacher.mean) / teacher.std)
    return F.normalize(features, dim=-1)
