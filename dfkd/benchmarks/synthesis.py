"""How fast latents are optimised: image-steps a second, beside loops that people use instead."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from dfkd.benchmarks import reference
from dfkd.benchmarks.measure import Call, Figure, beside, operations, profile, quotient, turns
from dfkd.config.manifest import Manifest
from dfkd.config.synthesis import Synthesis
from dfkd.models.generator import VQGAN
from dfkd.models.teacher import Teacher
from dfkd.prompts.maker import class_text_embeddings
from dfkd.synthesis.latents import Synthesiser
from dfkd.synthesis.shard_maker import initial_batch_size
from dfkd.utils.types import Precision

STEPS = 4
"""Optimisation steps of one timed repeat; the cutout loop takes one. Ours shows its latents once
more, as at the end of a run: the plain loop leaves with latents that it has not looked at."""
BATCHES = (0.25, 0.5, 2)
"""Other batches than the manifest's, as shares of it."""
UNIT = "image-steps/s"
PLAIN = "plain loop"


def measure(manifest: Manifest, device: torch.device, repeats: int) -> dict[str, Any]:
    """Image-steps a second with the manifest's models, size, batch and precision.

    Returns:
        `figures`, also of other batches and precisions, `flop_per_image_step` as counted, and a
        `profile` of ours and of the plain loop: seconds of `STEPS` steps by operation.
    """
    config = dataclasses.replace(manifest.synthesis, steps=STEPS + 1, batch_norm_weight=(0.0,))
    models = _models(manifest, device, config.precision)
    text = class_text_embeddings(manifest, models[0])[:1]
    batch, limit = initial_batch_size(config, device), f"convolution, {config.precision}"
    main = _ours(*models, config, text, batch)
    each = operations(main) / (STEPS * batch)
    others = _switched(manifest, device, models, config, text, batch)
    others |= _peers(manifest, device, text)
    found = turns(
        {"synthesis": main, **others, limit: reference.convolution(device, config.precision)},
        repeats,
    )
    profiles = {"synthesis": profile(main), PLAIN: profile(others[PLAIN])}
    share = quotient(found["synthesis"], found[limit], each)
    ratio = quotient(found["synthesis"], found[PLAIN])
    figures = [
        Figure("synthesis", UNIT, found["synthesis"], limit, share, PLAIN, ratio),
        *(beside("synthesis", name, UNIT, found) for name in others),
        Figure(limit, "FLOP/s", found[limit]),
    ]
    return {
        "flop_per_image_step": each,
        "figures": [figure.as_dict() for figure in figures],
        "profile": profiles,
    }


def _switched(
    manifest: Manifest,
    device: torch.device,
    models: tuple[Teacher, VQGAN],
    config: Synthesis,
    text: Tensor,
    batch: int,
) -> dict[str, Call]:
    """Ours with one thing changed: the batch, the precision, or whether the step is compiled."""
    others = {
        f"synthesis, batch of {size}": _ours(*models, config, text, size)
        for size in (max(1, int(part * batch)) for part in BATCHES)
    }
    single = dataclasses.replace(config, precision="float32")
    whole = _models(manifest, device, single.precision)
    others["synthesis, float32"] = _ours(*whole, single, text, batch)
    if config.compile or device.type == "cuda":  # on a CPU it gains nothing, and needs a compiler
        switched = dataclasses.replace(config, compile=not config.compile)
        name = "synthesis, compiled" if switched.compile else "synthesis, eager"
        others[name] = _ours(*models, switched, text, batch)
    return others


def _ours(teacher: Teacher, generator: VQGAN, config: Synthesis, text: Tensor, batch: int) -> Call:
    synthesiser = Synthesiser(teacher, generator, config)

    def call() -> float:
        synthesiser(text.expand(batch, -1), range(batch))
        return float(STEPS * batch)

    return call


def _peers(manifest: Manifest, device: torch.device, text: Tensor) -> dict[str, Call]:
    """The loops that people use instead, on models as they are published."""
    teacher, generator = _models(manifest, device, "float32")
    reference.as_published(teacher.model, generator.network)
    size = manifest.synthesis.image_size

    def plain() -> float:
        targets = text.expand(reference.BATCH, -1)
        reference.plain_loop(teacher, generator, targets, size, STEPS)
        return float(STEPS * reference.BATCH)

    def cutouts() -> float:
        reference.cutout_loop(teacher, generator, text[0], size, 1)
        return 1.0

    return {PLAIN: plain, "cutout loop": cutouts}


def _models(
    manifest: Manifest, device: torch.device, precision: Precision
) -> tuple[Teacher, VQGAN]:
    return (
        Teacher.load(manifest.teacher, device, precision, manifest.cache),
        VQGAN.load(manifest.generator, device, precision, manifest.cache),
    )
